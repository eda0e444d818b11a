"""Several launches of one model: the launch is the unit of repetition, rounds are nested in it (METRICS section 1).

Each launch gives its own values; the value over launches is their mean with a 95 % t-interval over launches. Counted
facts that are equal in all launches stay as they are. Every launch's own values are kept, labelled ``launch``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from moeprof.analysis import stats
from moeprof.core.metric import MetricValue

Key = tuple[str, tuple[tuple[str, str], ...]]


def over_launches(launches: Sequence[Sequence[MetricValue]]) -> list[MetricValue]:
    """Values of all launches together, then each launch's own. One launch is returned as it is."""
    if len(launches) == 1:
        return list(launches[0])
    groups: dict[Key, list[MetricValue]] = {}
    for values in launches:
        for value in values:
            groups.setdefault((value.name, tuple(sorted(value.labels.items()))), []).append(value)
    together = [_combined(group) for group in groups.values()]
    apart = [
        replace(value, labels={**value.labels, "launch": str(number)})
        for number, values in enumerate(launches)
        for value in values
        if not value.exact
    ]
    return together + apart


def _combined(group: list[MetricValue]) -> MetricValue:
    known = [value for value in group if value.value is not None]
    reasons = tuple(dict.fromkeys(reason for value in group for reason in value.reasons))
    if not known:
        return replace(group[0], reasons=reasons)
    numbers = [float(value.value) for value in known if value.value is not None]
    if all(value.exact for value in known) and len(set(numbers)) == 1:
        return known[0]
    if len(known) < len(group):
        reasons = (*reasons, f"known in {len(known)} of {len(group)} launches")
    low, high = _interval(numbers) or (None, None)
    return replace(
        known[0],
        value=sum(numbers) / len(numbers),
        ci_low=low,
        ci_high=high,
        exact=False,
        valid=all(value.valid for value in known),
        reasons=reasons,
    )


def _interval(numbers: list[float]) -> stats.Interval | None:
    """t-interval over launches, of the logarithm where all are positive: a duration's interval holds no negative."""
    if min(numbers) <= 0:
        return stats.t_interval(numbers)
    interval = stats.t_interval([math.log(number) for number in numbers])
    return None if interval is None else (math.exp(interval[0]), math.exp(interval[1]))
