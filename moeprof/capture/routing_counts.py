"""From kept references to counts: one scatter for many forwards.

Every forward, layer and group owns a row of ``E + identity + 2`` cells; an assignment adds one to a cell. The two last
cells take picks that stand for no expert ("dropped") and places where no pick was seen ("absent"); padding has a group
of its own. So every assignment lands somewhere and the sums can be checked.
Suffix legend: S forwards, T tokens, L MoE layers, G groups (phase x class), E experts, K top-k.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from moeprof.capture.engine.base import BatchLayout
from moeprof.capture.moe_structure import MoeLayer

MAX_COUNT_BYTES = 8 * 2**20
Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingStep:
    """One forward of a :class:`RoutingBlock`; same meaning without S."""

    counts_LGE: Int32Array
    tokens_G: npt.NDArray[np.int64]
    dropped_LG: Int32Array
    identity_LG: Int32Array
    picks_TLK: npt.NDArray[np.integer[Any]] | None = None
    picks_left_out_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingBlock:
    """What was routed in S consecutive forwards. Group = phase * C + class, phases in the order prefill, decode.

    Attributes:
        counts_SLGE: executed (token, expert) assignments of real tokens.
        tokens_SG: real tokens.
        dropped_SLG: picks that stand for no expert (weight 0).
        identity_SLG: picks of zero-computation experts.
        picks_TLK: every pick of every real token of the block, in the order of the forwards; None unless asked for.
            Ids at or above a layer's E: identity experts, then the two highest "dropped" and "absent".
        picks_tokens_S: tokens of each forward in ``picks_TLK`` (0 where left out); empty when picks are not kept.
        picks_left_out_tokens: real tokens whose picks were left out because the cap was reached.
    """

    counts_SLGE: Int32Array
    tokens_SG: npt.NDArray[np.int64]
    dropped_SLG: Int32Array
    identity_SLG: Int32Array
    picks_TLK: npt.NDArray[np.integer[Any]] | None = None
    picks_tokens_S: tuple[int, ...] = ()
    picks_left_out_tokens: int = 0

    def steps(self) -> Iterator[RoutingStep]:
        """The forwards of the block, one by one."""
        start = 0
        for s in range(len(self.tokens_SG)):
            tokens = int(self.tokens_SG[s].sum())
            kept = bool(self.picks_tokens_S) and self.picks_tokens_S[s] > 0
            picks = self.picks_TLK[start : start + tokens] if kept and self.picks_TLK is not None else None
            start += tokens if kept else 0
            yield RoutingStep(
                counts_LGE=self.counts_SLGE[s],
                tokens_G=self.tokens_SG[s],
                dropped_LG=self.dropped_SLG[s],
                identity_LG=self.identity_SLG[s],
                picks_TLK=picks,
                picks_left_out_tokens=tokens if self.picks_tokens_S and not kept else 0,
            )


@dataclass(slots=True)
class Label:
    """Labels of one batch layout, shared by all forwards that repeat it (decode steps)."""

    layout: BatchLayout
    width: int
    cells_LT: npt.NDArray[np.int64]
    tokens_G: npt.NDArray[np.int64]
    real_T: npt.NDArray[np.bool_] | None

    def fits(self, layout: BatchLayout) -> bool:
        """True when the layout is the one this label was made for."""
        return self.layout == layout


@dataclass(slots=True, kw_only=True)
class Forward:
    """The picks seen in one forward, per MoE layer; None where no hook fired."""

    seen: list[torch.Tensor | None]
    label: Label


@dataclass(slots=True, kw_only=True)
class Counter:
    """Counts forwards of one model.

    Attributes:
        layers: its MoE layers.
        num_groups: G.
        device: where picks live.
        picks_room_bytes: bytes of picks that may still be kept; None keeps none.
    """

    layers: tuple[MoeLayer, ...]
    num_groups: int
    device: torch.device
    picks_room_bytes: int | None = None
    num_experts: int = field(init=False)
    top_k: int = field(init=False)
    row: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_experts = max((layer.num_experts for layer in self.layers), default=0)
        self.top_k = max((layer.top_k for layer in self.layers), default=0)
        self.row = max((layer.num_experts + layer.num_identity for layer in self.layers), default=0) + 2

    @property
    def dropped_id(self) -> int:
        """The id of picks that stand for no expert."""
        return self.row - 2

    @property
    def absent_id(self) -> int:
        """The id of places where no pick was seen."""
        return self.row - 1

    @property
    def cells_per_forward(self) -> int:
        """Cells that one forward owns: layers x (groups and padding) x row."""
        return len(self.layers) * (self.num_groups + 1) * self.row

    def label(self, layout: BatchLayout, class_of: Sequence[int], num_classes: int) -> Label:
        """Where each (layer, token) of a layout starts counting; requests without a class are of the first."""
        groups = np.array(
            [
                (0 if prefill else num_classes) + (class_of[request] if 0 <= request < len(class_of) else 0)
                for request, prefill in zip(layout.requests, layout.is_prefill, strict=True)
            ],
            dtype=np.int64,
        )
        tokens = np.array(layout.query_tokens, dtype=np.int64)
        group_T, real_T = np.repeat(groups, tokens), None
        if layout.token_mask is not None:
            real_T = np.array(layout.token_mask, dtype=np.bool_)
            padded = np.full(len(real_T), self.num_groups, dtype=np.int64)
            padded[real_T] = group_T
            group_T = padded
        layer_L1 = np.arange(len(self.layers), dtype=np.int64)[:, None] * ((self.num_groups + 1) * self.row)
        tokens_G = np.bincount(groups, weights=tokens, minlength=self.num_groups).astype(np.int64)
        return Label(layout, len(group_T), layer_L1 + group_T * self.row, tokens_G, real_T)

    @property
    def picks_dtype(self) -> torch.dtype:
        """The smallest integer type that holds every id of a row."""
        return torch.uint8 if self.row <= 2**8 else torch.int16 if self.row <= 2**15 else torch.int32

    def parts(self, forwards: Sequence[Forward]) -> Iterator[list[Forward]]:
        """Cut forwards into blocks whose counts stay small."""
        size = max(1, MAX_COUNT_BYTES // (4 * max(1, self.cells_per_forward)))
        for start in range(0, len(forwards), size):
            yield list(forwards[start : start + size])

    def count(self, forwards: list[Forward]) -> Callable[[bool], RoutingBlock | None]:
        """Launch the counting of a block.

        Returns:
            A function that gives the block, or None while its copy is under way; True makes it wait.
        """
        picks = torch.cat([tensor for forward in forwards for tensor in self._complete(forward)])
        cells = np.concatenate(
            [(forward.label.cells_LT + s * self.cells_per_forward).ravel() for s, forward in enumerate(forwards)]
        )
        index = picks + self._to_device(torch.from_numpy(cells)[:, None])
        counts = torch.zeros(len(forwards) * self.cells_per_forward, dtype=torch.int32, device=self.device)
        one = torch.ones(1, dtype=torch.int32, device=self.device)
        counts.scatter_add_(0, index.view(-1), one.expand(index.numel()))
        kept, left_out = self._choose_picks(forwards)
        small = picks.to(self.picks_dtype) if kept else None
        ready: Any = None
        if self.device.type == "cuda":
            counts, small = _to_host(counts), None if small is None else _to_host(small)
            ready = torch.cuda.current_stream(self.device).record_event()
        labels = [forward.label for forward in forwards]

        def block(wait: bool) -> RoutingBlock | None:
            if ready is not None:
                if not wait and not ready.query():
                    return None
                ready.synchronize()
            found = _real_picks(small, labels, len(self.layers), kept) if small is not None else None
            return self._block(counts.numpy(), labels, found, kept, left_out)

        return block

    def _complete(self, forward: Forward) -> list[torch.Tensor]:
        """Picks [T, K] per layer; where a layer was not seen, or is narrower, the rest is ``absent``."""
        shape, complete = (forward.label.width, self.top_k), []
        for picks in forward.seen:
            if picks is None:
                complete.append(torch.full(shape, self.absent_id, dtype=torch.int64, device=self.device))
                continue
            flat = picks if picks.dim() == 2 else picks.reshape(-1, picks.shape[-1])
            # Batches padded after the last real token (captured graphs) run more tokens than the layout has.
            flat = flat if flat.shape[0] <= shape[0] else flat[: shape[0]]
            if flat.shape != shape:
                full = torch.full(shape, self.absent_id, dtype=torch.int64, device=self.device)
                full[: flat.shape[0], : flat.shape[1]] = flat
                flat = full
            complete.append(flat)
        return complete

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.device.type != "cuda":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def _choose_picks(self, forwards: list[Forward]) -> tuple[tuple[bool, ...], int]:
        """Which forwards' picks fit under the cap, and the tokens of those that do not."""
        if self.picks_room_bytes is None:
            return (), 0
        kept, left_out = [], 0
        for forward in forwards:
            num_tokens = int(forward.label.tokens_G.sum())
            num_bytes = num_tokens * len(self.layers) * self.top_k * self.picks_dtype.itemsize
            kept.append(num_bytes <= self.picks_room_bytes)
            if kept[-1]:
                self.picks_room_bytes -= num_bytes
            else:
                left_out += num_tokens
        return tuple(kept), left_out

    def _block(
        self,
        counts: npt.NDArray[Any],
        labels: list[Label],
        picks: npt.NDArray[Any] | None,
        kept: tuple[bool, ...],
        left_out: int,
    ) -> RoutingBlock:
        cells = counts.reshape(len(labels), len(self.layers), self.num_groups + 1, self.row)[:, :, :-1]
        routed, identity = cells[..., : self.num_experts], np.zeros(cells.shape[:-1], dtype=np.int32)
        if any(layer.num_identity for layer in self.layers):
            routed = routed.copy()
            for i, layer in enumerate(self.layers):
                ids = slice(layer.num_experts, layer.num_experts + layer.num_identity)
                identity[:, i] = cells[:, i, :, ids].sum(axis=-1)
                routed[:, i, :, layer.num_experts :] = 0
        return RoutingBlock(
            counts_SLGE=routed,
            tokens_SG=np.stack([label.tokens_G for label in labels]),
            dropped_SLG=cells[..., self.dropped_id],
            identity_SLG=identity,
            picks_TLK=picks,
            picks_tokens_S=tuple(
                int(label.tokens_G.sum()) if keep else 0 for label, keep in zip(labels, kept, strict=False)
            ),
            picks_left_out_tokens=left_out,
        )


def _real_picks(
    picks: torch.Tensor, labels: list[Label], num_layers: int, kept: tuple[bool, ...]
) -> npt.NDArray[Any] | None:
    """Picks of real tokens [T, L, K] from the flat [sum over forwards of L * T, K]."""
    flat, start, parts = picks.numpy(), 0, []
    for label, keep in zip(labels, kept, strict=True):
        size = num_layers * label.width
        if keep:
            picks_TLK = flat[start : start + size].reshape(num_layers, label.width, -1).transpose(1, 0, 2)
            parts.append(picks_TLK if label.real_T is None else picks_TLK[label.real_T])
        start += size
    return np.concatenate(parts) if parts else None


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    """An asynchronous copy into pinned memory; valid once the stream has passed this point."""
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
