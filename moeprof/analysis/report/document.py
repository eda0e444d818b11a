"""The Document: what a report says, before it looks like anything.

metrics -> Document -> renderer. Values stay numbers with their unit; renderers make text of them with core/units.py.
Nothing here computes, nothing here knows HTML.

What a Document says when it compares: metrics side by side with their ratios, and one figure becoming another.

Several small charts over one time axis, as data: what the device did during the passes of a model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from moeprof.analysis.compare.tables import RatioTable
from moeprof.analysis.doubt import Doubt
from moeprof.analysis.stats.estimate import Ratio
from moeprof.core.metric import Card, MetricValue


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRow:
    """One gate of a regression check.

    Attributes:
        label: the figure, for people.
        card: of the metric.
        name: stable identifier, with labels: ``step_mean_s{phase=decode}``.
        reference, other: the values; None where a side has none (a lock-step ratio has neither).
        ratio: other / reference with verdict and reason.
        by_difference: what counts is the difference of the values (or the new value alone), not their ratio.
        n: samples in words.
        limit: what is allowed, in words: ``+3 %``, ``no rise``, ``at most 50 ms``.
        decide: what would decide an undecided gate, or None.
    """

    label: str
    card: Card
    name: str
    reference: MetricValue | None
    other: MetricValue | None
    ratio: Ratio
    by_difference: bool
    n: str
    limit: str
    decide: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GateTable:
    """Gates with their verdicts, most important first.

    Attributes:
        title: heading.
        rows: the gates.
        folded: True for a table that a page should show closed at first.
    """

    title: str
    rows: tuple[GateRow, ...]
    folded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WaterfallStep:
    """One bar of a waterfall.

    Attributes:
        label: name of the level or of the change.
        kind: ``level`` stands on the axis; ``change`` goes from the level before to the level after.
        value: of a level; signed for a change.
        low, high: 95 % interval of it, or None.
        told: False for a change that cannot be told from 0.
        text: one sentence on what it is.
    """

    label: str
    kind: Literal["level", "change"]
    value: float
    low: float | None = None
    high: float | None = None
    told: bool = True
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waterfall:
    """How one figure becomes another, change by change: the sparsity ladder.

    Attributes:
        name, title, caption: as in Chart.
        unit: of all values.
        steps: from left to right.
    """

    name: str
    title: str
    caption: str
    unit: str
    steps: tuple[WaterfallStep, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineLine:
    """One quantity over time.

    Attributes:
        name: of the line; empty where its panel says it all.
        stretches: (times in s, values), one per pass; nothing is drawn between them.
        style: how it is drawn.
    """

    name: str
    stretches: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]
    style: Literal["line", "dashed"] = "line"


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelinePanel:
    """One of the small charts; all its lines have one unit."""

    label: str
    unit: str
    lines: tuple[TimelineLine, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineSpan:
    """A stretch of time that is marked across all panels, in s; ``label`` says why."""

    start_s: float
    end_s: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Small charts under each other, over one time axis.

    Attributes:
        name, title, caption: as in Chart.
        panels: from top to bottom.
        spans: marked stretches.
        passes: (start in s, name) of every pass, in order.
        end_s: end of the time axis.
    """

    name: str
    title: str
    caption: str
    panels: tuple[TimelinePanel, ...]
    spans: tuple[TimelineSpan, ...]
    passes: tuple[tuple[float, str], ...]
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelColumn:
    """One model of the report. ``subtitle`` says what it is: total / active parameters, E and k, dtype."""

    name: str
    status: str
    subtitle: str
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a table of metrics: a metric across models.

    Attributes:
        label: for people.
        card: the metric's card (unit, direction, formula, source).
        name: full metric name, statistic included.
        values: one per model, None where the model has no such metric.
    """

    label: str
    card: Card
    name: str
    values: tuple[MetricValue | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricTable:
    """Rows of metrics under one heading."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FactTable:
    """Plain facts as text: the machine, the workload, the schedule."""

    title: str
    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Paragraph:
    """A sentence or two."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A named line or cloud of points. ``band`` is (low, high) per point, or empty.

    ``labels`` is a name per point, or empty; for few points: each is written beside its point ("32 users").
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    style: Literal["line", "points", "steps", "dashed"] = "line"
    band: tuple[tuple[float, float], ...] = ()
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Lines and points over two axes. Units are those of core/units.py (``s``, ``ratio``, ``USD``, ``experts``...).

    Attributes:
        name: stable identifier (anchor in the page).
        title: what it shows.
        caption: how to read it.
        x_label, y_label: axis names.
        x_unit, y_unit: units of the values.
        series: what is drawn.
        log_x, log_y: logarithmic axes.
    """

    name: str
    title: str
    caption: str
    x_label: str
    x_unit: str
    y_label: str
    y_unit: str
    series: tuple[Series, ...]
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMap:
    """Load of each expert of each layer, as a multiple of the mean (1 = balanced).

    Attributes:
        name, title, caption: as in Chart.
        layers: row names.
        loads: per layer, per expert: tokens sent to it over the mean of the layer; shorter rows = fewer experts.
        counts: the same in tokens.
        null_high: load of the busiest expert that uniform routing would be expected to give, per layer, or empty.
        variants: other cuts of the same data (phase, class) by label, first is shown; each (label, loads, counts).
    """

    name: str
    title: str
    caption: str
    layers: tuple[str, ...]
    variants: tuple[HeatMapVariant, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMapVariant:
    """One cut of a heat map: a phase, a request class, or all."""

    label: str
    loads: tuple[tuple[float, ...], ...]
    counts: tuple[tuple[int, ...], ...]
    null_high: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StackedBars:
    """One bar per model, split into parts: memory by group, cost by phase.

    Attributes:
        bars: bar names.
        parts: part name -> one value per bar (None = unknown, left out).
        unit: of the values.
        colours: number of each part's colour, so that a part has one colour in several figures; empty: in order.
    """

    name: str
    title: str
    caption: str
    bars: tuple[str, ...]
    parts: tuple[tuple[str, tuple[float | None, ...]], ...]
    unit: str
    colours: tuple[int, ...] = ()

    def colour_of(self, part: int) -> int:
        """Number of the colour of a part, by its place."""
        return self.colours[part] if self.colours else part


Table = MetricTable | RatioTable | GateTable | FactTable
Block = Paragraph | Table | Chart | Timeline | HeatMap | StackedBars | Waterfall


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of the report."""

    name: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A whole report.

    Attributes:
        title: the workload's name.
        run: the record's folder name.
        status: done | failed | interrupted | started.
        started_at: ISO time.
        headline: one sentence with the answer.
        subtitle: device, price and traffic in one line.
        banners: things that change how everything must be read (routing overridden, random weights, interrupted).
        models: the columns.
        first_screen: the table everybody sees.
        sections: the rest.
        doubts: "Reasons to doubt this".
        cards: the cards of all metrics in the report, for the glossary.
        workload_text: the YAML as the user wrote it.
        notes: sentences that stand under the headline: each model's dollars, what each router does.
    """

    title: str
    run: str
    status: str
    started_at: str
    headline: str
    subtitle: str
    banners: tuple[str, ...]
    models: tuple[ModelColumn, ...]
    first_screen: tuple[Row, ...]
    sections: tuple[Section, ...]
    doubts: tuple[Doubt, ...]
    cards: tuple[Card, ...]
    workload_text: str = ""
    notes: tuple[str, ...] = field(default_factory=tuple)
