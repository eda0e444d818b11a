"""Tables as the page shows them: text, interval, chance level, verdict, and what hovering or unfolding adds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from moeprof.analysis.report.document import Cell as DocumentCell
from moeprof.analysis.report.document import Row, Table, Waterfall
from moeprof.analysis.stats.estimate import Ratio
from moeprof.core.metric import MetricValue
from moeprof.core.units import NOT_AVAILABLE, interval, short
from moeprof.render.cells import (
    ABSENT,
    CANNOT_TELL,
    footnotes,
    ratio_interval,
    ratio_text,
    shares,
    shown_ratio,
    step_interval,
    step_text,
    table_notes,
    tone,
)

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


def anchor(card_name: str) -> str:
    """The id of a card in the glossary: ``ttft_*_s`` -> ``card-ttft_X_s``."""
    return "card-" + "".join(c if c.isalnum() or c in "_-" else "X" for c in card_name)


def per_what(row: Row) -> str:
    """What dollars are per, where the label does not say it already: ``1M tokens``."""
    per = row.unit.removeprefix("USD").removeprefix(" / ") if row.unit.startswith("USD") else ""
    return "" if per and per.partition(" ")[0] in row.label else per


def row_head(row: Row) -> dict[str, str]:
    """The head of a row that has a card; ``where`` holds the labels that all its values share."""
    assert row.card is not None
    return {
        "label": row.label,
        "name": "" if row.name == row.label else row.name,
        "per": per_what(row),
        "better": row.card.better,
        "anchor": anchor(row.card.name),
        "where": ", ".join(f"{key.replace('_', ' ')} {text}" for key, text in sorted(_shared(row))),
    }


def _shared(row: Row) -> Labels:
    labels = [frozenset(value.labels.items()) for value in row.values if value is not None]
    return frozenset.intersection(*labels) if labels else frozenset()


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
    """The head of a column.

    Attributes:
        name, subtitle: of the model or run, or of what the column says.
        kind: its class.
        is_side: it is a model or a run and has a dot of its colour.
        is_reference: ratios are to it.
        is_pair: a column of ratios stands beside its values.
    """

    name: str
    kind: str
    subtitle: str = ""
    is_side: bool = False
    is_reference: bool = False
    is_pair: bool = False


Drawn = tuple[Literal["value", "ratio", "text"], Cell | RatioCell | str, str]  # a cell's macro, and whose it is


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Tables with the same columns, drawn as one.

    Attributes:
        kind: its classes.
        head: of the first column.
        heads: of the others.
        groups: heading and lines of each table.
        notes: what stands under it.
    """

    kind: str
    head: str
    heads: tuple[Head, ...]
    groups: tuple[tuple[str, tuple[tuple[dict[str, str], tuple[Drawn, ...]], ...]], ...]
    notes: tuple[str, ...] = ()


GATE_HEADS = {"change": "change, verdict", "limit": "allowed"}


def drawn(tables: Sequence[Table], subtitles: Mapping[str, str], colours: Mapping[str, str]) -> Grid:
    """Tables for the template; subtitles and colours are by model name, where the page knows the name.

    A column of verdicts stands first; columns of values without any are left out.
    """
    first = tables[0]
    if first.judged is not None:
        return _gates(first)
    lines = []
    for table in tables:
        rows = tuple((row_head(row), tuple(_side_cells(table, row))) for row in table.rows)
        lines.append(("" if table.compares else table.title, rows))
    heads = tuple(
        Head(
            name=name,
            kind=colours.get(name, f"m{i % 7}"),
            subtitle=subtitles.get(name, "") if first.compares else "",
            is_side=True,
            is_reference=i == first.reference,
            is_pair=first.reference not in (None, i),
        )
        for i, name in enumerate(first.columns)
    )
    return Grid(
        kind="metrics ratios" if first.compares else "metrics",
        head="Metric",
        heads=heads,
        groups=tuple(lines),
        notes=tuple(
            dict.fromkeys(
                note for table in tables for note in (*table_notes(table), *shares(table.rows, table.columns))
            )
        ),
    )


def _side_cells(table: Table, row: Row) -> Iterator[Drawn]:
    shared = _shared(row)
    for i, one in enumerate(row.cells):
        name = table.columns[i] if table.compares else ""
        yield "value", cell(one.value, row.unit, shared), name
        if table.reference is not None and i != table.reference:
            yield "ratio", ratio_cell(shown_ratio(one)), f"{name} to {table.columns[table.reference]}"


def _gates(table: Table) -> Grid:
    """Their verdicts stand before their values; without any value those columns would be empty."""
    has_values = any(row.cells[i].text is None for row in table.rows for i in range(2))
    order = (2, 0, 1, 3, 4) if has_values else (2, 3, 4)
    heads = (Head(name=GATE_HEADS.get(table.columns[i], table.columns[i]), kind="" if i < 2 else "vs") for i in order)
    lines = tuple((row_head(row), tuple(_gate_cell(table, row, i) for i in order)) for row in table.rows)
    return Grid(
        kind="metrics ratios gates", head="Gate", heads=tuple(heads), groups=(("", lines),), notes=footnotes(table)
    )


def _gate_cell(table: Table, row: Row, i: int) -> Drawn:
    one = row.cells[i]
    if one.ratio is not None:
        return "ratio", ratio_cell(one.ratio, one), "new to reference"
    if i < 2:
        side = Cell(text="", kind="none") if one.text is not None else cell(one.value, row.unit, _shared(row))
        return "value", side, table.columns[i]
    return "text", one.text or "", ""


def ratio_cell(ratio: Ratio | None, words: DocumentCell | None = None) -> RatioCell:
    """One ratio as the page shows it; ``words`` stand in the place of its figure."""
    if ratio is None:
        return RatioCell(text="", interval="", verdict="", tone="none", detail="")
    interval = ratio_interval(ratio) if words is None else words.interval
    return RatioCell(
        text=ratio_text(ratio) if words is None else words.text or "",
        interval=interval[1:-1],
        verdict=ratio.verdict_text or (ABSENT if words else ""),
        tone="na" if ratio.value is None and words is None else tone(ratio),
        detail=ratio.reason or "",
    )


def waterfall_lines(waterfall: Waterfall) -> list[dict[str, Any]]:
    """The table under a waterfall, a line per step."""
    return [
        {
            "label": step.label,
            "is_level": step.kind == "level",
            "figure": step_text(step, waterfall.unit),
            "interval": step_interval(step, waterfall.unit)[1:-1],
            "note": " ".join(part for part in ("" if step.told else f"{CANNOT_TELL.capitalize()}.", step.text) if part),
        }
        for step in waterfall.steps
    ]
