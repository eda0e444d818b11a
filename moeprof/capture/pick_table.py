"""Routing by table: every token's picks are looked up by its request and its position in it.

Ladder rungs and replayed routing go through this one path, so what it costs is the same for all of them. Before each
forward the rows of its tokens are computed (one small vector) and gathered once for all layers; a hook per layer puts
its slice in the place of the router's picks and leaves the weights. Nothing synchronises.
Suffix legend: R rows (request x position), L MoE layers, T tokens, K top-k.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from moeprof.capture.engine.base import BatchLayout
from moeprof.capture.moe_structure import MoeLayer
from moeprof.capture.positions import Positions
from moeprof.capture.rungs import LayerShape
from moeprof.capture.switchable_hooks import Hook, SwitchableHooks
from moeprof.core.errors import EngineError, UnsupportedModelError

LARGE_BYTES = 64 * 2**20


class PickTable:
    """Picks of every row, on a device. Layers of smaller top-k leave the rest unused.

    A large table is kept in a smaller integer type, for one more small operation per forward.
    """

    def __init__(self, picks_LRK: npt.NDArray[np.integer[Any]], positions: Positions, device: torch.device) -> None:
        if picks_LRK.shape[1] != positions.num_rows:
            raise AssertionError(f"{picks_LRK.shape[1]} rows of picks for {positions.num_rows} positions")
        small = np.int16 if picks_LRK.max(initial=0) < 2**15 else np.int32
        dtype = np.int64 if picks_LRK.size * 8 <= LARGE_BYTES else small
        self.positions = positions
        self._picks_LRK = torch.from_numpy(np.ascontiguousarray(picks_LRK, dtype=dtype)).to(device)

    def gather(self, layout: BatchLayout, dtype: torch.dtype, *, wrap: bool = False) -> torch.Tensor:
        """Picks of the coming forward [L, T, K]; padding gets those of real tokens in turn, so loads keep their shape.

        Raises:
            EngineError: see :meth:`Positions.rows`.
        """
        rows_T = self.positions.rows(layout, wrap=wrap)
        if layout.token_mask is not None:
            real = np.array(layout.token_mask, dtype=np.bool_)
            padded = rows_T[np.arange(len(real)) % len(rows_T)]
            padded[real] = rows_T
            rows_T = padded
        index = torch.from_numpy(rows_T)
        if self._picks_LRK.is_cuda:
            index = index.pin_memory().to(self._picks_LRK.device, non_blocking=True)
        return self._picks_LRK.index_select(1, index).to(dtype)


class PickOverride(SwitchableHooks):
    """Puts a table in the place of the router's picks; a ForwardListener of the engine whose forwards it serves.

    Args:
        layers: the model's MoE layers.
        table: their picks.
        strict: a token without a row is an error; else it borrows one (warm-up, whose requests are others).
    """

    def __init__(self, layers: Sequence[MoeLayer], table: PickTable, *, strict: bool = True) -> None:
        check_overridable(layers, "routing by table")
        self.table, self.strict = table, strict
        super().__init__([(layer.experts, self._hook(i, layer)) for i, layer in enumerate(layers)])
        self._picks_LTK: torch.Tensor | None = None
        self._dtype = torch.int64

    def before_forward(self, layout: BatchLayout) -> None:
        """Gather the picks of the coming forward."""
        self._picks_LTK = self.table.gather(layout, self._dtype, wrap=not self.strict)

    def after_forward(self) -> None:
        """Forget them."""
        self._picks_LTK = None

    def _hook(self, index: int, layer: MoeLayer) -> Hook:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            if self._picks_LTK is None:
                raise EngineError(f"{layer.name}: called outside of a forward that was announced")
            picks = self._picks_LTK[index, :, : layer.top_k]
            if picks.shape != args[1].shape:
                raise EngineError(
                    f"{layer.name}: called with picks of shape {list(args[1].shape)}, {list(picks.shape)} was expected"
                )
            if picks.dtype != args[1].dtype:
                self._dtype = args[1].dtype  # the next gather gives this type at once
                picks = picks.to(self._dtype)
            return (args[0], picks, *args[2:])

        return hook


def check_overridable(layers: Sequence[MoeLayer], what: str) -> None:
    """Refuse layers whose picks cannot be replaced.

    Raises:
        UnsupportedModelError: a layer does not take its picks as arguments.
    """
    for layer in layers:
        if layer.hook != "experts_arguments":
            raise UnsupportedModelError(
                f"{layer.name}: {what} cannot be put in force: {type(layer.block).__name__} does not pass picks to its "
                "experts, so nothing can replace them"
            )


def layer_shapes(layers: Sequence[MoeLayer]) -> list[LayerShape]:
    """E and k of each layer."""
    return [
        LayerShape(num_experts=layer.num_experts, top_k=layer.top_k, num_identity=layer.num_identity)
        for layer in layers
    ]
