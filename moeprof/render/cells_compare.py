"""What stands in the cells of a comparison: ratios, verdicts, and the spans of a waterfall. Shared by all renderers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moeprof.analysis.document import Ratio, RatioTable, Waterfall, WaterfallStep
from moeprof.core import units
from moeprof.core.metric import MetricValue
from moeprof.render.cells import why_text

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
