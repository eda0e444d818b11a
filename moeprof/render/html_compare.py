"""Comparisons as the page shows them: a value and, beside it, its ratio to the reference with a verdict in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

from moeprof.analysis.document import GateTable, Ratio, RatioTable, Row, Waterfall
from moeprof.render.cells_compare import (
    CANNOT_TELL,
    ratio_interval,
    ratio_text,
    shown_ratio,
    step_interval,
    step_text,
    tone,
)
from moeprof.render.cells_gates import INTERVAL_HEAD, gate_cells, gate_notes
from moeprof.render.html_cells import Cell, TableRow, table_row
from moeprof.render.svg_waterfall import draw_waterfall


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
