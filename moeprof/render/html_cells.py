"""Metric values as the page shows them: text, interval, chance level, and what hovering or unfolding adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moeprof.analysis.document import Row
from moeprof.core.metric import MetricValue
from moeprof.core.units import NOT_AVAILABLE, interval, short

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
