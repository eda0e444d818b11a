"""What stands in a table cell: a metric's value, its interval, or why there is none. Shared by all renderers.

What stands in the cells of a comparison: ratios, verdicts, and the spans of a waterfall. Shared by all renderers.

What stands in the cells of a table of gates. Shared by all renderers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moeprof.analysis.compare.tables import RatioTable
from moeprof.analysis.metrics.labels import from_to
from moeprof.analysis.report.document import GateRow, GateTable, Row, Waterfall, WaterfallStep
from moeprof.analysis.stats.estimate import Ratio
from moeprof.core import units
from moeprof.core.metric import Card, MetricValue

ABSENT = "-"
# Reason codes of docs/metrics.md#energy in words; codes stay codes in summary.json.
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


CANNOT_TELL = "cannot tell"
NEAR_ONE = 1.05  # ratios from 1 to this need a digit more, or 1.004 would read as 1
TOLD = ("better", "worse", "no difference shown", "same run")  # verdicts that need no footnote
Tone = Literal["better", "worse", "open"]


def times(value: float) -> str:
    """A ratio as people say it: ``0.612x``, ``1.004x``."""
    return f"{units.significant(value, 4 if 1 <= value < NEAR_ONE else 3)}x"


def shown_ratio(value: MetricValue | None, ratio: Ratio | None) -> Ratio | None:
    """The ratio, or None where it would only repeat that the value beside it is missing."""
    is_missing = value is None or value.value is None
    return None if is_missing and ratio is not None and ratio.value is None and not ratio.verdict else ratio


def ratio_text(ratio: Ratio | None) -> str:
    """``0.612x``, ``n/a``, or nothing where there is nothing to compare or the verdict already says it."""
    if ratio is None or (ratio.value is None and ratio.verdict):
        return ""
    return units.NOT_AVAILABLE if ratio.value is None else times(ratio.value)


def ratio_interval(ratio: Ratio | None) -> str:
    """``[0.581 - 0.643]``, or nothing where there is none."""
    if ratio is None or ratio.low is None or ratio.high is None:
        return ""
    return f"[{times(ratio.low)[:-1]} \u2013 {times(ratio.high)[:-1]}]"


def tone(verdict: str) -> Tone:
    """How a verdict looks. The word always stands beside it, so colour is never the only sign."""
    return "better" if verdict == "better" else "worse" if verdict == "worse" else "open"


def ratio_notes(table: RatioTable) -> tuple[str, ...]:
    """Footnotes: why values or ratios are missing or undecided, each reason once, in order.

    Why a difference was shown, or that a figure is counted, stays in the page's tooltips.
    """
    notes: dict[str, list[str]] = {}
    for row in table.rows:
        for value, ratio in zip(row.values, row.ratios, strict=True):
            if value is not None and value.value is None:
                notes.setdefault(f"n/a ({why_text(value)})", []).append(row.label)
            elif ratio is not None and ratio.reason and not _is_settled(value, ratio):
                said = ratio.verdict or (units.NOT_AVAILABLE if ratio.value is None else "")
                notes.setdefault(f"{said} ({ratio.reason})" if said else ratio.reason, []).append(row.label)
    return tuple(f"{', '.join(dict.fromkeys(labels))}: {why}" for why, labels in notes.items())


def _is_settled(value: MetricValue | None, ratio: Ratio) -> bool:
    return ratio.verdict in TOLD or (value is not None and value.exact and ratio.value is not None)


def step_text(step: WaterfallStep, unit: str) -> str:
    """``24 ms`` for a level, ``+5.1 ms`` for a change."""
    sign = "+" if step.kind == "change" and step.value > 0 else ""
    return sign + units.short(step.value, unit)


def step_interval(step: WaterfallStep, unit: str) -> str:
    """``[4.2 - 6 ms]``, or nothing where there is none."""
    if step.low is None or step.high is None:
        return ""
    return f"[{units.interval(step.low, step.high, unit)}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Where one bar of a waterfall lies, and its whisker, in the waterfall's unit."""

    start: float
    end: float
    low: float | None
    high: float | None


