"""Metric values as the page shows them: text, interval, chance level, and what hovering or unfolding adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moeprof.analysis.document import Row
from moeprof.core.metric import MetricValue
from moeprof.core.units import NOT_AVAILABLE, interval, short

DIRECTIONS = {"lower": "lower is better", "higher": "higher is better", "neither": ""}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One value of a table.

    Attributes:
        text: in display units, or ``n/a``, or a dash where the model has no such metric.
        kind: ``value``, ``na`` (not measured), ``doubtful`` (a check failed) or ``none``.
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
    """One row of a metric table: label, what its unit adds, its direction, its card's anchor, and the cells."""

    label: str
    name: str
    per: str
    direction: str
    better: str
    anchor: str
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
    return TableRow(
        label=row.label,
        name=row.name,
        per=per_what(row),
        direction=DIRECTIONS[row.card.better],
        better=row.card.better,
        anchor=anchor(row.card.name),
        cells=tuple(cell(value, row.card.unit) for value in row.values),
    )


def cell(value: MetricValue | None, unit: str) -> Cell:
    """One value as the page shows it."""
    if value is None:
        return Cell(text="\u2013", kind="none", detail="this model has no such figure")
    if value.value is None:
        return Cell(text=NOT_AVAILABLE, kind="na", detail="\n".join(_details(value)) or "not measured")
    between = "" if value.ci_low is None or value.ci_high is None else interval(value.ci_low, value.ci_high, unit)
    return Cell(
        text=short(value.value, unit),
        kind="value" if value.valid else "doubtful",
        interval=between,
        chance=", ".join(f"{name} {short(null, unit)}" for name, null in sorted(value.null.items())),
        detail="\n".join(_details(value)),
    )


def _details(value: MetricValue) -> list[str]:
    """One fact a line: reasons first, then how the number came about."""
    lines = [] if value.valid or value.value is None else ["A check failed; do not rely on this figure."]
    lines += value.reasons
    if value.exact:
        lines.append("counted exactly" + (f", n {value.n:,}" if value.n is not None else ""))
    elif value.value is not None:
        lines.append("n not stated" if value.n is None else f"n {value.n:,}")
        if value.ci_low is None:
            lines.append("no interval")
    elif value.n is not None:
        lines.append(f"n {value.n:,}")
    lines += [f"{key.replace('_', ' ')}: {text}" for key, text in sorted(value.labels.items())]
    return lines


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
