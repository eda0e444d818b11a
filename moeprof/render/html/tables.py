"""Metric values as the page shows them: text, interval, chance level, and what hovering or unfolding adds.

Comparisons as the page shows them: a value and, beside it, its ratio to the reference with a verdict in words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from moeprof.analysis.compare.tables import RatioTable
from moeprof.analysis.report.document import GateTable, Row, Waterfall
from moeprof.analysis.stats.estimate import Ratio
from moeprof.core.metric import MetricValue
from moeprof.core.units import NOT_AVAILABLE, interval, short
from moeprof.render.cells import (
    CANNOT_TELL,
    INTERVAL_HEAD,
    gate_cells,
    gate_notes,
    ratio_interval,
    ratio_text,
    shown_ratio,
    step_interval,
    step_text,
    tone,
)
from moeprof.render.html.charts.waterfall import draw_waterfall

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One value of a table.

    Attributes:
        text: in display units, or ``n/a``, or a dash where the model has no such metric.
        kind: "" for a good value, ``na`` (not measured), ``doubtful`` (a check failed) or ``none``.
        interval: the 95 % interval, or "".
        chance: what chance alone would give, or "".
        detail: everything else, one fact a line.
    """

    text: str
    kind: str
    interval: str = ""
    chance: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """One row of a metric table.

    Attributes:
        label: for people.
        name: of the metric, where the label is another.
        per: what dollars are per, or "".
        better: lower, higher or neither.
        anchor: id of its card in the glossary.
        where: the labels that all values share, for example "phase decode, traffic open".
        cells: one per model.
    """

    label: str
    name: str
    per: str
    better: str
    anchor: str
    where: str
    cells: tuple[Cell, ...]


def anchor(card_name: str) -> str:
    """The id of a card in the glossary: ``ttft_*_s`` -> ``card-ttft_X_s``."""
    return "card-" + "".join(c if c.isalnum() or c in "_-" else "X" for c in card_name)


def per_what(row: Row) -> str:
    """What dollars are per, where the label does not say it already: ``1M tokens``."""
    unit = row.card.unit
    per = unit.removeprefix("USD").removeprefix(" / ") if unit.startswith("USD") else ""
    return "" if per and per.partition(" ")[0] in row.label else per


def table_row(row: Row) -> TableRow:
    """A row of the Document as the page shows it."""
    labels = [frozenset(value.labels.items()) for value in row.values if value is not None]
    shared = frozenset.intersection(*labels) if labels else frozenset()
    return TableRow(
        label=row.label,
        name="" if row.name == row.label else row.name,
        per=per_what(row),
        better=row.card.better,
        anchor=anchor(row.card.name),
        where=", ".join(f"{key.replace('_', ' ')} {text}" for key, text in sorted(shared)),
        cells=tuple(cell(value, row.card.unit, shared) for value in row.values),
    )


def cell(value: MetricValue | None, unit: str, known: Labels = frozenset()) -> Cell:
    """One value as the page shows it; labels in ``known`` are said elsewhere."""
    if value is None:
        return Cell(text="\u2013", kind="none")
    details = _details(value, known)
    if value.value is None:
        return Cell(text=NOT_AVAILABLE, kind="na", detail="\n".join(details) or "not measured")
    text, between = short(value.value, unit), ""
    if value.ci_low is not None and value.ci_high is not None:
        between = interval(value.ci_low, value.ci_high, unit)
        if short(value.ci_low, unit) == short(value.ci_high, unit) == text:
            between = ""
            details.append("the 95 % interval lies within the digits shown")
    return Cell(
        text=text,
        kind="" if value.valid else "doubtful",
        interval=between,
        chance="\n".join(f"{name} chance {short(null, unit)}" for name, null in sorted(value.null.items())),
        detail="\n".join(details),
    )


def _details(value: MetricValue, known: Labels) -> list[str]:
    """One fact a line: reasons first, then how the number came about."""
    lines = [] if value.valid or value.value is None else ["A check failed; do not rely on this figure."]
    lines += value.reasons
    count = "" if value.n is None else f"n {value.n:,}"
    lines += [part for part in ("counted exactly" if value.exact else "", count) if part]
    labels = sorted(value.labels.items() - known)
    return lines + [f"{key.replace('_', ' ')} {text}" for key, text in labels]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """The answer for one model, large: dollars per million output tokens, input beside it, three more facts."""

    index: int
    name: str
    subtitle: str
    status: str
    error: str | None
    main: tuple[str, Cell] | None
    share: float | None
    facts: tuple[tuple[str, Cell], ...]


MAIN_NAME = "usd_per_1m_output_tokens"


