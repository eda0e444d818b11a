"""Replace a model's routing: the same weights and tokens, other experts. Reports say so on every page.

Ladder rungs, replayed routing and policies go through one table of picks, so what it costs is the same for all of them:
before each forward the rows of its tokens are computed (one small vector) and gathered once for all layers; a wrapper
per layer puts its slice in the place of the router's picks. The model's own weights of the picks stay (their sum and
scale belong to the architecture), and the tap counts what is executed. Nothing synchronises. In a captured step (a CUDA
graph) the wrappers read a static tensor, which is filled before each replay.

Policies: ``balanced`` gives every expert the same number of tokens of each forward, up to one (round robin);
``concentrated`` sends every token to experts 0..k-1; ``profile`` draws from measured popularity, and ``zipf`` from
popularity ~ 1/rank^exponent (ranks shuffled per layer), see :mod:`moeprof.capture.routing.tables`.
Suffix legend: R rows, L MoE layers, T tokens, W rows of a captured step, K top-k, E experts.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from moeprof.capture.devices.streams import to_device
from moeprof.capture.engines.base import BatchLayout
from moeprof.capture.models.moe_layers import MoeLayer, layer_shapes
from moeprof.capture.models.shapes import LayerShape
from moeprof.capture.models.wrap import Forward, Wrap, WrapHandle, put_on
from moeprof.capture.routing.adapters import Cell
from moeprof.capture.routing.popularity import load_popularity
from moeprof.capture.routing.rows import DrawnRows, RoundRobinRows, RowsOfTokens
from moeprof.capture.routing.tables import FloatArray, balanced_table, concentrated_table, drawn_table
from moeprof.core.errors import EngineError, UnsupportedModelError
from moeprof.core.trace import IntArray
from moeprof.core.workload.models import RoutingPolicy

LARGE_BYTES = 64 * 2**20
LEAST_WIDTH = 256  # rows of a static tensor: captured steps of most batch sizes share one
_numbers = count()


class PickTable:
    """Picks of every row, on a device. Layers of smaller top-k leave the rest unused.

    A large table is kept in a smaller integer type, for one more small operation per forward.

    Args:
        picks_LRK: experts by layer and row.
        rows: which row a token takes.
        device: where the model is.
    """

    def __init__(self, picks_LRK: npt.NDArray[np.integer[Any]], rows: RowsOfTokens, device: torch.device) -> None:
        if picks_LRK.shape[1] != rows.num_rows:
            raise AssertionError(f"{picks_LRK.shape[1]} rows of picks for {rows.num_rows} positions")
        small = np.int16 if picks_LRK.max(initial=0) < 2**15 else np.int32
        dtype = np.int64 if picks_LRK.size * 8 <= LARGE_BYTES else small
        self.rows = rows
        self._picks_LRK = torch.from_numpy(np.ascontiguousarray(picks_LRK, dtype=dtype)).to(device)

    @property
    def device(self) -> torch.device:
        """Where the picks are."""
        return self._picks_LRK.device

    @property
    def shape(self) -> torch.Size:
        """[L, R, K]."""
        return self._picks_LRK.shape

    def gather(self, layout: BatchLayout, *, wrap: bool = False) -> torch.Tensor:
        """Picks of the coming forward [L, T, K]; padding gets those of real tokens in turn, so loads keep their shape.

        Raises:
            EngineError: see :meth:`Positions.rows`.
        """
        rows_T = self.rows.rows(layout, wrap=wrap)
        if layout.token_mask is not None:
            real = np.array(layout.token_mask, dtype=np.bool_)
            padded = rows_T[np.arange(len(real)) % len(rows_T)]
            padded[real] = rows_T
            rows_T = padded
        return self._look_up(rows_T).to(torch.int64)

    def fill(self, static_LWK: torch.Tensor, layout: BatchLayout, *, wrap: bool = False) -> None:
        """Put the picks of the coming forward into a static tensor; rows past it get those of its first token.

        Raises:
            EngineError: see :meth:`Positions.rows`.
        """
        rows_T = self.rows.rows(layout, wrap=wrap)
        rows_W = np.full(static_LWK.shape[1], rows_T[0])
        rows_W[: len(rows_T)] = rows_T
        static_LWK.copy_(self._look_up(rows_W))

    def _look_up(self, rows_T: IntArray) -> torch.Tensor:
        return self._picks_LRK.index_select(1, to_device(rows_T, self.device))


class PickOverride:
    """Puts a table in the place of the router's picks; an InGraphListener of the engine whose forwards it serves.

    Off at first.

    Args:
        layers: the model's MoE layers.
        table: their picks.
        strict: a token without a row is an error; else it borrows one (warm-up, whose requests are others).
    """

    def __init__(self, layers: Sequence[MoeLayer], table: PickTable, *, strict: bool = True) -> None:
        check_overridable(layers, "routing by table")
        self.table, self.strict = table, strict
        self._layers, self._number = tuple(layers), next(_numbers)
        self._cells: list[Cell] = [[None] for _ in layers]
        self._statics: list[torch.Tensor] = []  # the last one is the widest; captured steps read older ones too
        self._is_static = False
        self._has_spare_rows = [False]  # a list, so that the layers' wrappers see it change
        self._handles: list[WrapHandle] = []

    def enable(self) -> None:
        """Put it in force; nothing happens when it is."""
        if not self._handles:
            self._handles = [
                put_on(layer.experts, "override", _wrap(cell, layer, self._has_spare_rows))
                for cell, layer in zip(self._cells, self._layers, strict=True)
            ]

    def close(self) -> None:
        """The model has its own routing back."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @contextmanager
    def switched_on(self) -> Iterator[None]:
        """In force inside, off outside."""
        self.enable()
        try:
            yield
        finally:
            self.close()

    def before_forward(self, layout: BatchLayout) -> None:
        """Look up the picks of the coming forward."""
        if not self._fits_static(layout):
            self._show(self.table.gather(layout, wrap=not self.strict))
            self._is_static = self._has_spare_rows[0] = False
            return
        for static_LWK in self._statics:
            if static_LWK.shape[1] >= len(layout.requests):
                self.table.fill(static_LWK, layout, wrap=not self.strict)
        self._show_static()

    def after_forward(self) -> None:
        """Forget them."""
        if not self._is_static:
            for cell in self._cells:
                cell[0] = None

    @property
    def graph_key(self) -> Hashable:
        """Captured steps read this override's own tensor, or the router's picks while it is off."""
        return ("pick_override", self._number if self._handles else None)

    def enter_capture(self, width: int) -> None:
        """Have a static tensor of at least ``width`` rows, and let the layers read it."""
        if not self._statics or self._statics[-1].shape[1] < width:
            num_layers, _, top_k = self.table.shape
            rows = max(LEAST_WIDTH, 1 << (width - 1).bit_length())
            with torch.inference_mode(False):  # written outside of inference mode too
                ids = torch.arange(top_k, device=self.table.device)
                self._statics.append(ids.expand(num_layers, rows, top_k).contiguous())
            self._is_static = False
        self._show_static()

    def leave_capture(self) -> None:
        """Nothing is kept."""

    def after_replay(self, kept: Any) -> None:
        """Nothing to take."""

    def _fits_static(self, layout: BatchLayout) -> bool:
        """True for steps that may be a replay: one row per request, no padding of the engine's own."""
        if not self._statics or layout.token_mask is not None:
            return False
        return sum(layout.query_tokens) == len(layout.requests) <= self._statics[-1].shape[1]

    def _show_static(self) -> None:
        if not self._is_static:
            self._show(self._statics[-1])
            self._is_static = self._has_spare_rows[0] = True

    def _show(self, picks_LTK: torch.Tensor) -> None:
        for cell, layer, picks_TK in zip(self._cells, self._layers, picks_LTK.unbind(), strict=True):
            cell[0] = picks_TK if layer.top_k == picks_TK.shape[1] else picks_TK[:, : layer.top_k]


