"""A ratio with its interval and its verdict."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """One model (or run) against the reference, for one metric.

    Attributes:
        value: the reference's value is the denominator; None when it cannot be told, with the reason.
        low, high: 95 % interval, or None.
        verdict: better | worse | no difference shown | cannot tell | incomparable | same run, or "" where there is
            nothing to judge (neither direction is better).
        reason: why there is no value, no interval, or this verdict.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    verdict: str = ""
    reason: str | None = None
