"""The Document: what a report says, before it looks like anything.

metrics -> Document -> renderer. Values stay numbers with their unit; renderers make text of them with core/units.py.
Nothing here computes, nothing here knows HTML. A new kind of block is a class here, a member of ``Block``, and one
function in the table ``DRAW`` of every renderer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moeprof.analysis.doubt import Doubt
from moeprof.analysis.stats.estimate import Ratio
from moeprof.core.metric import Card, MetricValue


@dataclass(frozen=True, slots=True, kw_only=True)
class WaterfallStep:
    """One bar of a waterfall.

    Attributes:
        label: name of the level or of the change.
        kind: ``level`` stands on the axis; ``change`` goes from the level before to the level after.
        value: of a level; signed for a change.
        low, high: 95 % interval of it, or None.
        told: False for a change that is not distinguishable from 0.
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
class Cell:
    """One place of a table: a value, a ratio, both beside each other, or words.

    Attributes:
        value: measured, or None.
        ratio: to the reference; its verdict is the tone of the cell.
        text: words; with a ratio they stand in the place of its figure (``+0.24``). None: there are none.
        interval: of such a figure, in words.
    """

    value: MetricValue | None = None
    ratio: Ratio | None = None
    text: str | None = None
    interval: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a table: a metric across models, a gate, a fact.

    Attributes:
        label: for people.
        cells: one per column.
        name: full metric name, statistic included; empty for a fact.
        card: the metric's card (unit, direction, formula, source); None for a fact.
    """

    label: str
    cells: tuple[Cell, ...]
    name: str = ""
    card: Card | None = None

    @property
    def values(self) -> tuple[MetricValue | None, ...]:
        """Of every column."""
        return tuple(cell.value for cell in self.cells)

    @property
    def ratios(self) -> tuple[Ratio | None, ...]:
        """Of every column."""
        return tuple(cell.ratio for cell in self.cells)

    @property
    def unit(self) -> str:
        """Of its values."""
        return "" if self.card is None else self.card.unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows under one heading: metrics of models, their ratios, gates, or facts.

    Attributes:
        title: heading.
        columns: names of models, of runs, or of what the cells say.
        rows: most important first.
        head: what the rows are: ``metric``, ``gate``, or nothing for facts.
        reference: the column that ratios are to; None where the columns have no reference.
        compares: it is part of the answer: open in its section, on the terminal too, with its reasons as footnotes.
        folded: closed at first.
        notes: what stands under it; None: the reasons that its cells give.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    head: str = "metric"
    reference: int | None = None
    compares: bool = False
    folded: bool = False
    notes: tuple[str, ...] | None = None

    @property
    def judged(self) -> int | None:
        """The column that holds verdicts alone, as a table of gates has it."""
        cells = ((i, cell) for row in self.rows for i, cell in enumerate(row.cells))
        return next((i for i, cell in cells if cell.ratio is not None and cell.text is not None), None)


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
        variants: cuts of the data (all, a phase, a class), the first is shown.
    """

    name: str
    title: str
    caption: str
    layers: tuple[str, ...]
    variants: tuple[HeatMapVariant, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMapVariant:
    """One cut of a heat map: a phase, a request class, or all.

    Attributes:
        label: of the cut.
        loads: per layer, per expert: tokens sent to it over the mean of the layer; shorter rows = fewer experts.
        counts: the same in tokens.
        null_high: load of the busiest expert that uniform routing would be expected to give, per layer, or empty.
    """

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


Block = Paragraph | Table | Chart | Timeline | HeatMap | StackedBars | Waterfall


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of the report."""

    name: str
    title: str
    blocks: tuple[Block, ...]

    @property
    def compares(self) -> bool:
        """Whether it holds a part of the answer: then it stands open, on the terminal too."""
        return any(isinstance(b, Waterfall) or (isinstance(b, Table) and b.compares) for b in self.blocks)


Outcome = Literal["yes", "no", "depends", "cannot tell"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One question about a model against its rival, answered.

    Attributes:
        question: as a person asks it: ``cheaper?``.
        outcome: for the model in question.
        text: the evidence in a line: figures with their intervals, or why it cannot be told.
        figures: full names of the metrics that it rests on.
        clause: what the paragraph says of it, a predicate whose subject is the model; empty: nothing, or ``aside``.
        aside: the same as a sentence of its own, where no predicate holds.
        lean: 1 speaks for the model, -1 for its rival, 0 for neither.
    """

    question: str
    outcome: Outcome
    text: str
    figures: tuple[str, ...] = ()
    clause: str = ""
    aside: str = ""
    lean: Literal[-1, 0, 1] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Should one serve this model? In words that need no knowledge of the tool.

    Attributes:
        model: in question: the MoE where there is one.
        rival: what it is held against, or None.
        models: all that the answer speaks of.
        facts: what was found, in one sentence, and what could not be told.
        why: what a step of it reads, where that was seen; else empty.
        advice: what to do; empty where nothing can be advised.
        change: what would change it, or what to run next; empty where nothing is known.
        findings: question by question.
    """

    model: str
    rival: str | None
    models: tuple[str, ...]
    facts: str
    why: str
    advice: str
    change: str
    findings: tuple[Finding, ...]

    @property
    def paragraph(self) -> str:
        """All of it, to be read by itself."""
        return " ".join(part for part in (self.facts, self.why, self.advice, self.change) if part)


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
        workload_text: the YAML as the user wrote it.
        notes: sentences that stand under the headline: each model's dollars, what each router does.
        answer: stands before the headline, which is then its first piece of evidence; None where nothing was measured
            that one could serve.
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
    workload_text: str = ""
    notes: tuple[str, ...] = ()
    answer: Answer | None = None
