"""Does the router use its experts? Dead ones, the busiest one, evenness."""

from __future__ import annotations

from moeprof.analysis.metrics.lookup import number
from moeprof.analysis.report.answer.sides import Sides
from moeprof.analysis.report.document import Finding, Outcome
from moeprof.core import units

QUESTION = "router healthy?"
DEAD, BUSIEST, EVEN = "dead_experts", "router_load_max_over_mean", "router_entropy_ratio"
UNEVEN = 0.8  # of the entropy of equal loads: below it a tenth of the experts does most of the work


def find(sides: Sides) -> Finding | None:
    """No with dead experts, depends where load is uneven; None for a dense model."""
    facts = sides.model.facts
    if facts is None or not facts.is_moe:
        return None
    dead, busiest, even = (number(sides.model, name, phase="all") for name in (DEAD, BUSIEST, EVEN))
    if dead is None:
        dead, busiest, even = (number(sides.model, name, phase="decode") for name in (DEAD, BUSIEST, EVEN))
    if dead is None:
        return Finding(question=QUESTION, outcome="cannot tell", text="no routing was recorded", figures=(DEAD,))
    parts = [f"{units.significant(dead)} of {sum(layer.num_experts for layer in facts.moe_layers)} experts never used"]
    if busiest is not None:
        parts.append(f"the busiest has {units.significant(busiest)} times the mean")
    if even is not None:
        parts.append(f"evenness (entropy over its most) {units.significant(even)}")
    outcome: Outcome = "no" if dead else "depends" if even is not None and even < UNEVEN else "yes"
    return Finding(question=QUESTION, outcome=outcome, text=", ".join(parts), figures=(DEAD, BUSIEST, EVEN))