def _wrap(cell: Cell, layer: MoeLayer, has_spare_rows: list[bool]) -> Wrap:
    name = layer.name

    def wrap(inner: Forward) -> Forward:
        @functools.wraps(inner)
        def forward(*args: Any, **kwargs: Any) -> Any:
            picks, routed = cell[0], args[1]
            if picks is None:
                raise EngineError(f"{name}: called outside of a forward that was announced")
            if has_spare_rows[0]:
                picks = picks[: routed.shape[0]]
            if picks.shape != routed.shape:
                raise EngineError(
                    f"{name}: called with picks of shape {list(routed.shape)}, {list(picks.shape)} was expected"
                )
            if picks.dtype != routed.dtype:
                picks = picks.to(routed.dtype)
            return inner(args[0], picks, *args[2:], **kwargs)

        return forward

    return wrap


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


def override_routing(layers: Sequence[MoeLayer], policy: RoutingPolicy) -> PickOverride | None:
    """Put the policy in force; None for ``native`` and ``replay``, which needs a schedule.

    What is returned must be a listener of every engine that runs the model, for as long as it is on.

    Raises:
        UnsupportedModelError: a layer does not take its picks as arguments.
        WorkloadError: the popularity file is missing, damaged, or does not fit the model.
    """
    if policy.policy in ("native", "replay"):
        return None
    check_overridable(layers, f"routing policy {policy.policy}")
    shapes = layer_shapes(layers)
    rows: RowsOfTokens
    if policy.policy == "balanced":
        table_LRK = balanced_table(shapes)
        rows = RoundRobinRows(num_rows=table_LRK.shape[1])
    elif policy.policy == "concentrated":
        table_LRK = concentrated_table(shapes)
        rows = RoundRobinRows(num_rows=1)
    else:
        popularity = load_popularity(policy, shapes).counts_LE if policy.policy == "profile" else zipf(shapes, policy)
        table_LRK = drawn_table(popularity, shapes, policy.seed)
        rows = DrawnRows(num_rows=table_LRK.shape[1], seed=policy.seed, correlation=policy.correlation)
    override = PickOverride(layers, PickTable(table_LRK, rows, next(layers[0].experts.parameters()).device))
    override.enable()
    return override


def zipf(shapes: Sequence[LayerShape], policy: RoutingPolicy) -> FloatArray:
    """Popularity [L, E] ~ 1/rank^exponent, ranks shuffled per layer; at most one pick of a token for each expert."""
    random = np.random.default_rng(policy.seed)
    popularity = np.zeros((len(shapes), max(shape.num_experts for shape in shapes)))
    for row, shape in zip(popularity, shapes, strict=True):
        ranks = np.arange(1, shape.num_experts + 1, dtype=np.float64)
        row[: shape.num_experts] = random.permutation(ranks**-policy.exponent)
    return popularity
