"""The routing tap: which experts each real token was sent to, counted on the device.

A watcher per MoE layer keeps a reference to the layer's picks, nothing else. Every few dozen forwards, between steps,
all that was kept is counted in one scatter and copied to the host asynchronously: small operations straight after a
forward run with cold caches and cost several times what they cost in a loop, so they are done rarely and in bulk.
Nothing synchronises on the way and no Python runs per token. Tokens are labelled (phase, request class) from the batch
layout before the forward; padding gets a label that is thrown away.

In a captured step (a CUDA graph) the watchers run once, while it is captured; what they saw lies at fixed addresses
that every replay overwrites. The last kernel of the captured step stacks all layers into one tensor, and after each
replay one kernel takes the real rows of it out of the way.
Suffix legend: S forwards, T tokens, L MoE layers, G groups (phase x class), E experts, K top-k.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

import torch
from torch import nn

from moeprof.capture.engines.base import BatchLayout
from moeprof.capture.models.moe_layers import MoeLayer
from moeprof.capture.routing.adapters import Cell, attach
from moeprof.capture.routing.count import Counter, Forward, Label, Roster, RoutingBlock, Seen

PICKS_CAP_BYTES = 256 * 2**20
BLOCK_FORWARDS = 32
BLOCK_TOKENS = 4096  # bounds the references kept: 48 layers, top-8 and int64 make 12 MiB of them


class Removable(Protocol):
    """A watcher."""

    def remove(self) -> None:
        """Take it off."""


class RoutingTap:
    """Counts executed picks per forward, layer, phase, request class and expert; an InGraphListener.

    Args:
        model: the model whose layers are tapped, or the device on which its picks are.
        layers: its MoE layers (:func:`moeprof.capture.models.moe_layers.find_moe_layers`).
        class_names: the distinct request classes; index = C.
        request_class: class name per schedule row; without it all requests are of the first class.
        save_picks: also keep each real token's picks.
        picks_cap_bytes: most bytes of picks kept over the life of the tap; what is over is counted.
    """

    def __init__(
        self,
        model: nn.Module | torch.device,
        layers: Sequence[MoeLayer],
        class_names: Sequence[str] = ("all",),
        *,
        request_class: Sequence[str] = (),
        save_picks: bool = False,
        picks_cap_bytes: int = PICKS_CAP_BYTES,
    ) -> None:
        self.layers = tuple(layers)
        self.class_names = tuple(class_names)
        self.on_picks: Callable[[list[torch.Tensor | None], BatchLayout], bool] | None = None
        self.was_replayed = False
        device = model if isinstance(model, torch.device) else next(model.parameters()).device
        self._counter = Counter(
            layers=self.layers,
            num_groups=2 * len(self.class_names),
            device=device,
            picks_room_bytes=picks_cap_bytes if save_picks else None,
        )
        self._cells: list[Cell] = [[None] for _ in self.layers]
        self._replayed: torch.Tensor | None = None
        self._width = 0
        self._handles: list[Removable] = []
        self._waiting: list[Forward] = []
        self._waiting_tokens = 0
        self._blocks: deque[Callable[[bool], RoutingBlock | None]] = deque()
        self._label: Label | None = None
        self._layout: BatchLayout | None = None
        self._roster = Roster()
        self.bind(request_class)
        self.enable()

    def bind(self, request_class: Sequence[str]) -> None:
        """Say which class each row of the schedule has (call again for another schedule)."""
        index = {name: i for i, name in enumerate(self.class_names)}
        self._roster = Roster([index[name] for name in request_class])
        self._label = None

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Of the layers, in order."""
        return tuple(layer.name for layer in self.layers)

    @property
    def top_k(self) -> tuple[int, ...]:
        """Experts per token, by layer."""
        return tuple(layer.top_k for layer in self.layers)

    @property
    def enabled(self) -> bool:
        """True while watchers are on the model."""
        return bool(self._handles)

    @property
    def announced(self) -> bool:
        """True from before a forward until after it; else what runs is a capture, or nobody's business."""
        return self._layout is not None

    def enable(self) -> None:
        """Put the watchers on; nothing happens when they are."""
        if not self._handles:
            self._handles = self.put_on()

    def put_on(self) -> list[Removable]:
        """A watcher on every layer."""
        dropped = self._counter.dropped_id
        return [attach(*pair, dropped) for pair in zip(self.layers, self._cells, strict=True)]

    def disable(self) -> None:
        """Take the watchers off; what was seen can still be collected."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._layout = None

    def close(self) -> None:
        """Take the watchers off and forget everything."""
        self.disable()
        self.discard()
        self._clear()

    def discard(self) -> None:
        """Forget what was not collected (after warm-up, between passes)."""
        self._blocks.clear()
        self._waiting, self._waiting_tokens = [], 0

    def before_forward(self, layout: BatchLayout) -> None:
        """Label the tokens that the coming forward holds."""
        if not self._handles:
            return
        label = self._label
        if label is None or label.layout != layout:
            label = self._label = self._counter.label(layout, self._roster.class_of, len(self.class_names))
        self._layout = layout
        self._clear()

    def after_forward(self) -> None:
        """Keep what was seen; does no device work."""
        layout, label = self._layout, self._label
        if layout is None or label is None:
            return
        self._layout = None
        self.was_replayed = self._replayed is not None
        seen: Seen = [cell[0] for cell in self._cells] if self._replayed is None else self._replayed
        self._replayed = None
        if self.on_picks is not None and not self.on_picks(self._by_layer(seen), layout):
            return
        self._waiting.append(Forward(seen=seen, label=label))
        self._waiting_tokens += label.width
        if self._waiting_tokens >= 2 * BLOCK_TOKENS or len(self._waiting) >= 2 * BLOCK_FORWARDS:
            self._launch()  # nobody collected in time: bound what is kept

    @property
    def graph_key(self) -> Hashable:
        """Watchers are part of a captured step, or not; any tap of the same layers reads what it keeps."""
        return ("routing_tap", self.enabled, len(self.layers))

    def enter_capture(self, width: int) -> None:
        """A step of ``width`` rows is about to be captured."""
        self._width = width
        self._clear()

    def leave_capture(self) -> torch.Tensor:
        """All layers' picks in one tensor [L, width, K] that every replay fills anew."""
        picks_LWK = self._counter.stacked([cell[0] for cell in self._cells], self._width)
        self._clear()
        return picks_LWK

    def after_replay(self, kept: torch.Tensor) -> None:
        """Take the real rows out of the way of the next replay: one kernel, which also makes them small."""
        if self._layout is not None and self._label is not None:
            self._replayed = kept[:, : self._label.width].to(self._counter.picks_dtype, copy=True)

    def _clear(self) -> None:
        for cell in self._cells:
            cell[0] = None

    def _by_layer(self, seen: Seen) -> list[torch.Tensor | None]:
        if isinstance(seen, list):
            return seen
        return [picks[:, : layer.top_k] for picks, layer in zip(seen, self.layers, strict=True)]

    def collect_blocks(self, *, everything: bool = False) -> list[RoutingBlock]:
        """Blocks of counts that reached the host, in the order of the forwards; call it between steps.

        Usually nothing: a block is made of some dozens of forwards, so that counting costs next to nothing per step.

        Args:
            everything: count and wait for all that was seen so far (at the end of a pass).
        """
        full = self._waiting_tokens >= BLOCK_TOKENS or len(self._waiting) >= BLOCK_FORWARDS
        if self._waiting and (everything or full):
            self._launch()
        blocks = []
        while self._blocks:
            block = self._blocks[0](everything)
            if block is None:
                break
            self._blocks.popleft()
            blocks.append(block)
        return blocks

    def _launch(self) -> None:
        for part in self._counter.parts(self._waiting):
            self._blocks.append(self._counter.count(part, self._roster))
        self._waiting, self._waiting_tokens = [], 0

    @property
    def dropped_id(self) -> int:
        """The id that stands for "no expert" in kept picks."""
        return self._counter.dropped_id
