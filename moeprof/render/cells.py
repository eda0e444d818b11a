"""What stands in a table's cell, and where the bars of a waterfall lie: shared by all renderers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from moeprof.analysis.report.document import Cell, Row, Table, Waterfall, WaterfallStep
from moeprof.analysis.stats.estimate import ROUNDS, Ratio
from moeprof.core import units
from moeprof.core.metric import MetricValue
from moeprof.core.text import printable

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


def value_text(value: MetricValue | None, unit: str) -> str:
    """``12.3 ms``, ``n/a`` or ``-`` (the model has no such metric)."""
    return ABSENT if value is None else units.short(value.value, unit)


def interval_text(value: MetricValue | None, unit: str) -> str:
    """``[11.9 - 12.8]`` in the value's own unit, or with units where they differ; empty where there is none."""
    if value is None or value.value is None or value.ci_low is None or value.ci_high is None:
        return ""
    text = units.interval(value.ci_low, value.ci_high, unit)
    named = value_text(value, unit).partition(" ")[2]
    return f"[{text.removesuffix(f' {named}') if named else text}]"  # the value beside it names the unit


def why_text(value: MetricValue | None) -> str:
    """The reasons of a missing or doubtful value, in one line."""
    return "" if value is None else "; ".join(REASON_CODES.get(reason, reason) for reason in value.reasons)


def null_text(value: MetricValue | None, unit: str) -> str:
    """What chance alone would give: ``uniform 51.6, marginal 40.2``."""
    if value is None:
        return ""
    return ", ".join(f"{name} {units.display(number, unit)}" for name, number in value.null.items())


def full_text(value: MetricValue | None, unit: str) -> str:
    """Value, interval, null and reasons in one cell."""
    if value is None:
        return ABSENT
    if value.value is None:
        return f"{units.NOT_AVAILABLE} ({why_text(value)})"
    parts = [value_text(value, unit), interval_text(value, unit)]
    null = null_text(value, unit)
    parts.append(f"(chance: {null})" if null else "")
    parts.append("" if value.valid else f"(doubtful: {why_text(value)})")
    return " ".join(part for part in parts if part)


def short_text(value: MetricValue | None, unit: str) -> str:
    """For narrow places: the value, marked ``?`` where a check failed."""
    text = value_text(value, unit)
    return text if value is None or value.valid or value.value is None else f"{text} ?"


CANNOT_TELL = "cannot tell"
NO_INTERVAL = "no interval: "
TOLD = ("better", "worse", "no difference shown", "same run")  # verdicts that need no footnote
Tone = Literal["better", "worse", "open"]


def shown_ratio(cell: Cell) -> Ratio | None:
    """The ratio, or None where it would only repeat that the value beside it is missing."""
    value, ratio = cell.value, cell.ratio
    is_missing = value is None or value.value is None
    return None if is_missing and ratio is not None and ratio.value is None and not ratio.verdict else ratio


def ratio_text(ratio: Ratio | None) -> str:
    """``0.612x``, ``n/a``, or nothing where there is nothing to compare or the verdict already says it."""
    if ratio is None or (ratio.value is None and ratio.verdict):
        return ""
    return units.NOT_AVAILABLE if ratio.value is None else units.times(ratio.value)


def ratio_interval(ratio: Ratio | None) -> str:
    """``[0.581 - 0.643]``, or nothing where there is none."""
    if ratio is None or ratio.low is None or ratio.high is None:
        return ""
    return f"[{units.times(ratio.low)[:-1]} \u2013 {units.times(ratio.high)[:-1]}]"


def tone(ratio: Ratio | None) -> Tone:
    """How a verdict looks. The word always stands beside it, so colour is never the only sign."""
    verdict = "" if ratio is None else ratio.verdict
    return "better" if verdict == "better" else "worse" if verdict == "worse" else "open"


ROUNDS_NOTE = (
    "Ratios are geometric means over paired rounds and values are means, so a ratio is not always the quotient of its "
    "values; (rounds): the verdict is from the rounds of one launch, and speaks for this launch"
)


