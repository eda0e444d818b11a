"""What watching cost: from lock-step pairs of an instrumented and a bare engine (METRICS sections 1 and 10)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from moeprof.analysis import stats
from moeprof.analysis.tables import BoolArray, FloatArray, column
from moeprof.core.metric import MetricValue, missing

TAKEN_AWAY = 1.5  # wall time this far above processor time: the machine ran something else
MINIMUM_PAIRS = 100
LIMIT = 1.03


def overhead_metrics(launches: Sequence[pd.DataFrame]) -> list[MetricValue]:
    """``instrumentation_overhead_ratio``: summed step time with instruments over without, and the median of ratios.

    Pairs in which the machine took the processor away on either side are set aside on both and counted. The interval
    resamples blocks of consecutive pairs within a launch.
    """
    names = ("instrumentation_overhead_ratio", "instrumentation_overhead_median_ratio")
    if not launches:
        return [missing(name, "the overhead pass did not run") for name in names]
    table = pd.concat(launches, ignore_index=True)
    bare, watched = column(table, "bare_s"), column(table, "instrumented_s")
    kept = _undisturbed(table, bare, watched)
    if int(kept.sum()) < MINIMUM_PAIRS:
        reason = f"{int(kept.sum())} undisturbed pairs of steps, {MINIMUM_PAIRS} are needed"
        return [missing(name, reason) for name in names]
    bare, watched = bare[kept], watched[kept]
    aside = f"{len(kept) - int(kept.sum())} of {len(kept)} pairs set aside"
    summed = float(watched.sum() / bare.sum())
    low, high = _interval(bare, watched)
    text = (f"lower bound above {LIMIT}: latencies of the instrumented passes are not to be used",)
    return [
        MetricValue(
            name=names[0],
            value=summed,
            n=len(bare),
            ci_low=low,
            ci_high=high,
            valid=low <= LIMIT,
            reasons=(*((text) if low > LIMIT else ()), aside),
        ),
        MetricValue(name=names[1], value=float(np.median(watched / bare)), n=len(bare), reasons=(aside,)),
    ]


def _undisturbed(table: pd.DataFrame, bare: FloatArray, watched: FloatArray) -> BoolArray:
    """Pairs without interruption. On a GPU the host waits, so processor time says nothing and all pairs stay."""
    bare_cpu, watched_cpu = column(table, "bare_cpu_s"), column(table, "instrumented_cpu_s")
    if float(np.median(bare / np.maximum(bare_cpu, 1e-9))) > TAKEN_AWAY:
        return np.ones(len(bare), dtype=np.bool_)
    kept: BoolArray = (bare <= TAKEN_AWAY * bare_cpu) & (watched <= TAKEN_AWAY * watched_cpu)
    return kept


def _interval(bare: FloatArray, watched: FloatArray, seed: int = 0) -> tuple[float, float]:
    blocks = stats.blocks_of(len(bare))
    sums = np.stack([np.bincount(blocks, weights=bare), np.bincount(blocks, weights=watched)], axis=1)
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=stats.RESAMPLES) @ sums
    return stats.percentile_interval(drawn[:, 1] / drawn[:, 0])
