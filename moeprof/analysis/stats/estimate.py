"""A number with its interval, and a ratio with its verdict: what every comparison ends in."""

from __future__ import annotations

from dataclasses import dataclass


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
    """

    verdict: str = ""
