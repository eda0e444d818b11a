"""A number with its interval, and the block bootstrap that lock-step figures share."""

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
