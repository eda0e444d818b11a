"""What the instruments cost: tap and all recorders against a bare engine, in lock-step, as every run measures it."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pandas as pd

from benchmarks.contenders import Watched, collector_asleep, kv_tokens
from benchmarks.loads import SHORT, make_schedule
from benchmarks.verdict import Row, Target
from moeprof.analysis.metrics.overhead import overhead_metrics
from moeprof.capture.engines.base import ListenerSet, Step
from moeprof.capture.engines.hf import build_engine
from moeprof.capture.measure.overhead import measure_overhead
from moeprof.capture.replay import Recorder
from moeprof.core.record.tables import read_table
from moeprof.core.trace import Schedule
from moeprof.core.workload.engine import TransformersSettings

MAX_BATCH_TOKENS = 512
NAME = "instrumentation_overhead_ratio"
ALONE = replace(SHORT, num_requests=1)
# Kernels of our own make the bare step shorter, so the same instruments weigh more.
CASES = (
    (SHORT, False, "off"),
    (SHORT, True, "off"),
    (ALONE, False, "off"),
    (ALONE, True, "off"),
    (SHORT, False, "all"),
    (SHORT, True, "all"),
)


def overhead_rows(model: Any, folder: Path, seconds: float) -> list[Row]:
    """Instrumented over bare step time, as in the overhead pass of a run: many requests and one, picks kept or not."""
    rows = []
    for load, save_detailed, kernels in CASES:
        pairs, spent = _pairs(model, make_schedule(folder, load), seconds, save_detailed, kernels)
        requests = "one request" if load.num_requests == 1 else f"{load.num_requests} requests"
        how = f"{requests}{', --save-detailed' if save_detailed else ''}, cpu_kernels: {kernels}"
        rows.append(judged(pairs, how, 1.03 if save_detailed else 1.02, spent))
    return rows


def _pairs(
    model: Any, schedule: Schedule, seconds: float, save_detailed: bool, kernels: str
) -> tuple[pd.DataFrame, str]:
    """The table of pairs, and what each recorder spent per step."""
    listeners = ListenerSet()
    settings = TransformersSettings(
        kv_tokens=kv_tokens(schedule), max_batch_tokens=MAX_BATCH_TOKENS, cpu_kernels=cast("Any", kernels)
    )
    bare = build_engine(model, settings, in_turn=True)
    instrumented = build_engine(model, settings, listeners, in_turn=True)
    watched = Watched(model, schedule, listeners, save_detailed=save_detailed)
    with tempfile.TemporaryDirectory() as name, collector_asleep():
        path = Path(name)
        recorders = [Timed(recorder) for recorder in watched.recorders(path)]
        measure_overhead(
            bare, instrumented, schedule, recorders, watched.on, path,
            max_seconds=seconds, should_stop=lambda: False,
        )  # fmt: skip
        pairs = read_table(path, "overhead")
    watched.close()
    bare.close()
    instrumented.close()
    return pairs, ", ".join(f"{one.name} {one.seconds / max(1, one.steps) * 1e6:.0f} us" for one in recorders)


class Timed:
    """A recorder whose time per step is added up.

    Attributes:
        name: of its class.
        seconds: spent in all steps.
        steps: seen.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.name, self.seconds, self.steps = type(recorder).__name__, 0.0, 0
        self._recorder = recorder
        self.on_start, self.on_send, self.on_end = recorder.on_start, recorder.on_send, recorder.on_end

    def on_step(self, step: Step, num_waiting: int) -> None:
        """Pass it on, timed."""
        start_s = time.perf_counter()
        self._recorder.on_step(step, num_waiting)
        self.seconds, self.steps = self.seconds + time.perf_counter() - start_s, self.steps + 1


def judged(pairs: pd.DataFrame, how: str = "", most: float = 1.02, spent: str = "") -> Row:
    """The figure that reports print, from the table of pairs."""
    figure = next(value for value in overhead_metrics([pairs]) if value.name == NAME and not value.labels)
    assert figure.value is not None and figure.ci_low is not None and figure.ci_high is not None, figure.reasons
    bare_ms = f"bare step {pairs['bare_s'].median() * 1e3:.2f} ms"
    return Row(
        what=f"instrumented / bare step time (lock-step){', ' if how else ''}{how}",
        target=Target(low_at_most=most),
        samples=(figure.value,),
        interval=(figure.ci_low, figure.ci_high),
        details=f"{figure.n} pairs of steps, 95 % interval; {bare_ms}; per step: {spent}; {'; '.join(figure.reasons)}",
    )
