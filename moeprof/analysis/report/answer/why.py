"""Why an MoE costs what it costs: a step reads the experts of all its tokens, not those of one."""

from __future__ import annotations

from moeprof.analysis.metrics.lookup import number
from moeprof.analysis.report.answer.sides import Sides
from moeprof.core import units

EXPERTS, READ = "distinct_experts_per_step", "touched_params_per_step"


def why(sides: Sides) -> str:
    """Of the passes that are priced; empty for a dense model, and where steps of decode alone hold too few tokens."""
    facts = sides.model.facts
    if facts is None or not facts.is_moe:
        return ""
    touched, read = (number(sides.model, name, own_traffic=False, phase="decode") for name in (EXPERTS, READ))
    if read is None:
        return ""
    share = (
        ""
        if touched is None
        else f"touch {units.significant(touched, 2)} of {facts.moe_layers[0].num_experts} experts and "
    )
    times = units.significant(read / facts.active_params_no_embedding, 2)
    return f"Its decode steps {share}read {times} times the parameters that one token uses."
