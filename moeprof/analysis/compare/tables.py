"""Metrics of several models or runs side by side, with their ratios to a reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moeprof.analysis.metrics.cards import card_for
from moeprof.analysis.metrics.labels import FIRST_SCREEN, SECTIONS, heading_of, label_of
from moeprof.analysis.metrics.lookup import Key, by_key, highest_percentile, key_of, labels_of, pick
from moeprof.analysis.metrics.summary import ModelSummary
from moeprof.analysis.stats.estimate import Ratio
from moeprof.core.metric import Card, MetricValue


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioRow:
    """One metric across models: values, and each one's ratio to the reference (None in the reference's own place)."""

    label: str
    card: Card
    name: str
    values: tuple[MetricValue | None, ...]
    ratios: tuple[Ratio | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioTable:
    """Metrics of several models side by side.

    Attributes:
        title: heading.
        columns: names of the models; ratios are to ``columns[reference]``.
        reference: index of the reference.
        rows: the metrics.
        folded: True for tables that a page should show closed at first.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[RatioRow, ...]
    reference: int = 0
    folded: bool = False

    @property
    def has_ratios(self) -> bool:
        """False for a table of values alone; then it has no reference."""
        return any(ratio is not None for row in self.rows for ratio in row.ratios)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One metric of several models or runs: values and ratios, None in the reference's own place."""

    values: tuple[MetricValue | None, ...]
    ratios: tuple[Ratio | None, ...]


def headline_keys(models: Sequence[ModelSummary]) -> dict[str, Key]:
    """Label -> which metric stands on the first screen, as the first of the models that has it means it."""
    found: dict[str, Key] = {}
    for label, name, labels in FIRST_SCREEN:
        own = True if labels.get("own") else None
        rest = {key: value for key, value in labels.items() if key != "own"}
        if name.endswith("+"):
            quantity = name[:-1]
            name = highest_percentile(tuple(models), quantity)
            label = f"{label} {name.removeprefix(quantity + '_').removesuffix('_s').replace('_', '.')}"
        picked = (pick(model, name, own_traffic=own, **rest) for model in models if _measured(model))
        value = next((value for value in picked if value is not None), None)
        if value is not None:
            found[label] = key_of(value)
    return found


def _measured(model: ModelSummary) -> bool:
    return model.facts is not None and bool(by_key(model.metrics))


def headline_table(
    title: str,
    columns: tuple[str, ...],
    compared: Mapping[Key, Compared],
    keys: Mapping[str, Key],
    *,
    reference: int = 0,
) -> RatioTable:
    """The short table."""
    rows = [_row(label, key, compared[key]) for label, key in keys.items() if key in compared]
    return RatioTable(title=title, columns=columns, rows=tuple(rows), reference=reference)


def section_tables(
    columns: tuple[str, ...], compared: Mapping[Key, Compared], *, reference: int = 0, prefix: str = ""
) -> tuple[RatioTable, ...]:
    """Every metric, one folded table per section that has any."""
    tables = []
    for section, title in SECTIONS:
        rows = [_row(_full_label(key), key, cell) for key, cell in compared.items() if _shown(key, section, cell)]
        if rows:
            tables.append(
                RatioTable(
                    title=f"{prefix}{title}", columns=columns, rows=tuple(rows), reference=reference, folded=True
                )
            )
    return tuple(tables)


def _shown(key: Key, section: str, cell: Compared) -> bool:
    """In this section, and measured by somebody: reasons for nothing at all stand in each run's own report."""
    known = any(value is not None and value.value is not None for value in cell.values)
    return known and card_for(key[0]).section == section


def _row(label: str, key: Key, cell: Compared) -> RatioRow:
    return RatioRow(label=label, card=card_for(key[0]), name=key[0], values=cell.values, ratios=cell.ratios)


def _full_label(key: Key) -> str:
    labels = labels_of(key)
    heading = heading_of(labels)
    text = label_of(key[0], labels)
    return text if heading == "whole run" else f"{text}: {heading}"
