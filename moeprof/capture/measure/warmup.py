"""Warm-up and calibration: passes whose numbers are kept but never reported as results.

Warm-up runs other prompts than the measured ones until step times settle: two passes in a row agree. Calibration then
runs pure steps of known sizes (prefill alone, decode alone), from which the cost split of mixed steps learns what each
side would cost by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np

from moeprof.capture.engines.base import Engine, ServedEngine, Step
from moeprof.capture.recorders.steps import StepRecorder
from moeprof.capture.replay import Recorder, replay
from moeprof.core.trace import Schedule

SETTLED_WITHIN = 0.05  # decode time per token of two passes in a row
CALIBRATION_BATCHES = (1, 2, 4, 8, 16, 32)
CALIBRATION_DECODE_TOKENS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmupResult:
    """How warm-up went.

    Attributes:
        num_requests: requests sent, repeats included.
        seconds: how long it took.
        settled: True when the last two windows agreed.
        drift_ratio: last window's median decode step time over the one before, or None with too few steps.
    """

    num_requests: int
    seconds: float
    settled: bool
    drift_ratio: float | None


class _DecodeTimes(Recorder):
    """Recorder that keeps step times per decode token count, to judge drift at equal load."""

    def __init__(self) -> None:
        self.times_s: list[float] = []

    def on_step(self, step: Step, num_waiting: int) -> None:
        """Time per token of decode steps, so that a shrinking batch is no drift."""
        if step.phase == "decode":
            self.times_s.append((step.end_s - step.start_s) / max(1, step.decode_tokens))


def warm_up(
    engine: ServedEngine,
    schedule: Schedule,
    folder: Path,
    *,
    max_seconds: float,
    should_stop: Callable[[], bool],
    clock: Callable[[], float] = time.perf_counter,
) -> WarmupResult:
    """Run ``schedule`` offline, again and again, until two passes in a row have the same decode time per token.

    Passes of the same requests have the same batches, so their medians compare like with like.
    """
    start, sent, previous = clock(), 0, None
    settled, drift = False, None
    with _recorded(folder, "warmup") as recorder:
        while len(schedule) and clock() - start < max_seconds and not should_stop():
            times = _DecodeTimes()
            deadline = start + max_seconds
            recorders: list[Recorder] = [times, recorder]
            result = replay(engine, schedule.as_offline(), recorders, should_stop=should_stop, deadline_s=deadline)
            sent += result.sent
            engine.reset()
            if not times.times_s:
                break
            current = median(times.times_s)
            drift = None if previous is None else current / previous
            settled = drift is not None and abs(drift - 1) <= SETTLED_WITHIN
            if settled:
                break
            previous = current
    return WarmupResult(num_requests=sent, seconds=clock() - start, settled=settled, drift_ratio=drift)


def calibrate(
    engine: Engine,
    schedule: Schedule,
    folder: Path,
    *,
    max_seconds: float,
    should_stop: Callable[[], bool],
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Pure prefill and pure decode steps at growing batch sizes; writes table ``calibration``."""
    deadline = clock() + max_seconds
    with _recorded(folder, "calibration") as recorder:
        for batch in _batches(engine, schedule):
            if clock() >= deadline or should_stop():
                break
            # Steps of the passes to come are captured, so those that teach the split what decode costs must be, too.
            engine.prepare(len(batch), int((batch.input_tokens + batch.output_tokens).max()))
            replay(engine, batch, [recorder], should_stop=should_stop, deadline_s=deadline)
            engine.reset()


def _batches(engine: Engine, schedule: Schedule) -> Iterator[Schedule]:
    """Offline schedules of 1, 2, 4... requests of warm-up text, small enough that prefill is one pure step."""
    if not len(schedule):
        return
    ids = np.concatenate(schedule.input_ids)
    limit = engine.facts.max_batch_tokens
    for batch in CALIBRATION_BATCHES:
        for share in (0.25, 0.95):
            length = min(int(limit * share) // batch, engine.facts.max_sequence_tokens - CALIBRATION_DECODE_TOKENS)
            if length < 1 or (length + CALIBRATION_DECODE_TOKENS) * batch > engine.facts.kv_tokens // 2:
                continue
            rows = tuple(np.resize(np.roll(ids, -i * length), length).astype(np.int32) for i in range(batch))
            yield replace(
                schedule,
                pattern="offline",
                concurrency=None,
                request_id=tuple(f"calibration-{i}" for i in range(batch)),
                arrival_s=np.zeros(batch),
                input_ids=rows,
                output_tokens=np.full(batch, CALIBRATION_DECODE_TOKENS, dtype=np.int64),
                output_ids=None,
                request_class=(schedule.request_class[0],) * batch,
                session=("",) * batch,
                prefix_blocks=((),) * batch,
                outputs="forced_length",
                num_characters=np.full(batch, -1, dtype=np.int64),
                turns=None,
                reusable_tokens=None,
                notes=(),
            )


class _recorded(Recorder):  # noqa: N801 - reads as a verb in ``with``
    """A step table over several passes: its times go on from one pass to the next."""

    def __init__(self, folder: Path, table: str) -> None:
        self._recorder = StepRecorder(folder, table)
        self._origin_s: float | None = None

    def __enter__(self) -> _recorded:
        return self

    def __exit__(self, *exception: object) -> None:
        self._recorder.on_end(0.0)

    def on_start(self, schedule: Schedule, origin_s: float) -> None:
        """Keep the first pass's origin."""
        if self._origin_s is None:
            self._origin_s = origin_s
        self._recorder.on_start(schedule, self._origin_s)

    def on_step(self, step: Step, num_waiting: int) -> None:
        """Append the row."""
        self._recorder.on_step(step, num_waiting)

    def on_end(self, end_s: float) -> None:
        """The table stays open until the context ends."""
