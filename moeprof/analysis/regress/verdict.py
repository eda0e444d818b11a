"""Verdicts of timed gates, and all gates in order."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from moeprof.analysis.regress.result import GateResult, Overall
from moeprof.analysis.stats.estimate import Ratio
from moeprof.analysis.stats.verdicts import ALPHA, Sample, judge

SPREAD = "by the spread of these launches"  # what chance is measured by: another day may differ by more
ORDER: tuple[Overall, ...] = ("worse", "cannot tell", "better", "no difference shown")


def judge_gates(samples: Mapping[int, Sample], *, until_precise: bool = False) -> dict[int, Ratio]:
    """Verdicts of the timed gates in use, by their place; they are one family (docs/metrics.md#verdicts).

    Args:
        samples: of each.
        until_precise: launches were added until they looked precise enough: see power.enough.
    """
    family = SPREAD + (f", Holm over {len(samples)} timed gates" if len(samples) > 1 else "")
    return judge(samples, within_alpha=ALPHA / 2 if until_precise else None, family=family, is_symmetric=False)


def in_order(results: Iterable[GateResult]) -> tuple[GateResult, ...]:
    """Most important first: by verdict, then by how far the figure moved."""
    return tuple(sorted(results, key=lambda result: (ORDER.index(_overall(result)), -_size(result))))


def overall(results: Iterable[GateResult]) -> Overall:
    """Worse if one is; else cannot tell if one cannot; else better if one is."""
    verdicts = {_overall(result) for result in results}
    return next((verdict for verdict in ORDER if verdict in verdicts), "no difference shown")


def _overall(result: GateResult) -> Overall:
    return next((verdict for verdict in ORDER if verdict == result.verdict), "cannot tell")


def _size(result: GateResult) -> float:
    value = result.ratio.value
    return abs(math.log(value)) if value is not None and value > 0 else 0.0
