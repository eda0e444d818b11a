"""A comparison as data: JSON with every table, CSV with one row per metric and model."""

from __future__ import annotations

from typing import Any

from moeprof.analysis.cards import card_for
from moeprof.analysis.compare.page import Page
from moeprof.analysis.document import Document, Ratio, RatioRow, RatioTable
from moeprof.core.record import FORMAT_VERSION

COLUMNS = ("table", "of", "name", "labels", "value", "unit", "better", "n", "ci_low", "ci_high", "reference",
           "ratio", "ratio_low", "ratio_high", "verdict", "reasons")  # fmt: skip


def page_json(document: Document, page: Page) -> dict[str, Any]:
    """The content of compare.json."""
    return {
        "format_version": FORMAT_VERSION,
        "run": page.run,
        "status": page.status,
        "reference": page.reference,
        "verdict": page.headline,
        "notes": list(page.notes),
        "banners": list(page.banners),
        "doubts": [
            {"code": d.code, "flag": d.flag, "severity": d.severity, "model": d.model, "text": d.text}
            for d in page.doubts
        ],
        "comparison": [_table(table) for table in _all_tables(page)],
        "metrics": [{"of": owner, **value.to_json(card_for(value.name))} for owner, value in page.metrics],
    }


def page_rows(page: Page) -> list[list[Any]]:
    """Header and rows of compare.csv: the figures that only a comparison has, then every cell of every table."""
    rows: list[list[Any]] = [list(COLUMNS)]
    for owner, value in page.metrics:
        card = card_for(value.name)
        rows.append([
            "comparison", owner, value.name, _labels(value.labels), value.value, card.unit, card.better, value.n,
            value.ci_low, value.ci_high, None, None, None, None, None, "; ".join(value.reasons),
        ])  # fmt: skip
    for table in _all_tables(page):
        for row in table.rows:
            rows += [_cell(table, row, i) for i in range(len(table.columns)) if row.values[i] is not None]
    return rows


def _all_tables(page: Page) -> list[RatioTable]:
    inside = [block for section in page.sections for block in section.blocks if isinstance(block, RatioTable)]
    return [*page.tables, *inside]


def _table(table: RatioTable) -> dict[str, Any]:
    return {
        "title": table.title,
        "columns": list(table.columns),
        "reference": _reference(table),
        "rows": [
            {
                "label": row.label,
                "name": row.name,
                "unit": row.card.unit,
                "better": row.card.better,
                "values": [None if value is None else value.to_json(row.card) for value in row.values],
                "ratios": [_ratio(ratio) for ratio in row.ratios],
            }
            for row in table.rows
        ],
    }


def _reference(table: RatioTable) -> str | None:
    """What ratios are to; None for tables without any, such as the rungs of a ladder."""
    return table.columns[table.reference] if table.has_ratios else None


def _ratio(ratio: Ratio | None) -> dict[str, Any] | None:
    if ratio is None:
        return None
    return {"value": ratio.value, "ci_low": ratio.low, "ci_high": ratio.high, "verdict": ratio.verdict,
            "reason": ratio.reason}  # fmt: skip


def _cell(table: RatioTable, row: RatioRow, index: int) -> list[Any]:
    value, ratio = row.values[index], row.ratios[index]
    assert value is not None
    reasons = [*value.reasons, *([ratio.reason] if ratio is not None and ratio.reason else [])]
    told = [None] * 4 if ratio is None else [ratio.value, ratio.low, ratio.high, ratio.verdict]
    to = None if ratio is None else table.columns[table.reference]
    return [
        table.title, table.columns[index], row.name, _labels(value.labels), value.value, row.card.unit,
        row.card.better, value.n, value.ci_low, value.ci_high, to, *told,
        "; ".join(reasons),
    ]  # fmt: skip


def _labels(labels: dict[str, str]) -> str:
    return ";".join(f"{key}={value}" for key, value in labels.items())
