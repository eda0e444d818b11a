"""Two runs of one sparsity ladder: whether their taxes agree within their intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moeprof.analysis.compare.estimate import Estimate
from moeprof.analysis.compare.ladder import LadderResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """One tax, measured twice.

    Attributes:
        name: of the metric.
        first, second: shares of the recorded rung's step time, or seconds per step.
        difference: second less first.
        agree: the interval of the difference holds 0; None where it cannot be told.
        reason: why it cannot be told.
    """

    name: str
    first: Estimate
    second: Estimate
    difference: Estimate
    agree: bool | None
    reason: str | None = None


def same_taxes(first: LadderResult, second: LadderResult, *, in_seconds: bool = False) -> tuple[Agreement, ...]:
    """Whether two runs of a ladder agree: every tax, and the slope of the coverage line.

    Shares of the recorded rung's step time are compared, because seconds scale with what else the machine does: a
    neighbour that takes half of the processor doubles every tax. The interval of a difference has the two half-widths
    that face each other, in quadrature: the runs are independent. It holds what the intervals hold: within one launch
    each, not what differs between launches.

    Args:
        first: of some model, load and phase.
        second: of the same.
        in_seconds: compare seconds per step instead.
    """
    pairs = [(tax, second.tax(tax.name)) for tax in first.taxes]
    found = [_agreement(a.name, *((a.seconds, b.seconds) if in_seconds else (a.share, b.share))) for a, b in pairs]
    a, b = first.coverage, second.coverage
    slopes = (a.slope, b.slope) if in_seconds else (a.share, b.share)
    return (*found, _agreement("seconds_per_distinct_expert", *slopes))


def _agreement(name: str, first: Estimate, second: Estimate) -> Agreement:
    a, b = first, second
    if a.value is None or b.value is None or a.low is None or a.high is None or b.low is None or b.high is None:
        reason = a.reason or b.reason
        unknown = Estimate(value=None, reason=reason)
        return Agreement(name=name, first=a, second=b, difference=unknown, agree=None, reason=reason)
    centre = b.value - a.value
    low = centre - float(np.hypot(b.value - b.low, a.high - a.value))
    high = centre + float(np.hypot(b.high - b.value, a.value - a.low))
    difference = Estimate(value=centre, low=low, high=high)
    return Agreement(name=name, first=a, second=b, difference=difference, agree=not difference.excludes(0))