def spans(waterfall: Waterfall) -> tuple[Span, ...]:
    """A level stands on zero; a change hangs between what was before it and what it leads to."""
    found: list[Span] = []
    before = 0.0
    for step in waterfall.steps:
        base = before if step.kind == "change" else 0.0
        whisker = (None, None) if step.low is None or step.high is None else (base + step.low, base + step.high)
        before = base + step.value
        found.append(Span(start=base, end=before, low=whisker[0], high=whisker[1]))
    return tuple(found)


def block_bars(waterfall: Waterfall, width: int) -> tuple[tuple[int, int], ...]:
    """Each bar as (empty places before it, filled places), of ``width`` places in all; a bar is never invisible."""
    found = spans(waterfall)
    low = min((0.0, *(end for s in found for end in (s.start, s.end))))
    high = max((0.0, *(end for s in found for end in (s.start, s.end))))
    scale = width / (high - low) if high > low else 0.0
    bars = []
    for span in found:
        first, last = sorted(round((end - low) * scale) for end in (span.start, span.end))
        first = min(first, max(width - 1, 0))
        bars.append((first, max(last - first, 1)))
    return tuple(bars)


def block_character(step: WaterfallStep) -> str:
    """A level is solid, a change is shaded, a change that cannot be told from 0 is pale."""
    if step.kind == "level":
        return "\u2588"
    return "\u2593" if step.told else "\u2591"


HEADS = ("gate", "reference", "new", "change", "verdict", "n", "limit")
MOST_NAMED = 3  # gates that one footnote names
INTERVAL_HEAD = "95 % interval"
SPAN = "reference \u2192 new"


def gate_values(row: GateRow) -> tuple[str, str]:
    """Reference and new value; a lock-step ratio has neither, and its cells are empty."""
    if row.reference is None and row.other is None:
        return "", ""
    return short_text(row.reference, row.card), short_text(row.other, row.card)


def gate_change(row: GateRow) -> str:
    """``1.11x``, or ``+0.24`` where the gate looks at the difference, or nothing where neither is known."""
    if not row.by_difference:
        return "" if row.ratio.value is None else f"{_ratio(row.ratio.value)}x"
    first, second = (None if side is None else side.value for side in (row.reference, row.other))
    if first is None or second is None:
        return ""
    difference = second - first
    sign = "+" if difference > 0 else ""
    return sign + units.short(difference, row.card.unit)


def gate_interval(row: GateRow) -> str:
    """``[1.10 - 1.13]``, or nothing where there is none or the gate looks at a difference."""
    ratio = row.ratio
    if row.by_difference or ratio.low is None or ratio.high is None:
        return ""
    return f"[{_ratio(ratio.low)} \u2013 {_ratio(ratio.high)}]"


def _ratio(value: float) -> str:
    """Three decimals: a gate of 1.5 % is no place for 1.1."""
    return f"{value:.3f}" if 0.1 <= value < 100 else units.significant(value)


def gate_span(row: GateRow) -> str:
    """Both values in one cell: ``24.1 -> 26.8 ms``; the new one alone where there is no reference."""
    return from_to([text for text in gate_values(row) if text and text != ABSENT])


def gate_notes(table: GateTable) -> tuple[str, ...]:
    """Footnotes: why gates cannot be told, and what would decide them; each reason once, in order."""
    notes: dict[str, list[str]] = {}
    for row in table.rows:
        if row.ratio.verdict not in ("cannot tell", "incomparable"):
            continue
        reason = row.ratio.reason or ""
        told = "needed" in reason  # then it says itself what would decide
        parts = [reason, f"{row.decide} would decide" if row.decide and not told else ""]
        why = "; ".join(part for part in parts if part)
        notes.setdefault(f"{row.ratio.verdict} ({why})" if why else "", []).append(row.label)
    return tuple(f"{_few(labels)}: {why}" for why, labels in notes.items() if why)


def _few(labels: list[str]) -> str:
    more = len(labels) - MOST_NAMED
    return ", ".join(labels[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def gate_cells(row: GateRow) -> dict[str, str]:
    """Every cell by its column; the interval under its own name."""
    reference, new = gate_values(row)
    return {
        "gate": row.label,
        "reference": reference,
        "new": new,
        "change": gate_change(row),
        INTERVAL_HEAD: gate_interval(row),
        "verdict": row.ratio.verdict or ABSENT,
        "n": row.n,
        "limit": row.limit,
        SPAN: gate_span(row),
    }
