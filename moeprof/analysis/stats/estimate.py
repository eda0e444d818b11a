"""A number with its interval, and a ratio with its verdict: what every comparison ends in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from moeprof.analysis.stats import intervals

ROUNDS = "rounds"
JUDGED = ("better", "worse", "no difference shown")
LEAST_RATIO = 0.05  # nobody asks for how many repeats would tell a smaller difference


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure of a comparison.

    Attributes:
        value: None when it cannot be told; then ``reason`` says why.
        low, high: 95 % interval, or None when there is none (an exact value, or too few samples).
        n: independent samples behind it, or None for a counted fact.
        reason: why there is no value, or no interval.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    reason: str | None = None

    def excludes(self, point: float) -> bool:
        """True when the interval is known and does not hold the point."""
        return self.low is not None and self.high is not None and not self.low <= point <= self.high

    def times(self, factor: float) -> Estimate:
        """The same figure in another unit; ``factor`` is known exactly and positive."""
        value, low, high = (None if x is None else x * factor for x in (self.value, self.low, self.high))
        return Estimate(value=value, low=low, high=high, n=self.n, reason=self.reason)

    def inverse(self) -> Estimate:
        """1 / the figure, its interval turned around; without an interval where an end is 0."""
        if not self.value:
            return Estimate(value=None, n=self.n, reason=self.reason or "the ratio is 0")
        ends = (1 / self.high, 1 / self.low) if self.low and self.high else (None, None)
        return Estimate(value=1 / self.value, low=ends[0], high=ends[1], n=self.n, reason=self.reason)

    def judged(self, verdict: str, reason: str | None) -> Ratio:
        """The figure with what became of it; ``reason`` stands in place of its own."""
        return Ratio(value=self.value, low=self.low, high=self.high, n=self.n, verdict=verdict, reason=reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio(Estimate):
    """One model (or run) against the reference, for one metric; the reference's value is the denominator.

    Attributes:
        verdict: better | worse | no difference shown | cannot tell | incomparable | same run, or "" where there is
            nothing to judge (neither direction is better).
        by: ROUNDS where rounds of one launch are behind it, so that it speaks for this launch alone; else "".
    """

    verdict: str = ""
    by: str = ""

    @property
    def verdict_text(self) -> str:
        """``worse (rounds)``."""
        return f"{self.verdict} ({self.by})" if self.by and self.verdict in JUDGED else self.verdict


def narrow(estimate: Estimate, reason: str) -> Estimate:
    """The estimate, without its interval and for this reason where the ends of that lie too far apart."""
    if estimate.low is None or estimate.high is None or not intervals.is_too_wide((estimate.low, estimate.high)):
        return estimate
    return replace(estimate, low=None, high=None, reason=reason)


def ratio_of_logs(logs: Sequence[float], unit: str) -> Estimate:
    """The geometric mean of ratios, by their logarithms, with Student's 95 % interval on that scale.

    Few or very different repeats have none (intervals.FEWEST_REPEATS, WIDEST); the reason then says how many would tell
    this ratio from 1.
    """
    values = np.asarray(logs, dtype=np.float64)
    middle, num = float(values.mean()), len(values)
    spread = float(values.std(ddof=1)) if num > 1 and np.ptp(values) > 0 else 0.0

    def half(repeats: int) -> float:
        return intervals.t_quantile(0.5 + intervals.CONFIDENCE / 2, repeats - 1) * spread / math.sqrt(repeats)

    widest = math.log(intervals.WIDEST) / 2
    if num >= intervals.FEWEST_REPEATS and half(num) <= widest:
        ends = math.exp(middle - half(num)), math.exp(middle + half(num))
        return Estimate(value=math.exp(middle), low=ends[0], high=ends[1], n=num)
    reach = min(max(abs(middle), LEAST_RATIO), widest)
    why = intervals.too_few_text(np.exp(values), unit, lambda repeats: half(repeats) <= reach)
    return Estimate(value=math.exp(middle), n=num, reason=why)