def footnotes(table: Table) -> tuple[str, ...]:
    """What stands under a table: its own notes, or what its ratios are and why figures are missing or undecided."""
    if table.notes is not None:
        return table.notes
    return (*table_notes(table), *reasons(table.rows, table.columns), *under(table))


def under(table: Table) -> tuple[str, ...]:
    """What values that are there lack: the rest of their phase, or an interval."""
    return (*shares(table.rows, table.columns), *bare_values(table.rows))


def table_notes(table: Table) -> tuple[str, ...]:
    """What ratios of rounds are, under tables that stand open."""
    from_rounds = any(ratio is not None and ratio.by == ROUNDS for row in table.rows for ratio in row.ratios)
    return (ROUNDS_NOTE,) if from_rounds and not table.folded else ()


def shares(rows: Sequence[Row], columns: Sequence[str]) -> tuple[str, ...]:
    """What the figures of one phase speak for, where not for all of it: each sentence once, with its columns."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for column, value in zip(columns, row.values, strict=True):
            if value is not None and value.value is not None and value.share is not None:
                found.setdefault(value.reasons[0], []).append(column)
    return tuple(f"{said[:1].upper()}{said[1:]} ({', '.join(dict.fromkeys(names))})" for said, names in found.items())


def bare_values(rows: Sequence[Row]) -> tuple[str, ...]:
    """Why measured values have no interval, in one line: the first of them, and how many more."""
    found: dict[str, str] = {}
    for row in rows:
        for value in row.values:
            if value is not None and value.value is not None and value.ci_low is None and not value.exact:
                why = next((reason for reason in value.reasons if reason.startswith(NO_INTERVAL)), None)
                if why is not None:
                    found.setdefault(row.label, why.removeprefix(NO_INTERVAL))
    if not found:
        return ()
    label, why = next(iter(found.items()))
    more = len(found) - 1
    others = f", nor have {more} other figures" if more > 1 else ", nor has one other figure" if more else ""
    return (f"{label} has no interval ({why}){others}",)


def reasons(rows: Sequence[Row], columns: Sequence[str]) -> tuple[str, ...]:
    """Why values or ratios of these rows are missing or undecided, each reason once, in order.

    Values of one row that are missing for different reasons are told apart by their columns. Why a difference was
    shown, or that a figure is counted, stays in the page's tooltips.
    """
    notes: dict[str, list[str]] = {}
    for row in rows:
        found = [(column, why) for column, cell in zip(columns, row.cells, strict=True) if (why := _why_open(cell))]
        differ = len({why for _, why in found}) > 1
        for column, why in found:
            notes.setdefault(why, []).append(f"{row.label} of {column}" if differ else row.label)
    return tuple(f"{', '.join(dict.fromkeys(labels))}: {why}" for why, labels in notes.items())


def _why_open(cell: Cell) -> str | None:
    """Why the cell has no value, or nothing is decided by its ratio; None where it is whole."""
    value, ratio = cell.value, cell.ratio
    if value is not None and value.value is None:
        return f"n/a ({why_text(value)})"
    if ratio is None or not ratio.reason or _is_settled(value, ratio):
        return None
    verdict = ratio.verdict or (units.NOT_AVAILABLE if ratio.value is None else "")
    return f"{verdict} ({ratio.reason})" if verdict else ratio.reason


def _is_settled(value: MetricValue | None, ratio: Ratio) -> bool:
    """A verdict that is told, a counted value, or a figure without a better side whose ratio has its interval."""
    if ratio.verdict in TOLD or (not ratio.verdict and ratio.low is not None):
        return True
    return value is not None and value.exact and ratio.value is not None


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
    """A level is solid, a change is shaded, a change that is not distinguishable from 0 is pale."""
    if step.kind == "level":
        return "\u2588"
    return "\u2593" if step.told else "\u2591"


def plain(value: Any) -> str:
    """A plain value of a list; nothing for None."""
    return "" if value is None else printable(str(value))
