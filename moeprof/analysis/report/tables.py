"""Metrics, ratios, gates and facts as the rows and cells of a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from moeprof.analysis.compare.tables import Compared
from moeprof.analysis.metrics.cards import card_for
from moeprof.analysis.metrics.labels import SECTIONS, heading_of, label_of
from moeprof.analysis.metrics.lookup import Key, labels_of
from moeprof.analysis.report.document import Cell, Row, Table
from moeprof.analysis.stats.estimate import Ratio
from moeprof.core.metric import MetricValue


def facts(title: str, rows: Iterable[tuple[str, str]]) -> Table:
    """Plain facts as text: the machine, the workload, the schedule."""
    lines = tuple(Row(label=label, cells=(Cell(text=text),)) for label, text in rows)
    return Table(title=title, columns=("",), rows=lines, head="")


def metric_row(
    label: str, name: str, values: Iterable[MetricValue | None], ratios: Iterable[Ratio | None] | None = None
) -> Row:
    """A metric across models, with each one's ratio to the reference (None in the reference's own place)."""
    found = tuple(values)
    pairs = zip(found, (None,) * len(found) if ratios is None else ratios, strict=True)
    cells = tuple(Cell(value=value, ratio=ratio) for value, ratio in pairs)
    return Row(label=label, name=name, card=card_for(name), cells=cells)


def compared(
    title: str, columns: Sequence[str], rows: Iterable[Row], *, reference: int = 0, folded: bool = False
) -> Table:
    """Models or runs side by side, as part of the answer; ``reference`` counts where any row has a ratio."""
    lines = tuple(rows)
    has_ratios = any(ratio is not None for row in lines for ratio in row.ratios)
    return Table(
        title=title,
        columns=tuple(columns),
        rows=lines,
        reference=reference if has_ratios else None,
        compares=True,
        folded=folded,
    )


def headline_table(
    title: str,
    columns: Sequence[str],
    found: Mapping[Key, Compared],
    keys: Mapping[str, Key],
    *,
    reference: int = 0,
) -> Table:
    """The short table: the figures that everybody asks for."""
    rows = [_row(label, key, _as_headline(found[key])) for label, key in keys.items() if key in found]
    return compared(title, columns, rows, reference=reference)


def _as_headline(cell: Compared) -> Compared:
    """Without a ratio where a value speaks for too little of its phase."""
    values = tuple(None if value is None else value.as_headline for value in cell.values)
    if values == cell.values:
        return cell
    return Compared(values=values, ratios=tuple(ratio and Ratio(value=None) for ratio in cell.ratios))


def section_tables(
    columns: Sequence[str],
    found: Mapping[Key, Compared],
    *,
    reference: int = 0,
    prefix: str = "",
    folded: bool = True,
) -> tuple[Table, ...]:
    """Every metric that somebody measured, one table per section that has any."""
    rows: dict[str, list[Row]] = {}
    for key, cell in found.items():
        if any(value is not None and value.value is not None for value in cell.values):
            rows.setdefault(card_for(key[0]).section, []).append(_row(_full_label(key), key, cell))
    return tuple(
        compared(f"{prefix}{title}", columns, rows[section], reference=reference, folded=folded)
        for section, title in SECTIONS
        if section in rows
    )


def _row(label: str, key: Key, cell: Compared) -> Row:
    return metric_row(label, key[0], cell.values, cell.ratios)


def _full_label(key: Key) -> str:
    labels = labels_of(key)
    heading, text = heading_of(labels), label_of(key[0], labels)
    return text if heading == "whole run" else f"{text}: {heading}"
