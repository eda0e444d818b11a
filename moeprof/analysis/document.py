"""The Document: what a report says, before it looks like anything.

metrics -> Document -> renderer. Values stay numbers with their unit; renderers make text of them with core/units.py.
Nothing here computes, nothing here knows HTML.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from moeprof.analysis.document_compare import GateRow as GateRow
from moeprof.analysis.document_compare import GateTable as GateTable
from moeprof.analysis.document_compare import Ratio as Ratio
from moeprof.analysis.document_compare import RatioRow as RatioRow
from moeprof.analysis.document_compare import RatioTable as RatioTable
from moeprof.analysis.document_compare import Waterfall as Waterfall
from moeprof.analysis.document_compare import WaterfallStep as WaterfallStep
from moeprof.analysis.document_timeline import Timeline as Timeline
from moeprof.core.metric import Card, MetricValue

Severity = Literal["note", "warning", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """A reason to distrust something in the report.

    Attributes:
        code: stable identifier, for example ``few_samples``.
        flag: latency, schedule, steady_state, energy, memory, routing, realism, isolation, overhead, cost.
        severity: ``error`` makes figures invalid, ``warning`` weakens them, ``note`` should be known.
        model: the model concerned, or None for the whole run.
        text: a sentence that says what was seen and what to do.
    """

    code: str
    flag: str
    severity: Severity
    model: str | None
    text: str


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
