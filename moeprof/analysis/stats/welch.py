"""Timed figures against a stored run: Welch's test on the logarithms of launches (docs/metrics.md#verdicts).

The few gates share one error (Holm); every other timed figure belongs to a second family of its own, so that a page
with hundreds of figures does not call chance a change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moeprof.analysis.stats import intervals


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
