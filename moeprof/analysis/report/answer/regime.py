"""Does a step read only what one token uses? What the batches of this traffic make of sparsity."""

from __future__ import annotations

from moeprof.analysis.metrics.lookup import number
from moeprof.analysis.report.answer.sides import Sides
from moeprof.analysis.report.answer.why import EXPERTS, READ
from moeprof.analysis.report.document import Finding
from moeprof.core import units

QUESTION = "reads its active parameters only?"
ABOUT = 1.25  # times what one token uses, and still "only"


def find(sides: Sides) -> Finding | None:
    """Of the priced passes; None for a dense model."""
    facts = sides.model.facts
    if facts is None or not facts.is_moe:
        return None
    touched, read = (number(sides.model, name, own_traffic=False, phase="decode") for name in (EXPERTS, READ))
    if read is None:
        text = "what a decode step reads is not known: too few steps of decode alone"
        return Finding(question=QUESTION, outcome="cannot tell", text=text, figures=(READ,))
    active = facts.active_params_no_embedding
    experts = facts.moe_layers[0].num_experts
    share = "" if touched is None else f"it touches {units.percent(touched / experts)} of its experts a layer, so "
    text = (
        f"{share}a decode step reads {units.count(read)} parameters: you pay for these, not for {units.count(active)}"
    )
    return Finding(
        question=QUESTION, outcome="yes" if read <= ABOUT * active else "no", text=text, figures=(READ, EXPERTS)
    )
