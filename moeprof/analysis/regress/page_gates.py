"""Gates as rows of a table: what each is called, what it allows, and what it shows."""

from __future__ import annotations

from collections.abc import Sequence

from moeprof.analysis.cards import card_for
from moeprof.analysis.compare.keys import Key
from moeprof.analysis.document import GateRow, GateTable
from moeprof.analysis.regress.result import GateResult, Regression
from moeprof.analysis.report import FIRST_SCREEN, heading_of, label_of
from moeprof.core import units

HOLDS = "no difference shown"


def gate_tables(regression: Regression, *, all_metrics: bool = False) -> tuple[GateTable, ...]:
    """What changed or cannot be told, then the gates that hold, closed unless ``all_metrics``."""
    names = model_names(regression)
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


def gate_row(gate: GateResult, models: Sequence[str]) -> GateRow:
    """One gate; its model is named where the check has several."""
    return GateRow(
        label=named(gate.model, figure_label(gate.key), models),
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


def model_names(regression: Regression) -> tuple[str, ...]:
    """Models of the check, in order."""
    return tuple(dict.fromkeys((*(gate.model for gate in regression.gates), *(c.model for c in regression.changes))))


def named(model: str, label: str, models: Sequence[str]) -> str:
    """``moe: decode step``; without the model where there is only one."""
    return f"{model}: {label}" if len(models) > 1 else label


def figure_label(key: Key) -> str:
    """What people call a figure: ``decode step``, ``price of 1M output tokens``, ``dead experts, decode``."""
    name, labels = key[0], dict(key[1])
    if name == "step_mean_s":
        heading = heading_of({k: v for k, v in labels.items() if k != "phase"})
        rest = "" if heading == "whole run" else f", {heading}"
        return f"{labels['phase']} step{rest}" if "phase" in labels else f"step{rest}"
    for label, known, wanted in FIRST_SCREEN:
        if known == name and wanted == labels:
            return label
    heading, text = heading_of(labels), label_of(name, labels)
    text = text if text[1:2].isupper() else text[:1].lower() + text[1:]
    return text if heading == "whole run" else f"{text}, {heading}"


def from_to(values: Sequence[str]) -> str:
    """``24.1 ms``, ``26.8 ms`` -> ``24.1 -> 26.8 ms``: a unit that all share stands once."""
    last = values[-1].partition(" ")[2] if values else ""
    shared = last and all(value.partition(" ")[2] == last for value in values)
    first = [value.partition(" ")[0] for value in values[:-1]] if shared else values[:-1]
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
