"""What stands in a table cell: a metric's value, its interval, or why there is none. Shared by all renderers."""

from __future__ import annotations

from moeprof.analysis.document import Row
from moeprof.core import units
from moeprof.core.metric import Card, MetricValue

ABSENT = "-"
# Reason codes of METRICS section 6 in words; codes stay codes in summary.json.
REASON_CODES = {
    "no_counter": "no energy counter that can be read on this machine; `moeprof doctor` says why",
    "window_too_short": "the window is too short for the counter",
    "window_not_bracketed": "the window is not bracketed by samples",
    "sample_gap": "samples are too far apart",
    "counter_reset": "the energy counter was reset",
    "counter_disagrees": "the energy counter and the sampled power disagree",
}


def value_text(value: MetricValue | None, card: Card) -> str:
    """``12.3 ms``, ``n/a`` or ``-`` (the model has no such metric)."""
    return ABSENT if value is None else units.short(value.value, card.unit)


def interval_text(value: MetricValue | None, card: Card) -> str:
    """``[11.9 - 12.8]`` in the value's own unit, or with units where they differ; empty where there is none."""
    if value is None or value.value is None or value.ci_low is None or value.ci_high is None:
        return ""
    text = units.interval(value.ci_low, value.ci_high, card.unit)
    unit = value_text(value, card).partition(" ")[2]
    return f"[{text.removesuffix(f' {unit}') if unit else text}]"  # the value beside it names the unit


def why_text(value: MetricValue | None) -> str:
    """The reasons of a missing or doubtful value, in one line."""
    return "" if value is None else "; ".join(REASON_CODES.get(reason, reason) for reason in value.reasons)


def null_text(value: MetricValue | None, card: Card) -> str:
    """What chance alone would give: ``uniform 51.6, marginal 40.2``."""
    if value is None:
        return ""
    return ", ".join(f"{name} {units.display(number, card.unit)}" for name, number in value.null.items())


def full_text(value: MetricValue | None, card: Card) -> str:
    """Value, interval, null and reasons in one cell."""
    if value is None:
        return ABSENT
    if value.value is None:
        return f"{units.NOT_AVAILABLE} ({why_text(value)})"
    parts = [value_text(value, card), interval_text(value, card)]
    null = null_text(value, card)
    parts.append(f"(chance: {null})" if null else "")
    parts.append("" if value.valid else f"(doubtful: {why_text(value)})")
    return " ".join(part for part in parts if part)


def short_text(value: MetricValue | None, card: Card) -> str:
    """For narrow places: the value, marked ``?`` where a check failed."""
    text = value_text(value, card)
    return text if value is None or value.valid or value.value is None else f"{text} ?"


def row_reasons(rows: tuple[Row, ...]) -> tuple[str, ...]:
    """Footnotes: why values of these rows are missing, each reason once, in order."""
    notes: dict[str, list[str]] = {}
    for row in rows:
        for value in row.values:
            if value is not None and value.value is None:
                notes.setdefault(why_text(value), []).append(row.label)
    return tuple(f"{', '.join(dict.fromkeys(labels))}: n/a ({reason})" for reason, labels in notes.items())
