"""What stands in the cells of a table of gates. Shared by all renderers."""

from __future__ import annotations

from moeprof.analysis.document import GateRow, GateTable
from moeprof.analysis.regress.page_gates import from_to
from moeprof.core import units
from moeprof.render.cells import ABSENT, short_text

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
