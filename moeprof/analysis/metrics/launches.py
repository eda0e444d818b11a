"""Several launches of one model: the launch is the unit of repetition, rounds are nested in it.

Each launch gives its own values; the value over launches is their mean with a 95 % t-interval over launches. Counted
facts and anything else that is equal in all launches stays as it is. Router figures come from the same tokens in every
launch, so their interval is the widest of the launches' own; shares of requests have it joined with that over launches.
Every launch's own values are kept, labelled ``launch``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from moeprof.analysis.metrics.cards import card_for
from moeprof.analysis.metrics.cost.bounds import with_split_bounds
from moeprof.analysis.stats import intervals
from moeprof.core.metric import MetricValue

P_VALUES = "p-values of several launches are not combined; see those labelled launch"
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
    return with_split_bounds(together) + apart


def _combined(group: list[MetricValue]) -> MetricValue:
    known = [value for value in group if value.value is not None]
    reasons = tuple(dict.fromkeys(reason for value in group for reason in value.reasons))
    if not known:
        return replace(group[0], reasons=reasons)
    numbers = [value.value for value in known if value.value is not None]
    if len(known) < len(group):
        reasons = (*reasons, f"known in {len(known)} of {len(group)} launches")
    valid = all(value.valid for value in known)
    card = card_for(known[0].name)
    if len(set(numbers)) == 1:
        # The same tokens were routed alike, or a counted fact: what varies is not the launch. Keep its own interval.
        return replace(known[0], valid=valid, reasons=reasons)
    if known[0].name.endswith("_p"):
        return replace(known[0], value=None, ci_low=None, ci_high=None, reasons=(*reasons, P_VALUES))
    own = _widest(known)
    if card.section == "routing":
        interval = own
    elif card.of_requests and own is not None:  # launches repeat the same requests
        interval = intervals.share_interval(own, [float(n) for n in numbers])
    else:
        interval, why = intervals.repeated_interval(
            [float(n) for n in numbers], unit="launch", bounded=_is_share(known)
        )
        # why a launch alone has no interval is not why their mean has none
        reasons = (*(reason for reason in reasons if not reason.startswith("no interval")), *([why] if why else []))
    low, high = interval or (None, None)
    return replace(
        known[0],
        value=sum(numbers) / len(numbers),
        ci_low=low,
        ci_high=high,
        exact=False,
        valid=valid,
        reasons=reasons,
        null=_mean_nulls(known),
    )


def _widest(known: list[MetricValue]) -> intervals.Interval | None:
    lows = [v.ci_low for v in known if v.ci_low is not None]
    highs = [v.ci_high for v in known if v.ci_high is not None]
    return (min(lows), max(highs)) if lows and highs else None


def _is_share(known: list[MetricValue]) -> bool:
    """A ratio that every launch put strictly between 0 and 1, with an interval that knew so."""
    ends = [end for v in known for end in (v.value, v.ci_high) if end is not None]
    return card_for(known[0].name).unit in ("ratio", "share") and all(0 < end <= 1 for end in ends)


def _mean_nulls(known: list[MetricValue]) -> dict[str, float]:
    names = set.intersection(*(set(value.null) for value in known))
    return {name: sum(value.null[name] for value in known) / len(known) for name in sorted(names)}
