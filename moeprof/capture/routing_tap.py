"""The routing tap: which experts each real token was sent to, counted on the device.

A hook per MoE layer keeps a reference to the layer's picks, nothing else. Every few dozen forwards, between steps, all
that was kept is counted in one scatter and copied to the host asynchronously: small operations straight after a
forward run with cold caches and cost several times what they cost in a loop, so they are done rarely and in bulk.
Nothing synchronises on the way and no Python runs per token. Tokens are labelled (phase, request class) from the batch
layout before the forward; padding gets a label that is thrown away.
Suffix legend: S forwards, T tokens, L MoE layers, G groups (phase x class), E experts, K top-k.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from moeprof.capture.engine.base import BatchLayout
from moeprof.capture.moe_structure import MoeLayer
from moeprof.capture.routing_adapters import Store, attach
from moeprof.capture.routing_counts import Counter, Forward, Label, RoutingBlock, RoutingStep

PICKS_CAP_BYTES = 256 * 2**20
BLOCK_FORWARDS = 32
BLOCK_TOKENS = 4096  # bounds the references kept: 48 layers, top-8 and int64 make 12 MiB of them


class RoutingTap:
    """Counts executed picks per forward, layer, phase, request class and expert; a ForwardListener.

    Args:
        model: the model whose layers are tapped.
        layers: its MoE layers (:func:`moeprof.capture.moe_structure.find_moe_layers`).
        class_names: the distinct request classes; index = C.
        request_class: class name per schedule row; without it all requests are of the first class.
        save_picks: also keep each real token's picks.
        picks_cap_bytes: most bytes of picks kept over the life of the tap; what is over is counted.
        in_graph_tokens: copy picks into a static buffer of this many tokens instead of keeping references, for models
            that are compiled or captured in CUDA graphs (more work per layer).
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[MoeLayer],
        class_names: Sequence[str] = ("all",),
        *,
        request_class: Sequence[str] = (),
        save_picks: bool = False,
        picks_cap_bytes: int = PICKS_CAP_BYTES,
        in_graph_tokens: int | None = None,
    ) -> None:
        self.layers = tuple(layers)
        self.class_names = tuple(class_names)
        self.on_picks: Callable[[list[torch.Tensor | None], BatchLayout], bool] | None = None
        self.num_forwards = 0
        device = next(model.parameters()).device
        self._counter = Counter(
            layers=self.layers,
            num_groups=2 * len(self.class_names),
            device=device,
            picks_room_bytes=picks_cap_bytes if save_picks else None,
        )
        self._slots: list[torch.Tensor | None] = [None] * len(self.layers)
        self._buffer: torch.Tensor | None = None
        if in_graph_tokens is not None:
            shape = (len(self.layers), in_graph_tokens, self._counter.top_k)
            self._buffer = torch.full(shape, self._counter.absent_id, dtype=torch.int64, device=device)
        self._handles: list[RemovableHandle] = []
        self._waiting: list[Forward] = []
        self._waiting_tokens = 0
        self._steps: deque[RoutingStep] = deque()
        self._blocks: deque[Callable[[bool], RoutingBlock | None]] = deque()
        self._label: Label | None = None
        self._layout: BatchLayout | None = None
        self._class_of: list[int] = []
        self.bind(request_class)
        self.enable()

    def bind(self, request_class: Sequence[str]) -> None:
        """Say which class each row of the schedule has (call again for another schedule)."""
        index = {name: i for i, name in enumerate(self.class_names)}
        self._class_of = [index[name] for name in request_class]
        self._label = None

    @property
    def enabled(self) -> bool:
        """True while hooks are on the model."""
        return bool(self._handles)

    def enable(self) -> None:
        """Put the hooks on; nothing happens when they are."""
        if not self._handles:
            store, dropped = self._store(), self._counter.dropped_id
            self._handles = [attach(layer, i, store, dropped) for i, layer in enumerate(self.layers)]

    def disable(self) -> None:
        """Take the hooks off; what was seen can still be collected."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._layout = None

    def close(self) -> None:
        """Take the hooks off and forget everything."""
        self.disable()
        self.discard()
        self._slots[:] = [None] * len(self.layers)

    def discard(self) -> None:
        """Forget what was not collected (after warm-up, between passes)."""
        self._blocks.clear()
        self._steps.clear()
        self._waiting, self._waiting_tokens = [], 0

    def before_forward(self, layout: BatchLayout) -> None:
        """Label the tokens that the coming forward holds."""
        if not self._handles:
            return
        label = self._label
        if label is None or not label.fits(layout):
            label = self._label = self._counter.label(layout, self._class_of, len(self.class_names))
        self._layout = layout
        if self._buffer is not None:
            self._buffer[:, : label.width] = self._counter.absent_id

    def after_forward(self) -> None:
        """Keep what the hooks saw; does no device work (one clone where graphs need a static buffer)."""
        layout, label = self._layout, self._label
        if layout is None or label is None:
            return
        self._layout = None
        seen: list[torch.Tensor | None] = (
            self._slots[:] if self._buffer is None else list(self._buffer[:, : label.width].clone())
        )
        self._slots[:] = [None] * len(seen)
        self.num_forwards += 1
        if self.on_picks is not None and not self.on_picks(seen, layout):
            return
        self._waiting.append(Forward(seen=seen, label=label))
        self._waiting_tokens += label.width
        if self._waiting_tokens >= 2 * BLOCK_TOKENS or len(self._waiting) >= 2 * BLOCK_FORWARDS:
            self._launch()  # nobody collected in time: bound what is kept

    def collect(self) -> RoutingStep | None:
        """The oldest forward that was not collected yet, or None.

        Counts and waits at once, so it costs more per step than :meth:`collect_blocks`; use one or the other.
        """
        if not self._steps:
            for block in self.collect_blocks(everything=True):
                self._steps.extend(block.steps())
        return self._steps.popleft() if self._steps else None

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
            self._blocks.append(self._counter.count(part))
        self._waiting, self._waiting_tokens = [], 0

    def _store(self) -> Store:
        buffer = self._buffer
        if buffer is None:
            # The C method itself: the cheapest thing a hook can call.
            return self._slots.__setitem__

        def copy(index: int, picks: torch.Tensor) -> None:
            if picks.shape[0] <= buffer.shape[1]:
                buffer[index, : picks.shape[0], : picks.shape[1]].copy_(picks)

        return copy

    @property
    def dropped_id(self) -> int:
        """The id that stands for "no expert" in kept picks."""
        return self._counter.dropped_id


__all__ = ["RoutingBlock", "RoutingStep", "RoutingTap"]
