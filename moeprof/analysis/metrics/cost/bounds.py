"""How far a price of one side may lie from its figure, by what is assumed of mixed steps (docs/metrics.md#cost-split).

The bounds stand among the metrics, as ``*_low`` and ``*_high`` of a price; so a saved baseline has them, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from moeprof.analysis.stats.estimate import Estimate
from moeprof.core.metric import MetricValue

if TYPE_CHECKING:
    from moeprof.analysis.metrics.cost.bill import CostSplit

PRICE_OF_SIDE = re.compile(r"usd_per_1m_(input|output)_tokens(_with_cached|_busy|_low|_high)?")
Key = tuple[str, tuple[tuple[str, str], ...]]
METHOD, METHOD_LABEL = "mixed_steps_ratio", "split_method"


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitBounds:
    """Ends of a price under the split's assumptions.

    Attributes:
        low, high: as multiples of the price.
        method: where the stand-alone costs came from, ``pure`` where nothing had to be split.
    """

    low: float
    high: float
    method: str

    def held(self, price: Estimate) -> Estimate:
        """The price, its interval widened to hold the bounds; without one it stays without: bounds are too narrow."""
        if price.value is None or price.low is None or price.high is None:
            return price
        low, high = price.value * self.low, price.value * self.high
        return replace(price, low=min(price.low, low), high=max(price.high, high))


def output_bounds(splits: Sequence[CostSplit]) -> SplitBounds | None:
    """Of the output price of some passes; None where they have none."""
    known = [split for split in splits if split.input_bounds_usd is not None and split.usd_output]
    if not known:
        return None
    mine = sum(split.usd_output or 0.0 for split in known)
    ends = [
        sum(split.run_cost_usd - (split.input_bounds_usd or (0.0, 0.0))[end] for split in known) / mine
        for end in (1, 0)
    ]
    methods = sorted({split.busy.method for split in known})
    return SplitBounds(low=min(ends[0], 1.0), high=max(ends[1], 1.0), method="+".join(methods))


def split_bounds(values: Iterable[MetricValue], value: MetricValue) -> SplitBounds | None:
    """The bounds of one price among the values that it stands with; None for other figures, and where none are known.

    Args:
        values: of one model.
        value: one of them: of a launch, or of all together.
    """
    told = PRICE_OF_SIDE.fullmatch(value.name)
    if told is None or not value.value:
        return None
    beside = [other for other in values if _same(other, value)]
    stem = f"usd_per_1m_{told[1]}_tokens"
    ends = {other.name.removeprefix(stem): other.value for other in beside if other.name.startswith(stem)}
    low, high = ends.get("_low"), ends.get("_high")
    own = ends.get(told[2]) if told[2] in ("_low", "_high") else ends.get("")
    if low is None or high is None or not own:
        return None
    methods = sorted(other.labels.get(METHOD_LABEL, "") for other in beside if other.name == METHOD)
    return SplitBounds(low=min(low / own, 1.0), high=max(high / own, 1.0), method="+".join(methods))


def _same(other: MetricValue, value: MetricValue) -> bool:
    """Of the same passes."""
    return all(other.labels.get(name) == value.labels.get(name) for name in ("traffic", "launch"))


def with_split_bounds(values: Sequence[MetricValue]) -> list[MetricValue]:
    """The values, intervals of prices of one side widened to hold the bounds of the split.

    Without an interval over rounds there is none: bounds alone would be too narrow.
    """
    return [_widened(value, split_bounds(values, value)) for value in values]


def _widened(value: MetricValue, bounds: SplitBounds | None) -> MetricValue:
    if bounds is None or value.value is None or value.name.endswith(("_low", "_high")):
        return value  # a bound has the spread of rounds alone
    held = bounds.held(Estimate(value=float(value.value), low=value.ci_low, high=value.ci_high))
    return replace(value, ci_low=held.low, ci_high=held.high)


def bounds_by_figure(values: Iterable[MetricValue]) -> dict[Key, SplitBounds]:
    """The bounds of every price of one side, of all launches together."""
    together = [value for value in values if "launch" not in value.labels]
    found = {(value.name, tuple(sorted(value.labels.items()))): split_bounds(together, value) for value in together}
    return {figure: bounds for figure, bounds in found.items() if bounds is not None}
