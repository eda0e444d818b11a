"""What watching cost: from lock-step pairs of an instrumented and a bare engine (docs/metrics.md#lock-step-pairs)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from moeprof.analysis.metrics.context import Context
from moeprof.analysis.metrics.tables import BoolArray, column, is_phase
from moeprof.analysis.stats.arrays import FloatArray
from moeprof.analysis.stats.bootstrap import draw_means, estimate_of, median_estimate
from moeprof.core.metric import Card, MetricValue, missing

if TYPE_CHECKING:
    import pandas as pd

TAKEN_AWAY = 1.5  # wall time this far above processor time: the machine ran something else
MINIMUM_PAIRS = 100
LIMIT = 1.03
PHASES = ("prefill", "decode")

_card = partial(
    Card, section="validity", source="docs/metrics.md#validity", kind="timed", counts_tokens=True, needs="module"
)
CARDS: tuple[Card, ...] = (
    _card("instrumentation_overhead_ratio", "overhead of the instruments", "ratio", "lower",
          "sum of step times with instruments / sum without, undisturbed pairs"),
    _card("instrumentation_overhead_median_ratio", "overhead of the instruments, median step", "ratio", "lower",
          "median over pairs of step time with instruments / without"),
    _card("overhead_pairs_set_aside_ratio", "pairs of steps set aside", "ratio", "lower",
          "pairs in which the machine took the processor away on either side / all pairs"),
)  # fmt: skip
NAMES = tuple(card.name for card in CARDS)


def compute(context: Context) -> list[MetricValue]:
    """What the instruments cost in this launch."""
    table = context.table("overhead")
    return overhead_metrics([] if table is None else [table])


def overhead_metrics(launches: Sequence[pd.DataFrame]) -> list[MetricValue]:
    """NAMES of all pairs together, then of each phase (label ``phase``).

    The ratio of summed step times with instruments and without, the median of the pairs' ratios, and the share of pairs
    set aside. Pairs in which the machine took the processor away on either side are set aside on both. Intervals
    resample blocks of consecutive pairs.
    """
    if not launches:
        return [missing(name, "the overhead pass did not run") for name in NAMES]
    import pandas as pd

    table = pd.concat(launches, ignore_index=True)
    bare, watched = column(table, "bare_s"), column(table, "instrumented_s")
    cpu = np.stack([column(table, "bare_cpu_s"), column(table, "instrumented_cpu_s")], axis=1)
    kept = undisturbed(np.stack([bare, watched], axis=1), cpu)
    values = _values(bare, watched, kept, {})
    for phase in PHASES:
        own = is_phase(table, phase)
        if own.any():
            values += _values(bare[own], watched[own], kept[own], {"phase": phase})
    return values


def _values(bare: FloatArray, watched: FloatArray, kept: BoolArray, labels: dict[str, str]) -> list[MetricValue]:
    num_aside = len(kept) - int(kept.sum())
    aside = MetricValue(name=NAMES[2], value=num_aside / len(kept), n=len(kept), exact=True, labels=labels)
    if int(kept.sum()) < MINIMUM_PAIRS:
        reason = f"{int(kept.sum())} undisturbed pairs of steps, {MINIMUM_PAIRS} are needed"
        return [*(missing(name, reason, **labels) for name in NAMES[:2]), aside]
    bare, watched = bare[kept], watched[kept]
    note = (f"{num_aside} of {len(kept)} pairs set aside",)
    draws = draw_means(("bare", "watched"), np.stack([bare, watched], axis=1), np.arange(len(bare), dtype=np.int64))
    summed = estimate_of([draws], lambda seconds: seconds["watched"] / seconds["bare"])
    found = [
        MetricValue(name=name, value=one.value, n=one.n, ci_low=one.low, ci_high=one.high, labels=labels, reasons=note)
        for name, one in ((NAMES[0], summed), (NAMES[1], median_estimate(watched / bare)))
    ]
    if summed.low is not None and summed.low > LIMIT:
        costly = f"lower bound above {LIMIT}: latencies of the instrumented passes are not to be used"
        found[0] = replace(found[0], valid=False, reasons=(costly, *note))
    return [*found, aside]


def undisturbed(wall_SL: FloatArray, cpu_SL: FloatArray) -> BoolArray:
    """Turns without interruption: in no lane is wall time far above processor time (docs/metrics.md#lock-step-pairs).

    Where the host waits, as on a GPU, processor time says nothing, and all turns stay; so where it is not known, and
    where the machine is busy throughout: hardly a turn would be left.

    Args:
        wall_SL: wall seconds of every turn in every lane that was stepped in turn.
        cpu_SL: processor seconds, the same shape.

    Returns:
        True for turns to keep, shape [S].
    """
    return np.asarray(~taken_away(wall_SL, cpu_SL).any(axis=1), dtype=np.bool_)


def taken_away(wall_SL: FloatArray, cpu_SL: FloatArray) -> BoolArray:
    """In which turns of which lane wall time is far above processor time, shape [S, L]; see :func:`undisturbed`."""
    usual = wall_over_cpu_ratio(wall_SL, cpu_SL)
    if usual is None or usual > TAKEN_AWAY:
        return np.zeros(wall_SL.shape, dtype=np.bool_)
    known = np.isfinite(cpu_SL) & np.isfinite(wall_SL)
    return np.asarray((wall_SL > TAKEN_AWAY * cpu_SL) & known, dtype=np.bool_)


def wall_over_cpu_ratio(wall_SL: FloatArray, cpu_SL: FloatArray) -> float | None:
    """Median of wall over processor time; None where processor time is not known."""
    known = np.isfinite(cpu_SL) & np.isfinite(wall_SL)
    return float(np.median(wall_SL[known] / np.maximum(cpu_SL[known], 1e-9))) if known.any() else None
