"""What the instruments cost: tap and all recorders against a bare engine, in lock-step, as every run measures it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.contenders import Watched, collector_asleep, kv_tokens
from benchmarks.loads import SHORT, make_schedule
from benchmarks.verdict import Row, Target
from moeprof.analysis.metrics.overhead import overhead_metrics
from moeprof.capture.engine.base import ListenerSet
from moeprof.capture.engine.continuous import ContinuousEngine
from moeprof.capture.overhead import measure_overhead
from moeprof.core.record_tables import read_table

MAX_BATCH_TOKENS = 512
NAME = "instrumentation_overhead_ratio"


def overhead_rows(model: Any, folder: Path, seconds: float) -> list[Row]:
    """Instrumented over bare step time, as in the overhead pass of a run."""
    schedule, listeners = make_schedule(folder, SHORT), ListenerSet()
    sizes: dict[str, Any] = {"kv_tokens": kv_tokens(schedule), "max_batch_tokens": MAX_BATCH_TOKENS}
    bare = ContinuousEngine(model, **sizes)
    instrumented = ContinuousEngine(model, listeners=listeners, **sizes)
    watched = Watched(model, schedule, listeners)
    with tempfile.TemporaryDirectory() as name, collector_asleep():
        path = Path(name)
        measure_overhead(
            bare, instrumented, schedule, watched.recorders(path), watched.on, path,
            max_seconds=seconds, should_stop=lambda: False,
        )  # fmt: skip
        pairs = read_table(path, "overhead")
    watched.close()
    bare.close()
    instrumented.close()
    return [judged(pairs)]


def judged(pairs: pd.DataFrame) -> Row:
    """The figure that reports print, from the table of pairs."""
    figure = next(value for value in overhead_metrics([pairs]) if value.name == NAME and not value.labels)
    assert figure.value is not None and figure.ci_low is not None and figure.ci_high is not None, figure.reasons
    return Row(
        what="instrumented / bare step time (lock-step)",
        target=Target(low_at_most=1.02),
        samples=(figure.value,),
        interval=(figure.ci_low, figure.ci_high),
        details=f"{figure.n} pairs of steps, 95 % interval; {'; '.join(figure.reasons)}",
    )