def main_row(rows: Sequence[Row]) -> Row | None:
    """The row that is printed large: dollars per million output tokens, else the first row."""
    return next((r for r in rows if r.name.startswith(MAIN_NAME)), rows[0] if rows else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioCell:
    """A ratio beside its value: text, interval, the verdict and its tone, and why it is missing or undecided."""

    text: str
    interval: str
    verdict: str
    tone: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The head of one model's columns; ``is_alone``: no column of ratios stands beside its values."""

    name: str
    subtitle: str
    colour: str
    is_reference: bool
    is_alone: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareRow:
    """One metric: as in any table, and per model its ratio cell (None in the reference's place)."""

    row: TableRow
    pairs: tuple[tuple[Cell, RatioCell | None], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareTable:
    """A drawn RatioTable."""

    title: str
    folded: bool
    heads: tuple[Head, ...]
    rows: tuple[CompareRow, ...]


def compare_table(table: RatioTable, subtitles: Mapping[str, str], colours: Mapping[str, str]) -> CompareTable:
    """The table for the template; subtitles and colours are by model name, where the page knows the name."""
    heads = tuple(
        Head(
            name=name,
            subtitle=subtitles.get(name, ""),
            colour=colours.get(name, f"m{i % 7}"),
            is_reference=table.has_ratios and i == table.reference,
            is_alone=not table.has_ratios or i == table.reference,
        )
        for i, name in enumerate(table.columns)
    )
    rows = []
    for row in table.rows:
        plain = table_row(Row(label=row.label, card=row.card, name=row.name, values=row.values))
        pairs = tuple(
            (value, None if heads[i].is_alone else ratio_cell(shown_ratio(row.values[i], row.ratios[i])))
            for i, value in enumerate(plain.cells)
        )
        rows.append(CompareRow(row=plain, pairs=pairs))
    return CompareTable(
        title=table.title,
        folded=table.folded,
        heads=heads,
        rows=tuple(rows),
    )


def ratio_cell(ratio: Ratio | None) -> RatioCell:
    """One ratio as the page shows it."""
    if ratio is None:
        return RatioCell(text="", interval="", verdict="", tone="none", detail="")
    return RatioCell(
        text=ratio_text(ratio),
        interval=ratio_interval(ratio)[1:-1],
        verdict=ratio.verdict,
        tone="na" if ratio.value is None else tone(ratio.verdict),
        detail=ratio.reason or "",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GateLine:
    """One gate: its name as in any table, values, and the ratio cell."""

    row: TableRow
    values: tuple[Cell, Cell]
    ratio: RatioCell
    n: str
    limit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnGates:
    """A drawn GateTable; without ``has_values`` its two columns of values would be empty."""

    title: str
    folded: bool
    has_values: bool
    lines: tuple[GateLine, ...]
    notes: tuple[str, ...]


def drawn_gates(table: GateTable) -> DrawnGates:
    """The table for the template."""
    lines = []
    for gate in table.rows:
        plain = table_row(Row(label=gate.label, card=gate.card, name=gate.name, values=(gate.reference, gate.other)))
        texts = gate_cells(gate)
        ratio = RatioCell(
            text=texts["change"],
            interval=texts[INTERVAL_HEAD][1:-1],
            verdict=texts["verdict"],
            tone=tone(gate.ratio.verdict),
            detail=gate.ratio.reason or "",
        )
        paired = gate.reference is None and gate.other is None
        values = (Cell(text="", kind="none"),) * 2 if paired else (plain.cells[0], plain.cells[1])
        lines.append(GateLine(row=plain, values=values, ratio=ratio, n=gate.n, limit=gate.limit))
    has_values = any(cell.text for line in lines for cell in line.values)
    notes = gate_notes(table)
    return DrawnGates(title=table.title, folded=table.folded, has_values=has_values, lines=tuple(lines), notes=notes)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLine:
    """One line of the table under a waterfall."""

    label: str
    is_level: bool
    figure: str
    interval: str
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WaterfallDrawing:
    """A drawn waterfall (None when it has no steps) and its figures as a table."""

    picture: Markup | None
    lines: tuple[StepLine, ...]


def waterfall_drawing(waterfall: Waterfall) -> WaterfallDrawing:
    """Picture and table of a waterfall."""
    lines = tuple(
        StepLine(
            label=step.label,
            is_level=step.kind == "level",
            figure=step_text(step, waterfall.unit),
            interval=step_interval(step, waterfall.unit)[1:-1],
            note=" ".join(part for part in ("" if step.told else f"{CANNOT_TELL.capitalize()}.", step.text) if part),
        )
        for step in waterfall.steps
    )
    return WaterfallDrawing(picture=draw_waterfall(waterfall), lines=lines)
