"""What the instruments cost: tap and all recorders against a bare engine, in lock-step, as every run measures it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders import Watched, collector_asleep, kv_tokens
from benchmarks.throughput import SHORT, make_schedule
from benchmarks.verdict import Row, Target
from moeprof.analysis.stats import block_mean_interval
from moeprof.capture.engine.base import ListenerSet
from moeprof.capture.engine.continuous import ContinuousEngine
from moeprof.capture.overhead import measure_overhead
from moeprof.core.record_tables import read_table

MAX_BATCH_TOKENS = 512
BLOCK_PAIRS = 32  # the tap counts once in so many steps, so only a block of them holds its whole cost


def overhead_row(model: Any, folder: Path, seconds: float) -> Row:
    """Instrumented over bare step time; sums over blocks of steps, because the tap works in bulk once per block."""
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
    blocks = block_ratios(pairs["bare_s"].to_numpy(), pairs["instrumented_s"].to_numpy())
    return Row(
        what="instrumented / bare step time (lock-step)",
        target=Target(low_at_most=1.02),
        samples=(float(np.median(blocks)),),
        interval=block_mean_interval(blocks),
        details=f"{len(pairs)} pairs of steps, ratios of {BLOCK_PAIRS}-step sums, 95 % interval of their mean",
    )


def block_ratios(bare_s: Any, instrumented_s: Any, block: int = BLOCK_PAIRS) -> Any:
    """Ratio of sums per block of pairs; a pair that the machine interrupted (beyond 3 times the median) is left out."""
    bare, instrumented = np.asarray(bare_s, dtype=float), np.asarray(instrumented_s, dtype=float)
    calm = (bare < 3 * np.median(bare)) & (instrumented < 3 * np.median(instrumented))
    count = len(bare) // block * block
    kept = np.where(calm, 1.0, 0.0)[:count].reshape(-1, block)
    return (instrumented[:count].reshape(-1, block) * kept).sum(1) / (bare[:count].reshape(-1, block) * kept).sum(1)
