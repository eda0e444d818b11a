"""Gates as rows of a table: what each is called, what it allows, and what it shows."""

from __future__ import annotations

from collections.abc import Sequence

from moeprof.analysis.cards import card_for
from moeprof.analysis.document import GateRow, GateTable
from moeprof.analysis.regress.page_names import Names, names_of
from moeprof.analysis.regress.result import GateResult, Regression
from moeprof.core import units

HOLDS = "no difference shown"


def gate_tables(regression: Regression, *, all_metrics: bool = False) -> tuple[GateTable, ...]:
    """What changed or cannot be told, then the gates that hold, closed unless ``all_metrics``."""
    names = names_of(regression)
    moved = [gate_row(gate, names) for gate in regression.gates if gate.verdict != HOLDS]
    held = [gate_row(gate, names) for gate in regression.gates if gate.verdict == HOLDS]
    tables = []
    if moved:
        told = any(row.ratio.verdict in ("better", "worse") for row in moved)
        tables.append(GateTable(title="What changed" if told else "What cannot be told", rows=tuple(moved)))
    if held:
        title = f"{len(held)} {'gate that holds' if len(held) == 1 else 'gates that hold'}"
        tables.append(GateTable(title=title, rows=tuple(held), folded=not all_metrics))
    return tuple(tables)


def gate_row(gate: GateResult, names: Names) -> GateRow:
    """One gate; its model is named where the check has several."""
    return GateRow(
        label=names.full(gate.model, gate.key),
        card=gate.card,
        name=gate.label,
        reference=gate.reference,
        other=gate.other,
        ratio=gate.ratio,
        by_difference=is_difference(gate),
        n=gate.n,
        limit=limit_text(gate),
        decide=gate.decide,
    )


def from_to(values: Sequence[str]) -> str:
    """``24.1 ms``, ``26.8 ms`` -> ``24.1 -> 26.8 ms``: a unit that all share stands once."""
    last = units.split(values[-1])[1] if values else ""
    shared = last and all(units.split(value)[1] == last for value in values)
    first = [units.split(value)[0] for value in values[:-1]] if shared else values[:-1]
    return " \u2192 ".join((*first, *values[-1:]))


def is_difference(gate: GateResult) -> bool:
    """Whether the gate looks at a difference or at a bound, or has no ratio to show though it has both values."""
    known = all(side is not None and side.value is not None for side in (gate.reference, gate.other))
    return gate.gate.kind != "ratio" or (known and gate.ratio.value is None)


def limit_text(gate: GateResult) -> str:
    """What is allowed: ``+3 %``, ``-1 %``, ``+0.2``, ``no rise``, ``at most 50 ms``."""
    kind, amount = gate.gate.kind, gate.gate.amount
    if kind in ("at_most", "at_least"):
        return f"{kind.replace('_', ' ')} {units.short(amount, gate.card.unit)}"
    sign = gate.gate.sign or {"lower": "+", "higher": "-", "neither": "+-"}[gate.better]
    if amount == 0:
        return {"+": "no rise", "-": "no fall", "+-": "no change"}[sign]
    text = units.percent(amount) if kind == "ratio" else units.short(amount, card_for(gate.gate.metric).unit)
    shown = "\u00b1" if sign == "+-" else sign
    return f"{shown}{text}"
