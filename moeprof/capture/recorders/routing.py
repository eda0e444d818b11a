"""Listens for where tokens went: ``routing.npz``.

The tap counts some dozens of forwards at a time, so that watching costs next to nothing per step; each such block
[steps, layers, phase x class, experts] is cut into windows. Closed windows go to disk about once a second, so a kill
loses the last seconds; the end of the pass joins the parts. Beside the windows, the whole pass by group of requests.
Legend: P phases, C classes, G = P x C, L layers, E experts, S steps.

Every pick of every token (``--save-detailed``): ``picks/part-<n>.npz``, in the order tokens were computed.

Each part holds picks_TLK (smallest integer type), request_T, position_T (token position in its sequence) and step_T.
Parts are compressed when the pass is over: that takes longer than a step. The tap bounds the bytes; tokens that were
left out are counted in ``picks/left_out.json``.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moeprof.capture.engines.base import Step
from moeprof.capture.engines.deployment import RoutingSource
from moeprof.capture.recorders.stream import FLUSH_EVERY_S
from moeprof.capture.replay import Recorder
from moeprof.capture.routing.count import Loads, RoutingBlock
from moeprof.core.files import read_arrays, write_arrays, write_json
from moeprof.core.record.layout import PHASES
from moeprof.core.record.owner import Witness
from moeprof.core.record.routing import RequestCounts, Routing, join_routing_parts, merge_requests, merge_routing
from moeprof.core.trace import Schedule

PART_BYTES = 8 * 2**20


class PicksWriter:
    """Buffers picks and writes them in parts of about eight megabytes (Q: sequences of the steps of a block)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "picks"
        self._folder.mkdir()
        self._buffer: list[tuple[npt.NDArray[Any], ...]] = []
        self._bytes = self._part = self._left_out = 0

    def append(self, first_step: int, steps: list[Step], block: RoutingBlock) -> None:
        """Add a block's picks, with whose tokens they are."""
        self._left_out += block.picks_left_out_tokens
        if block.picks_TLK is None:
            return
        kept = [(first_step + i, step) for i, step in enumerate(steps) if block.picks_tokens_S[i]]
        sequences = [sequence for _, step in kept for sequence in step.sequences]
        # A few long vectors: one small array per sequence would cost more than the step that it is about.
        query_Q = np.array([sequence.query_tokens for sequence in sequences], dtype=np.int32)
        shift_Q = np.array([sequence.past_tokens for sequence in sequences], dtype=np.int32) - (
            query_Q.cumsum(dtype=np.int32) - query_Q
        )
        request_T = np.array([sequence.request for sequence in sequences], dtype=np.int32).repeat(query_Q)
        position_T = np.arange(len(request_T), dtype=np.int32) + shift_Q.repeat(query_Q)
        step_T = np.repeat(
            np.array([number for number, _ in kept], dtype=np.int32),
            [step.prefill_tokens + step.decode_tokens for _, step in kept],
        )
        self._buffer.append((block.picks_TLK, request_T, position_T, step_T))
        self._bytes += block.picks_TLK.nbytes
        if self._bytes >= PART_BYTES:
            self._flush()

    def close(self) -> None:
        """Write the rest, compress the parts, and say what was left out."""
        self._flush()
        for part in range(self._part):
            path = self._folder / f"part-{part}.npz"
            write_arrays(path, read_arrays(path))
        write_json(self._folder / "left_out.json", {"tokens": self._left_out, "reason": "instruments.picks_cap_mib"})

    def _flush(self) -> None:
        if not self._buffer:
            return
        names = ("picks_TLK", "request_T", "position_T", "step_T")
        arrays: dict[str, Any] = {
            name: np.concatenate([row[i] for row in self._buffer]) for i, name in enumerate(names)
        }
        write_arrays(self._folder / f"part-{self._part}.npz", arrays, compress=False)
        self._buffer.clear()
        self._bytes, self._part = 0, self._part + 1


@dataclass(slots=True)
class _Window:
    """What a window has seen so far; lists hold one entry per block slice."""

    first_step: int
    start_s: float
    counts: list[npt.NDArray[Any]] = field(default_factory=list)  # [L, P, C, E]
    tokens: list[npt.NDArray[Any]] = field(default_factory=list)  # [P, C]
    dropped: list[npt.NDArray[Any]] = field(default_factory=list)  # [P, L]
    identity: list[npt.NDArray[Any]] = field(default_factory=list)  # [P, L]
    distinct: list[npt.NDArray[Any]] = field(default_factory=list)  # [S, L]
    max_load: list[npt.NDArray[Any]] = field(default_factory=list)  # [S, L]
    steps: list[npt.NDArray[np.uint16]] = field(default_factory=list)  # [S, P, L, E]
    num_steps: int = 0


