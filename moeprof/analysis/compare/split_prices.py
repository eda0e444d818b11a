"""A ratio of prices of one side, with what is not known of the split in it (docs/metrics.md#cost-split)."""

from __future__ import annotations

import math
from dataclasses import replace

from moeprof.analysis.metrics.cost.bounds import SplitBounds
from moeprof.analysis.stats.estimate import Ratio
from moeprof.analysis.stats.verdicts import limits


def within_split(
    ratio: Ratio, reference: SplitBounds | None, other: SplitBounds | None, *, floor_ratio: float = 0.0
) -> Ratio:
    """The ratio, its interval widened to what the bounds of both splits allow; no verdict that they do not bear.

    Splits by one method err alike, so both sides stand at the same end of their bounds; splits by different methods may
    stand at opposite ends.

    Args:
        ratio: other / reference.
        reference: bounds of the price in the denominator; None where the figure is not split.
        other: bounds of the price in the numerator.
        floor_ratio: what the verdict allows as no difference.
    """
    if reference is None or other is None or ratio.value is None:
        return ratio
    ends = _ends(ratio.value, reference, other)
    if ratio.low is None or ratio.high is None:
        return ratio  # nothing is claimed without an interval
    wide = replace(ratio, low=min(ratio.low, ends[0]), high=max(ratio.high, ends[1]))
    assert wide.low is not None and wide.high is not None, "both were known"
    if ratio.verdict in ("better", "worse"):
        is_borne = wide.excludes(1.0)
    elif ratio.verdict == "no difference shown":
        is_borne = limits(floor_ratio)[0] <= _log(wide.low) and wide.high <= 1 + floor_ratio
        is_borne = is_borne or (wide.low, wide.high) == (ratio.low, ratio.high)
    else:
        is_borne = True
    if math.isinf(wide.high):
        wide = replace(wide, low=None, high=None)
    if is_borne:
        return wide
    how = f"by {other.method}" if reference.method == other.method else f"by {other.method} against {reference.method}"
    reach = "from {:.3g} to {:.3g}".format(*ends) if math.isfinite(ends[1]) else f"from {ends[0]:.3g} without end"
    return replace(wide, verdict="cannot tell", reason=f"mixed steps were split {how}: by that alone it may be {reach}")


def _ends(ratio: float, reference: SplitBounds, other: SplitBounds) -> tuple[float, float]:
    """Lowest and highest ratio that the bounds allow; the latter is infinite where a price may be 0."""
    if reference.method == other.method:
        pairs = ((other.low, reference.low), (other.high, reference.high))
    else:
        pairs = ((other.low, reference.high), (other.high, reference.low))
    # both at a low end of 0 say nothing of the ratio
    found = [ratio * up / down if down else math.inf for up, down in pairs if up or down]
    return min(found), max(found)


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf
