"""From kept references to counts: one scatter for many forwards, and what the tap hands out of them on the host.

Every forward, layer and group owns a row of ``E + identity + 2`` cells; an assignment adds one to a cell. The two last
cells take picks that stand for no expert ("dropped") and places where no pick was seen ("absent"); padding has a group
of its own. So every assignment lands somewhere and the sums can be checked.
Suffix legend: S forwards, T tokens, L MoE layers, G groups (phase x class), E experts, K top-k.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from moeprof.capture.devices.streams import to_device, to_host
from moeprof.capture.engines.base import BatchLayout
from moeprof.capture.models.moe_layers import MoeLayer
from moeprof.core.record.routing import MAX_REQUEST_GROUPS, RequestCounts

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loads:
    """How S forwards loaded the experts (P phases).

    Attributes:
        distinct_SL: experts touched.
        max_load_SL: tokens of the busiest expert.
        counts_SPLE: tokens by phase, modulo 2^16.
    """

    distinct_SL: npt.NDArray[np.integer[Any]]
    max_load_SL: npt.NDArray[np.integer[Any]]
    counts_SPLE: npt.NDArray[np.uint16]

    @staticmethod
    def of(counts_SLGE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The three tensors, worked out where the counts are; the last one as int16."""
        size, layers, _, experts = counts_SLGE.shape
        by_phase_SLPE = counts_SLGE.reshape(size, layers, 2, -1, experts).sum(3, dtype=torch.int32)
        load_SLE = by_phase_SLPE.sum(2, dtype=torch.int32)
        counts_SPLE = by_phase_SLPE.to(torch.int16).transpose(1, 2).contiguous()
        return (load_SLE > 0).sum(-1, dtype=torch.int32), load_SLE.amax(-1), counts_SPLE

    @staticmethod
    def on_host(distinct_SL: torch.Tensor, max_load_SL: torch.Tensor, counts_SPLE: torch.Tensor) -> Loads:
        """From host tensors that are complete."""
        return Loads(
            distinct_SL=distinct_SL.numpy(), max_load_SL=max_load_SL.numpy(), counts_SPLE=counts_SPLE.numpy().view("u2")
        )


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
        loads: what the device worked out of the counts, or None.
        requests: assignments by group of requests; None for a block that is cut short.
    """

    counts_SLGE: Int32Array
    tokens_SG: npt.NDArray[np.int64]
    dropped_SLG: Int32Array
    identity_SLG: Int32Array
    picks_TLK: npt.NDArray[np.integer[Any]] | None = None
    picks_tokens_S: tuple[int, ...] = ()
    picks_left_out_tokens: int = 0
    loads: Loads | None = None
    requests: RequestCounts | None = None

    def first(self, num: int) -> RoutingBlock:
        """The first ``num`` forwards of it, for a pass that broke off behind them."""
        tokens_S = self.picks_tokens_S[:num]
        left_out = sum(int(n.sum()) for n, kept in zip(self.tokens_SG, tokens_S, strict=False) if not kept)
        return replace(
            self,
            counts_SLGE=self.counts_SLGE[:num],
            tokens_SG=self.tokens_SG[:num],
            dropped_SLG=self.dropped_SLG[:num],
            identity_SLG=self.identity_SLG[:num],
            picks_TLK=None if self.picks_TLK is None else self.picks_TLK[: sum(tokens_S)],
            picks_tokens_S=tokens_S,
            picks_left_out_tokens=left_out,
            loads=None,
            requests=None,
        )

    def all_loads(self) -> Loads:
        """Loads of the experts; worked out here where the device did not."""
        if self.loads is not None:
            return self.loads
        return Loads.on_host(*Loads.of(torch.from_numpy(np.ascontiguousarray(self.counts_SLGE))))


class Roster:
    """Which class each row of the schedule has, and the how-manieth of its class it is (N rows)."""

    def __init__(self, class_of: Sequence[int] = ()) -> None:
        self.class_of = list(class_of)
        self._class_N = np.array(self.class_of, dtype=np.int64)
        self._rank_N = np.zeros_like(self._class_N)
        for number in np.unique(self._class_N):
            rows = self._class_N == number
            self._rank_N[rows] = np.arange(rows.sum())

    def find(self, request_Q: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Class and rank; requests outside the schedule are of the first class, and their own number is their rank."""
        class_Q, rank_Q = np.zeros_like(request_Q), request_Q.copy()
        known = (request_Q >= 0) & (request_Q < len(self.class_of))
        class_Q[known], rank_Q[known] = self._class_N[request_Q[known]], self._rank_N[request_Q[known]]
        return class_Q, rank_Q


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestCells:
    """Where each token of a block is counted for its request (V cells, one per group of requests and phase).

    Attributes:
        cell_T: cell of each token; padding has cell V.
        keys_3V: class, number of the group within its class, and phase of each cell.
        first_V: the smallest schedule row that is counted there.
        size: requests per group: 1, or what keeps a block at 64 groups.
    """

    cell_T: Int64Array
    keys_3V: Int64Array
    first_V: Int64Array
    size: int

    @staticmethod
    def of(labels: Sequence[Label], roster: Roster) -> RequestCells:
        """Group the sequences of a block, then spread them over its tokens."""
        request_Q = np.concatenate([label.request_Q for label in labels])
        phase_Q = np.concatenate([label.phase_Q for label in labels])
        (class_Q, rank_Q), size = roster.find(request_Q), 1
        most = int(rank_Q.max(initial=0)) + 1
        while True:  # one number for class, group and phase: numpy sorts rows of three far slower
            keys_V, cell_Q = np.unique((class_Q * most + rank_Q // size) * 2 + phase_Q, return_inverse=True)
            if len(keys_V) <= 2 * MAX_REQUEST_GROUPS:
                break
            size *= 2
        keys_3V = np.stack([keys_V // 2 // most, keys_V // 2 % most, keys_V % 2])
        first_V = np.full(len(keys_V), np.iinfo(np.int64).max)
        np.minimum.at(first_V, cell_Q, request_Q)
        cell_T = cell_Q.repeat(np.concatenate([label.tokens_Q for label in labels]))
        if any(label.real_T is not None for label in labels):
            real = [np.ones(label.width, np.bool_) if label.real_T is None else label.real_T for label in labels]
            padded = np.full(sum(label.width for label in labels), keys_3V.shape[1], dtype=np.int64)
            padded[np.concatenate(real)] = cell_T
            cell_T = padded
        return RequestCells(cell_T=cell_T, keys_3V=keys_3V, first_V=first_V, size=size)

    def counts(self, routed_VLE: Int32Array) -> RequestCounts:
        """Counts of the cells, phases side by side."""
        groups, row_V = np.unique(self.keys_3V[:2], axis=1, return_inverse=True)
        row_V = row_V.reshape(-1)
        counts_UPLE = np.zeros((groups.shape[1], 2, *routed_VLE.shape[1:]), dtype=np.int32)
        counts_UPLE[row_V, self.keys_3V[2]] = routed_VLE
        first_U = np.full(groups.shape[1], np.iinfo(np.int64).max)
        np.minimum.at(first_U, row_V, self.first_V)
        return RequestCounts(
            request_counts_UPLE=counts_UPLE,
            request_class_U=groups[0],
            request_group_U=groups[1],
            request_first_U=first_U,
            requests_per_group=self.size,
        )


MAX_COUNT_BYTES = 8 * 2**20
Seen = list[torch.Tensor | None] | torch.Tensor
_shape_of = attrgetter("shape")


@dataclass(slots=True)
class Label:
    """Labels of one batch layout (Q sequences), shared by all forwards that repeat it (decode steps)."""

    layout: BatchLayout
    width: int
    cells_T: npt.NDArray[np.int64]
    tokens_G: npt.NDArray[np.int64]
    real_T: npt.NDArray[np.bool_] | None
    request_Q: Int64Array
    phase_Q: Int64Array
    tokens_Q: Int64Array

    @property
    def num_real(self) -> int:
        """Tokens that are no padding."""
        return int(self.tokens_G.sum())


@dataclass(slots=True, kw_only=True)
class Forward:
    """The picks seen in one forward: per MoE layer (None where nothing was seen), or all in one tensor [L, T, K]."""

    seen: Seen
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
    _layer_cells_L11: torch.Tensor = field(init=False)
    _layer_rows_L11: torch.Tensor = field(init=False)
    _one: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.num_experts = max((layer.num_experts for layer in self.layers), default=0)
        self.top_k = max((layer.top_k for layer in self.layers), default=0)
        self.row = max((layer.num_experts + layer.num_identity for layer in self.layers), default=0) + 2
        starts = torch.arange(len(self.layers)) * ((self.num_groups + 1) * self.row)
        self._layer_cells_L11 = starts.view(-1, 1, 1).to(self.device)
        self._layer_rows_L11 = (torch.arange(len(self.layers)) * self.row).view(-1, 1, 1).to(self.device)
        self._one = torch.ones(1, dtype=torch.int32, device=self.device)

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

    @property
    def picks_dtype(self) -> torch.dtype:
        """The smallest integer type that holds every id of a row."""
        return torch.uint8 if self.row <= 2**8 else torch.int16 if self.row <= 2**15 else torch.int32

    def label(self, layout: BatchLayout, class_of: Sequence[int], num_classes: int) -> Label:
        """Where each token of a layout starts counting in a layer; requests without a class are of the first."""
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
        tokens_G = np.bincount(groups, weights=tokens, minlength=self.num_groups).astype(np.int64)
        request_Q = np.array(layout.requests, dtype=np.int64)
        phase_Q = (groups >= num_classes).astype(np.int64)
        return Label(layout, len(group_T), group_T * self.row, tokens_G, real_T, request_Q, phase_Q, tokens)

    def stacked(self, seen: Seen, width: int) -> torch.Tensor:
        """Picks [L, T, K] of the first ``width`` tokens; what was not seen, or is narrower, is ``absent``.

        One kernel where all layers look alike, which they do in nearly every model.
        """
        if isinstance(seen, torch.Tensor):
            return seen
        try:
            shapes = list(map(_shape_of, seen))
        except AttributeError:  # None: a layer was not called
            return self._completed(seen, width)
        if shapes.count(shapes[0]) < len(shapes) or shapes[0][-1] != self.top_k:
            return self._completed(seen, width)
        picks_LTK = torch.stack([picks for picks in seen if picks is not None])
        picks_LTK = picks_LTK if picks_LTK.dim() == 3 else picks_LTK.view(len(seen), -1, self.top_k)
        # Batches padded after the last real token run more tokens than the layout has.
        rows = picks_LTK.shape[1]
        return picks_LTK if rows == width else picks_LTK[:, :width] if rows > width else self._completed(seen, width)

    def _completed(self, seen: Sequence[torch.Tensor | None], width: int) -> torch.Tensor:
        shape = (len(self.layers), width, self.top_k)
        picks_LTK = torch.full(shape, self.absent_id, dtype=torch.int64, device=self.device)
        for full, picks in zip(picks_LTK, seen, strict=True):
            if picks is not None:
                flat = picks.reshape(-1, picks.shape[-1])[:width, : self.top_k]
                full[: flat.shape[0], : flat.shape[1]] = flat
        return picks_LTK

    def parts(self, forwards: Sequence[Forward]) -> Iterator[list[Forward]]:
        """Cut forwards into blocks whose counts stay small."""
        size = max(1, MAX_COUNT_BYTES // (4 * max(1, self.cells_per_forward)))
        for start in range(0, len(forwards), size):
            yield list(forwards[start : start + size])

    def count(self, forwards: list[Forward], roster: Roster) -> Callable[[bool], RoutingBlock | None]:
        """Launch the counting of a block: some fifteen kernels, and one copy to the host per result.

        Args:
            forwards: of the block.
            roster: whose requests they hold.

        Returns:
            A function that gives the block, or None while its copy is under way; True makes it wait.
        """
        labels = [forward.label for forward in forwards]
        picks_LTK = torch.cat([self.stacked(forward.seen, forward.label.width) for forward in forwards], dim=1)
        cells_T = np.concatenate([label.cells_T + s * self.cells_per_forward for s, label in enumerate(labels)])
        index = self._layer_cells_L11 + to_device(cells_T, self.device)[:, None] + picks_LTK
        counts = torch.zeros(len(labels) * self.cells_per_forward, dtype=torch.int32, device=self.device)
        counts.scatter_add_(0, index.view(-1), self._one.expand(index.numel()))
        loads = self._loads(counts, len(labels))
        counts = to_host(counts)
        requests = RequestCells.of(labels, roster)
        by_request = to_host(self._count_requests(requests, picks_LTK))
        kept = self._choose_picks(labels)
        small_TLK = None
        if any(kept):
            small_TLK = to_host(picks_LTK.to(self.picks_dtype).transpose(0, 1).contiguous())
        ready: Any = torch.cuda.current_stream(self.device).record_event() if self.device.type == "cuda" else None

        def block(wait: bool) -> RoutingBlock | None:
            if ready is not None:
                if not wait and not ready.query():
                    return None
                ready.synchronize()
            picks = None if small_TLK is None else _real_picks(small_TLK.numpy(), labels, kept)
            found = self._block(counts.numpy(), labels, picks, kept)
            return replace(
                found,
                loads=None if loads is None else Loads.on_host(*loads),
                requests=requests.counts(self._routed(by_request.numpy())),
            )

        return block

    def _count_requests(self, requests: RequestCells, picks_LTK: torch.Tensor) -> torch.Tensor:
        """Assignments by cell, shape [V, L, row], where the picks are; padding has the cell behind the last one."""
        layers, cells = len(self.layers), requests.keys_3V.shape[1]
        start_T = to_device(requests.cell_T * (layers * self.row), self.device)
        index = self._layer_rows_L11 + start_T[:, None] + picks_LTK
        counts = torch.zeros((cells + 1) * layers * self.row, dtype=torch.int32, device=self.device)
        counts.scatter_add_(0, index.view(-1), self._one.expand(index.numel()))
        return counts.view(cells + 1, layers, self.row)[:-1]

    def _routed(self, cells_xLR: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The routed experts of cells [..., L, row]: ids of identity experts, dropped and absent left out."""
        routed = cells_xLR[..., : self.num_experts]
        if any(layer.num_identity for layer in self.layers):
            routed = routed.copy()
            for i, layer in enumerate(self.layers):
                routed[..., i, layer.num_experts :] = 0
        return routed

    def _loads(self, counts: torch.Tensor, num: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """Loads, on their way to the host; the host works them out where ids are shared with identity experts."""
        if self.num_groups % 2 or any(layer.num_identity for layer in self.layers):
            return None
        cells = counts.view(num, len(self.layers), self.num_groups + 1, self.row)
        distinct, largest, by_phase = Loads.of(cells[:, :, :-1, : self.num_experts])
        return to_host(distinct), to_host(largest), to_host(by_phase)

    def _choose_picks(self, labels: Sequence[Label]) -> tuple[bool, ...]:
        """Which forwards' picks fit under the cap; empty when none are asked for."""
        if self.picks_room_bytes is None:
            return ()
        kept = []
        for label in labels:
            num_bytes = label.num_real * len(self.layers) * self.top_k * self.picks_dtype.itemsize
            kept.append(num_bytes <= self.picks_room_bytes)
            if kept[-1]:
                self.picks_room_bytes -= num_bytes
        return tuple(kept)

    def _block(
        self, counts: npt.NDArray[Any], labels: list[Label], picks: npt.NDArray[Any] | None, kept: tuple[bool, ...]
    ) -> RoutingBlock:
        cells = counts.reshape(len(labels), len(self.layers), self.num_groups + 1, self.row)[:, :, :-1]
        routed, identity = cells[..., : self.num_experts], np.zeros(cells.shape[:-1], dtype=np.int32)
        if any(layer.num_identity for layer in self.layers):
            routed = routed.copy()
            for i, layer in enumerate(self.layers):
                ids = slice(layer.num_experts, layer.num_experts + layer.num_identity)
                identity[:, i] = cells[:, i, :, ids].sum(axis=-1)
                routed[:, i, :, layer.num_experts :] = 0
        tokens_SG = np.stack([label.tokens_G for label in labels])
        tokens_S = [label.num_real for label in labels] if kept else []
        return RoutingBlock(
            counts_SLGE=routed,
            tokens_SG=tokens_SG,
            dropped_SLG=cells[..., self.dropped_id],
            identity_SLG=identity,
            picks_TLK=picks,
            picks_tokens_S=tuple(n if keep else 0 for n, keep in zip(tokens_S, kept, strict=True)),
            picks_left_out_tokens=sum(n for n, keep in zip(tokens_S, kept, strict=True) if not keep),
        )


def _real_picks(picks_TLK: npt.NDArray[Any], labels: list[Label], kept: tuple[bool, ...]) -> npt.NDArray[Any]:
    """Picks of the real tokens of the forwards that are kept, in order; nothing is copied when that is all of them."""
    if all(kept) and all(label.real_T is None for label in labels):
        return picks_TLK
    real = [
        np.full(label.width, keep) if label.real_T is None else label.real_T & keep
        for label, keep in zip(labels, kept, strict=True)
    ]
    chosen: npt.NDArray[Any] = picks_TLK[np.concatenate(real)]
    return chosen