class RoutingRecorder(Recorder):
    """Collects the tap's counts into windows of ``window_steps`` steps."""

    def __init__(
        self,
        folder: Path,
        tap: RoutingSource,
        *,
        window_steps: int,
        step_counts_cap_bytes: int,
        picks: PicksWriter | None = None,
    ) -> None:
        self._folder, self._tap, self._picks = folder, tap, picks
        self._witness = Witness.of(folder)
        self._layer_names, self._class_names = tap.layer_names, tap.class_names
        self._top_k_L = np.array(tap.top_k, dtype=np.int64)
        self._window_steps, self._room_bytes = window_steps, step_counts_cap_bytes
        self._part = 0

    def on_start(self, schedule: Schedule, origin_s: float) -> None:
        """Label requests by class and forget what warm-up left in the tap."""
        self._origin_s, self._step = origin_s, 0
        self._pending: deque[Step] = deque()
        self._blocks: deque[RoutingBlock] = deque()
        self._window = _Window(0, 0.0)
        self._closed: list[Routing] = []
        self._requests: list[RequestCounts] = []
        self._aside = ThreadPoolExecutor(max_workers=1, thread_name_prefix="routing")
        self._writing: Future[None] | None = None
        self._flushed_s = origin_s
        self._tap.bind(schedule.request_class)
        self._tap.discard()

    def on_step(self, step: Step, num_waiting: int) -> None:
        """Remember the step; take blocks that are ready."""
        self._pending.append(step)
        self._take(everything=False)
        if self._closed and step.end_s - self._flushed_s >= FLUSH_EVERY_S:
            self._flush(step.end_s)

    def on_end(self, end_s: float) -> None:
        """Take what is left, close the last window, join the parts."""
        self._take(everything=True)
        if self._blocks and self._pending:  # the engine broke off between launching a step and telling it
            self._add(self._blocks[0].first(len(self._pending)))
        if self._window.num_steps:
            self._close_window()
        if self._closed:
            self._flush(end_s)
        self._written()
        self._aside.shutdown()
        if self._picks is not None:
            self._picks.close()
        join_routing_parts(self._folder)

    def _take(self, *, everything: bool) -> None:
        """Blocks whose steps were all told; an engine that runs ahead launches a step before it tells the last one."""
        self._blocks.extend(self._tap.collect_blocks(everything=everything))
        while self._blocks and len(self._blocks[0].tokens_SG) <= len(self._pending):
            self._add(self._blocks.popleft())

    def _add(self, block: RoutingBlock) -> None:
        size = len(block.tokens_SG)
        steps = [self._pending.popleft() for _ in range(size)]
        if self._picks is not None:
            self._picks.append(self._step, steps, block)
        if block.requests is not None:
            self._requests.append(block.requests)
        start = 0
        while start < size:
            end = min(size, start + self._window_steps - self._window.num_steps)
            self._add_slice(block, start, end)
            self._step += end - start
            if self._window.num_steps >= self._window_steps:
                self._close_window()
                self._window = _Window(self._step, steps[end - 1].end_s - self._origin_s)
            start = end

    def _add_slice(self, block: RoutingBlock, start: int, end: int) -> None:
        window, groups, loads = self._window, (len(PHASES), len(self._class_names)), block.all_loads()
        counts_LGE = block.counts_SLGE[start:end].sum(axis=0, dtype=np.int32)  # the wide type would take five times
        window.counts.append(counts_LGE.reshape(len(counts_LGE), *groups, -1))
        window.tokens.append(block.tokens_SG[start:end].sum(axis=0).reshape(groups))
        window.dropped.append(self._by_phase(block.dropped_SLG[start:end]))
        window.identity.append(self._by_phase(block.identity_SLG[start:end]))
        window.distinct.append(loads.distinct_SL[start:end])
        window.max_load.append(loads.max_load_SL[start:end])
        self._keep_steps(loads, start, end)
        window.num_steps += end - start

    def _by_phase(self, count_SLG: npt.NDArray[Any]) -> npt.NDArray[Any]:
        by_layer = count_SLG.sum(axis=0, dtype=np.int64).reshape(len(self._layer_names), len(PHASES), -1)
        summed: npt.NDArray[Any] = by_layer.sum(axis=2).T
        return summed

    def _keep_steps(self, loads: Loads, start: int, end: int) -> None:
        """Per-step counts until the cap is reached; from then on none, so that row s is always step s."""
        step_SPLE = loads.counts_SPLE[start:end]
        if step_SPLE.nbytes > self._room_bytes or loads.max_load_SL[start:end].max(initial=0) > np.iinfo(np.uint16).max:
            self._room_bytes = 0
            return
        self._room_bytes -= step_SPLE.nbytes
        self._window.steps.append(step_SPLE)

    def _close_window(self) -> None:
        window = self._window
        counts_LPCE: npt.NDArray[np.int64] = np.sum(np.stack(window.counts), axis=0, dtype=np.int64)
        closed = Routing(
            counts_WPCLE=counts_LPCE.transpose(1, 2, 0, 3)[None],
            real_tokens_WPC=np.sum(window.tokens, axis=0)[None],
            window_start_s=np.array([window.start_s]),
            window_first_step=np.array([window.first_step], dtype=np.int64),
            distinct_SL=np.concatenate(window.distinct).astype(np.int16),
            max_load_SL=np.concatenate(window.max_load).astype(np.int32),
            step_counts_SPLE=np.concatenate(window.steps) if window.steps else None,
            layer_names=self._layer_names,
            class_names=self._class_names,
            top_k_L=self._top_k_L,
            dropped_PL=np.sum(window.dropped, axis=0),
            identity_PL=np.sum(window.identity, axis=0),
        )
        self._closed.append(closed)

    def _flush(self, now_s: float) -> None:
        """Write the closed windows as one part: a file per window would cost more than the counting.

        Aside, because a second's worth of steps can be megabytes and the next step should not wait for the disk.
        """
        self._written()
        self._witness.check()
        path = self._folder / f"routing.part-{self._part}.npz"
        self._writing = self._aside.submit(_write_part, self._closed, self._requests, path)
        self._closed, self._requests = [], []
        self._part, self._flushed_s = self._part + 1, now_s

    def _written(self) -> None:
        """Wait for the part before, whose errors come up here."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None


def _write_part(closed: list[Routing], requests: list[RequestCounts], path: Path) -> None:
    windows = merge_routing(closed, max_windows=len(closed))
    replace(windows, requests=merge_requests(requests)).save(path, compress=False)
