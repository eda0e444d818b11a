"""The trend as a section: a chart per figure, what changed in it, and the baselines behind it.

What a baseline holds, as rows for people: where it is from, its headline figures, what can be judged against it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from moeprof.analysis.compare.ratios import FEWEST_LAUNCHES
from moeprof.analysis.metrics.cards import all_cards, card_for
from moeprof.analysis.metrics.lookup import pick_frozen
from moeprof.analysis.regress.stored import WANTED_LAUNCHES
from moeprof.analysis.regress.trend import FLOOR_RATIO, Trend, TrendSeries
from moeprof.analysis.report.document import Block, Chart, Paragraph, Section, Series
from moeprof.analysis.report.tables import facts
from moeprof.core.baseline.baseline import Baseline, BaselineModel
from moeprof.core.metric import MetricValue

CAPTION = "Band: 95 % interval. Upright lines: changes of level, and facts that changed."
FEWEST_POINTS = 3  # two points are a comparison, and the gates made it
MOST_EVENTS = 6  # lines in one chart; the table has them all


def trend_section(trend: Trend, *, judged: tuple[str, str] | None = None) -> Section | None:
    """The trend over the last baselines; None where no figure has three points.

    Args:
        trend: the figures.
        judged: name and ISO time of the run that is judged, which may stand among the baselines.
    """
    shown = [series for series in trend.series if len(series.points) >= FEWEST_POINTS]
    if not shown:
        return None
    several = len({series.model for series in shown}) > 1
    drawn = [series for series in shown if _is_drawn(series)]
    rows = [(_title(series, several), series.sentence) for series in drawn]
    if same := len(shown) - len(drawn):
        rows.append((f"{same} other counted figure{'s' if same > 1 else ''}", "the same throughout."))
    blocks: list[Block] = [
        Paragraph(text=_what(trend)),
        facts("Changes of level", rows),
        *(_chart(series, n, trend, several) for n, series in enumerate(drawn, start=1)),
    ]
    if trend.events:
        names = [name for name, _ in trend.baselines]
        events = tuple((f"{event.number}: {names[event.number - 1]}", event.text) for event in trend.events)
        blocks.append(facts("Facts that changed", events))
    numbered = tuple(
        (str(number), " ".join((name, *when[:16].split("T"))) + (", this run" if (name, when) == judged else ""))
        for number, (name, when) in enumerate(trend.baselines, 1)
    )
    blocks.append(facts("Baselines", numbered))
    return Section(name="trend", title=_section_title(trend, judged), blocks=tuple(blocks))


def _section_title(trend: Trend, judged: tuple[str, str] | None) -> str:
    """Without the judged run, which is no baseline (yet), in the count."""
    own = judged in trend.baselines
    num = len(trend.baselines) - own
    which = "last baseline" if num == 1 else f"last {num} baselines"
    return f"Trend over the {which}{' and this run' if own else ''}"


def _what(trend: Trend) -> str:
    older = f" {trend.left_out} older ones are not shown." if trend.left_out else ""
    return (
        f"Counted figures change whenever they differ. In the others a change of level is more than {FLOOR_RATIO:.0%} "
        "and larger than the baselines' own spread explains; a series without any shows a false one in at most "
        f"{trend.alpha:.1%} of cases. A level needs two baselines, so the newest alone is judged by the gates.{older}"
    )


def _is_drawn(series: TrendSeries) -> bool:
    """A counted figure that never changed needs no picture."""
    return not series.is_counted or bool(series.changes)


def _title(series: TrendSeries, several: bool) -> str:
    return f"{series.model}: {series.label}" if several else series.label


def _chart(series: TrendSeries, number: int, trend: Trend, several: bool) -> Chart:
    points = series.points
    has_band = all(point.low is not None and point.high is not None for point in points)
    band = tuple((point.low or 0.0, point.high or 0.0) for point in points) if has_band else ()
    heights = [point.value for point in points] + [end for pair in band for end in pair]
    low, high = min(heights), max(heights)
    line = Series(
        name=series.model,
        x=tuple(float(point.number) for point in points),
        y=tuple(point.value for point in points),
        band=band,
        labels=_labels(series, trend),
    )
    steps = [
        _upright(
            f"step of {change.ratio:.3f}x" if change.ratio else "step", points[change.index].number, 0.6, low, high
        )
        for change in series.changes
    ]
    events = [_upright(event.text, event.number, 0.4, low, high) for event in trend.events[-MOST_EVENTS:]]
    return Chart(
        name=f"trend-{number}",
        title=_title(series, several),
        caption=CAPTION if band else CAPTION.partition(". ")[2],
        x_label="baseline",
        x_unit="",
        y_label=series.label,
        y_unit=series.card.unit,
        series=(line, *steps, *events),
    )


def _upright(name: str, number: int, back: float, low: float, high: float) -> Series:
    """A line between this baseline and the one before; ``back`` keeps steps and facts from covering each other."""
    return Series(name=f"{name}, at {number}", x=(number - back,) * 2, y=(low, high), style="dashed")


def _labels(series: TrendSeries, trend: Trend) -> tuple[str, ...]:
    """Names of the first and the last baseline, and of those where the level changed; the others stand in a table."""
    named = {0, len(series.points) - 1, *(change.index for change in series.changes)}
    return tuple(trend.baselines[point.number - 1][0] if i in named else "" for i, point in enumerate(series.points))


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineRow:
    """One line.

    Attributes:
        of: ``baseline``, or the model.
        what: name of the fact or metric, labels included.
        value: text of a fact, number of a metric; None: not recorded or not measured.
        unit: of a number.
        low, high: 95 % interval, or None.
        n: samples behind it, or None.
    """

    of: str
    what: str
    value: str | float | int | None
    unit: str = ""
    low: float | None = None
    high: float | None = None
    n: int | None = None


def baseline_rows(baseline: Baseline) -> tuple[BaselineRow, ...]:
    """Facts of the run, then of each model its facts, headline figures and sizes."""
    head = ("name", "workload", "run", "created_at", "status", "label")
    rows = [BaselineRow(of="baseline", what=name, value=getattr(baseline, name) or None) for name in head]
    rows.append(BaselineRow(of="baseline", what="price", value=3600 * baseline.usd_per_second, unit="USD / h"))
    rows += [BaselineRow(of="baseline", what=name, value=_text(value)) for name, value in baseline.facts.items()]
    return (*rows, *(row for model in baseline.models for row in _of_model(model)))


def num_launches(model: BaselineModel) -> int:
    """Launches that measured something."""
    return len(model.steps.launches) if model.steps is not None else max(1, 1 + max(_launch_labels(model), default=0))


def shortcomings(baseline: Baseline) -> tuple[str, ...]:
    """What cannot be judged against it, and what to do, one sentence each."""
    said = list(baseline.notes)
    few = {model.name: num_launches(model) for model in baseline.models if num_launches(model) < FEWEST_LAUNCHES}
    if few:
        counts = ", ".join(f"{name} {number}" for name, number in few.items())
        said.append(
            f"fewer than {FEWEST_LAUNCHES} launches ({counts}): no figure of time can be judged against it; "
            f"run with --launches {WANTED_LAUNCHES}, or use regress --ab"
        )
    without = [model.name for model in baseline.models if model.num_experts and model.picks is None]
    if without and not baseline.notes:
        said.append(f"no picks of forced tokens ({', '.join(without)}): routing_agreement_ratio cannot be judged")
    return tuple(said)


def _of_model(model: BaselineModel) -> Iterator[BaselineRow]:
    for name, fact in model.facts.items():
        yield BaselineRow(of=model.name, what=name, value=_text(fact))
    places = [(place, card.name.replace("*", place.of)) for card in all_cards() for place in card.baseline]
    for place, name in sorted(places, key=lambda one: one[0].rank):
        labels = place.labels
        value = pick_frozen(model, name, own_traffic=None, **labels)
        if value is not None:
            yield _metric(model.name, value.as_headline, labels)
    yield BaselineRow(of=model.name, what="metrics", value=len(model.metrics))
    yield BaselineRow(of=model.name, what="launches", value=num_launches(model))
    yield BaselineRow(of=model.name, what="routing layers", value=len(model.routing.layers) if model.routing else 0)
    yield BaselineRow(of=model.name, what="forced tokens", value=model.picks.num_tokens if model.picks else 0)


def _metric(of: str, value: MetricValue, labels: dict[str, str]) -> BaselineRow:
    said = ",".join(f"{name}={label}" for name, label in labels.items())
    return BaselineRow(
        of=of,
        what=f"{value.name}{{{said}}}" if said else value.name,
        value=value.value,
        unit=card_for(value.name).unit,
        low=value.ci_low,
        high=value.ci_high,
        n=value.n,
    )


def _launch_labels(model: BaselineModel) -> Iterator[int]:
    return (int(value.labels["launch"]) for value in model.metrics if value.labels.get("launch", "").isdigit())


def _text(value: object) -> str | None:
    if isinstance(value, list | tuple):
        return ", ".join("none" if item is None else str(item) for item in value)
    return None if value is None else str(value)
