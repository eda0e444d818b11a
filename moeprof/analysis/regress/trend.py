"""Figures over the last baselines: their points, where their level changed, and which facts changed meanwhile."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from moeprof.analysis.compare.comparable import Difference, classes_of, differences, facts_of, price_difference
from moeprof.analysis.metrics.cards import card_for
from moeprof.analysis.metrics.cost.bounds import bounds_by_figure
from moeprof.analysis.metrics.labels import figure_label, from_to, shared_traffic
from moeprof.analysis.metrics.lookup import Key, by_key, by_launch
from moeprof.analysis.regress.result import Regression
from moeprof.analysis.stats import intervals
from moeprof.analysis.stats.change_points import ALPHA, FEWEST, ChangePoint, change_points, counted_changes
from moeprof.core import units
from moeprof.core.baseline.baseline import Baseline
from moeprof.core.metric import Card

LAST, MOST = 20, 200  # baselines by default and at most: the search takes seconds beyond
FAMILY_ALPHA = 0.05  # of all noisy figures of a trend together
FLOOR_RATIO = 0.03  # of noisy figures: smaller changes of level are not called one


@dataclass(frozen=True, slots=True, kw_only=True)
class TrendPoint:
    """One baseline's value.

    Attributes:
        number: of the baseline in the trend, from 1.
        value: in the unit of the card.
        low, high: 95 % interval over its launches, or None.
        split_method: how mixed steps were split, of a price of one side; else empty.
    """

    number: int
    value: float
    low: float | None = None
    high: float | None = None
    split_method: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrendSeries:
    """One figure of one model.

    Attributes:
        model: its name.
        key: name and labels of the figure.
        card: of the metric.
        label: for people.
        points: of the baselines that have it, in time order.
        changes: where its level changed; their ``index`` is into ``points``.
        is_counted: every difference is a change; else changes are told from noise.
        sentence: what to say of it.
    """

    model: str
    key: Key
    card: Card
    label: str
    points: tuple[TrendPoint, ...]
    changes: tuple[ChangePoint, ...]
    is_counted: bool
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrendEvent:
    """Facts that are other ones from this baseline on: a driver, a library, the device, the price."""

    number: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """Figures over baselines.

    Attributes:
        baselines: (name, ISO time) of each, in time order; the first has number 1.
        series: the figures.
        events: facts that changed between neighbours.
        left_out: baselines that are older and not shown.
        alpha: chance of a false change in one noisy figure.
    """

    baselines: tuple[tuple[str, str], ...]
    series: tuple[TrendSeries, ...]
    events: tuple[TrendEvent, ...]
    left_out: int
    alpha: float


def wanted_figures(regression: Regression) -> tuple[tuple[str, Key], ...]:
    """(model, figure) of every gate whose two sides may be compared."""
    comparable = (gate for gate in regression.gates if gate.verdict != "incomparable")
    return tuple(dict.fromkeys((gate.model, gate.key) for gate in comparable))


def trend(baselines: Sequence[Baseline], wanted: Sequence[tuple[str, Key]], *, last: int = LAST) -> Trend:
    """The figures over baselines of one workload; they are put into the order of their times.

    Args:
        baselines: in any order; the run that is judged may stand among them.
        wanted: model and figure; those that no baseline has are left out.
        last: the newest so many are shown, at most MOST; ``left_out`` counts the others.
    """
    ordered = sorted(baselines, key=lambda baseline: (baseline.created_at, baseline.name))
    kept = ordered[max(len(ordered) - min(last, MOST), 0) :]
    events = _events(kept)
    found = {(model, key): _points(kept, model, key) for model, key in wanted}
    shown = {pair: points for pair, points in found.items() if points[0]}
    noisy = sum(not counted for _, counted in shown.values())
    alpha = min(ALPHA, FAMILY_ALPHA / noisy) if noisy else ALPHA
    names = [baseline.name for baseline in kept]
    traffic = shared_traffic(key for _, key in shown)
    series = [_series(pair, traffic, *points, events, names, alpha) for pair, points in shown.items()]
    return Trend(
        baselines=tuple((baseline.name, baseline.created_at) for baseline in kept),
        series=tuple(series),
        events=tuple(events),
        left_out=len(ordered) - len(kept),
        alpha=alpha,
    )


def _points(baselines: Sequence[Baseline], model: str, key: Key) -> tuple[list[TrendPoint], bool]:
    """Points of a figure, and whether it is counted."""
    points, counted = [], True
    for number, baseline in enumerate(baselines, start=1):
        held = baseline.model(model)
        value = None if held is None else by_key(held.metrics).get(key)
        if held is None or value is None or value.value is None:
            continue
        counted = counted and (value.exact or "exact" in classes_of(key[0]))
        launches = list(by_launch(held.metrics).get(key, {}).values())
        low, high = value.ci_low, value.ci_high
        if len(launches) > 1:
            low, high = intervals.repeated_interval(launches, unit="launch")[0] or (None, None)
        bounds = bounds_by_figure(held.metrics).get(key)
        points.append(
            TrendPoint(
                number=number,
                value=float(value.value),
                low=low,
                high=high,
                split_method="" if bounds is None else bounds.method,
            )
        )
    return points, counted


def _series(
    pair: tuple[str, Key],
    traffic: str | None,
    points: Sequence[TrendPoint],
    counted: bool,
    events: Sequence[TrendEvent],
    names: Sequence[str],
    alpha: float,
) -> TrendSeries:
    model, key = pair
    values, card, label = [point.value for point in points], card_for(key[0]), figure_label(key, hide_traffic=traffic)
    changes = counted_changes(values) if counted else change_points(values, floor_ratio=FLOOR_RATIO, alpha=alpha)
    said = [_change_text(change, points, card, events, names) for change in changes]
    if said:
        text = "; ".join(said)
    elif not counted and len(points) < FEWEST:
        text = f"{len(points)} points, {FEWEST} are the fewest in which a change of level can be found"
    else:
        text = f"{'the same' if counted else 'no change of level'} in {len(points)} points"
    return TrendSeries(
        model=model,
        key=key,
        card=card,
        label=label,
        points=tuple(points),
        changes=changes,
        is_counted=counted,
        sentence=f"{text}.",
    )


def _change_text(
    change: ChangePoint, points: Sequence[TrendPoint], card: Card, events: Sequence[TrendEvent], names: Sequence[str]
) -> str:
    """``worse: 24 ms -> 26.5 ms (1.104x) since main-11; meanwhile driver 550 -> 560``."""
    levels = from_to([units.short(level, card.unit) for level in (change.before, change.after)])
    word = ""
    if card.better != "neither":
        word = "better: " if (change.after < change.before) == (card.better == "lower") else "worse: "
    ratio = "" if change.ratio is None else f" ({change.ratio:.3f}x)"
    number = points[change.index].number
    methods = [point.split_method for point in points[change.index - 1 : change.index + 1]]
    split = " \u2192 ".join(methods)
    own = [f"mixed steps split by {split}"] if methods[0] != methods[1] else []
    own += [event.text for event in events if points[change.index - 1].number < event.number <= number]
    meanwhile = f", meanwhile {', '.join(own)}" if own else ""
    return f"{word}{levels}{ratio} since {names[number - 1]}{meanwhile}"


def _events(baselines: Sequence[Baseline]) -> list[TrendEvent]:
    """Facts that differ between neighbours."""
    found = []
    for number, (first, second) in enumerate(pairwise(baselines), start=2):
        differ = list(differences(facts_of(first), facts_of(second)))
        price = price_difference(first, second)
        differ += [price] if price and not math.isclose(first.usd_per_second, second.usd_per_second) else []
        texts = dict.fromkeys(text for difference in differ for text in event_texts(difference))
        found += [TrendEvent(number=number, text=text) for text in texts]
    return found


def event_texts(difference: Difference) -> list[str]:
    """``driver 550 -> 560``: of a list of versions only those that changed."""
    whose = f" of {difference.model}" if difference.model else ""
    if difference.name != "versions":
        return [f"{difference.name.replace('_', ' ')}{whose} {difference.first} \u2192 {difference.second}"]
    first, second = (
        dict(part.rpartition(" ")[::2] for part in text.split(", ")) for text in (difference.first, difference.second)
    )
    changed = [name for name in dict.fromkeys((*first, *second)) if first.get(name) != second.get(name)]
    return [f"{name} {first.get(name, 'none')} \u2192 {second.get(name, 'none')}" for name in changed]
