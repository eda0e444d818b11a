"""Timed figures against a stored run: Welch's test on the logarithms of launches (METRICS section 9).

The few gates share one error (Holm); every other timed figure belongs to a second family of its own, so that a page
with hundreds of figures does not call chance a change.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moeprof.analysis.metrics.cards import card_for
from moeprof.analysis.metrics.lookup import Key
from moeprof.analysis.report.document import Ratio
from moeprof.analysis.stats import intervals
from moeprof.analysis.stats.verdicts import ALPHA, holm
from moeprof.core.metric import Better

STORED_FLOOR_RATIO = 0.10
FEWEST_LAUNCHES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Welch:
    """log(other / reference): mean, standard error, degrees of freedom."""

    mean: float
    error: float
    degrees: float

    @property
    def p_one_sided(self) -> float:
        """Chance of a mean at least so far from 0 on its side, were there no difference."""
        if self.error == 0:
            return 0.5 if self.mean == 0 else 0.0
        from scipy.special import stdtr

        return float(stdtr(self.degrees, -abs(self.mean) / self.error))

    def interval(self, confidence: float) -> intervals.Interval:
        """Two-sided interval of the ratio."""
        half = intervals.t_quantile(0.5 + confidence / 2, self.degrees) * self.error if self.error else 0.0
        return math.exp(self.mean - half), math.exp(self.mean + half)


def welch(reference: Sequence[float], other: Sequence[float]) -> Welch | None:
    """Of two or more launches a side, all above 0; None otherwise."""
    if min(len(reference), len(other)) < 2 or min(*reference, *other) <= 0:
        return None
    first, second = np.log(reference), np.log(other)
    parts = [float(side.var(ddof=1)) / len(side) for side in (first, second)]
    error = math.sqrt(sum(parts))
    squares = sum(part**2 / (len(side) - 1) for part, side in zip(parts, (first, second), strict=True))
    degrees = sum(parts) ** 2 / squares if squares else float(len(first) + len(second) - 2)
    return Welch(mean=float(second.mean() - first.mean()), error=error, degrees=degrees)


def stored_ratios(
    samples: Mapping[Key, tuple[Sequence[float], Sequence[float]]], gates: Collection[Key]
) -> dict[Key, Ratio]:
    """Ratio, interval and verdict of every timed figure.

    Args:
        samples: figure -> each launch's value in the reference and in the other run.
        gates: those that share the first family.
    """
    tests = {key: welch(*pair) for key, pair in samples.items()}
    enough = {key for key, pair in samples.items() if min(map(len, pair)) >= FEWEST_LAUNCHES}
    judged = {key: test for key, test in tests.items() if test is not None and key in enough}
    families = ([key for key in judged if key in gates], [key for key in judged if key not in gates])
    adjusted = {key: p for family in families for key, p in holm({k: judged[k].p_one_sided for k in family}).items()}
    found = {}
    for key, test in tests.items():
        better = card_for(key[0]).better
        if test is None or key not in enough:
            found[key] = _too_few(test, samples[key], better)
        else:
            found[key] = _judged(test, adjusted[key], better, gate=key in gates)
    return found


def _too_few(test: Welch | None, pair: tuple[Sequence[float], Sequence[float]], better: Better) -> Ratio:
    num = min(map(len, pair))
    value, low, high = None, None, None
    if test is not None:
        value, (low, high) = math.exp(test.mean), test.interval(intervals.CONFIDENCE)
    elif num and min(*pair[0], *pair[1]) > 0:
        value = math.exp(float(np.log(pair[1]).mean() - np.log(pair[0]).mean()))
    reason = f"needs {FEWEST_LAUNCHES} launches a side, found {num}"
    if num >= 1 and value is None:
        reason = "no ratio: a value is not above 0"
    return Ratio(value=value, low=low, high=high, verdict="" if better == "neither" else "cannot tell", reason=reason)


def _judged(test: Welch, p: float, better: Better, *, gate: bool) -> Ratio:
    low, high = test.interval(intervals.CONFIDENCE)
    floor = math.log1p(STORED_FLOOR_RATIO)
    beyond = abs(test.mean) > floor
    family = "gate" if gate else "one of many, no gate"
    if p <= ALPHA and beyond:
        verdict = "better" if (test.mean < 0) == (better == "lower") else "worse"
        reason = f"p = {p:.2g} ({family}, Holm), beyond the floor of {STORED_FLOOR_RATIO:.0%}"
    elif max(abs(math.log(end)) for end in test.interval(1 - 2 * ALPHA)) <= floor:
        verdict, reason = "no difference shown", f"the interval lies within {STORED_FLOOR_RATIO:.0%} ({family})"
    else:
        verdict = "cannot tell"
        reason = f"not told from chance: p = {p:.2g} ({family}, Holm)"
        reason = reason if beyond else f"the interval reaches beyond {STORED_FLOOR_RATIO:.0%} ({family})"
    return Ratio(value=math.exp(test.mean), low=low, high=high, verdict="" if better == "neither" else verdict,
                 reason=reason)  # fmt: skip
