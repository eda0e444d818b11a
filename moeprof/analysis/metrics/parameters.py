"""What a model is, as metrics (METRICS section 2). Counted facts: exact, without intervals.

``touched_params_per_step``, what a batch really reads, is measured: see metrics/work.py.
"""

from __future__ import annotations

from moeprof.core.metric import MetricValue, missing
from moeprof.core.model_facts import GROUPS, ModelFacts

COUNTS = ("total_params", "active_params", "active_params_no_embedding", "active_params_no_embedding_no_head")


def parameter_metrics(facts: ModelFacts) -> list[MetricValue]:
    """Total, active in three conventions, by group, and the shape that sparsity has."""
    values = [MetricValue(name=name, value=getattr(facts, name), exact=True) for name in COUNTS]
    values.append(_ratio("active_params_ratio", facts.active_params, facts.total_params))
    values += [
        MetricValue(name="params", value=facts.params_by_group.get(group, 0), exact=True, labels={"group": group})
        for group in GROUPS
    ]
    values.append(_fact("kv_bytes_per_token", facts.kv_bytes_per_token, facts))
    values.append(_fact("attention_flops_per_pair", facts.attention_flops_per_pair, facts))
    return [*values, *_sparsity(facts)]


def _sparsity(facts: ModelFacts) -> list[MetricValue]:
    """E, k and the number of MoE layers; where layers differ the largest E and k, said in the reasons."""
    names = ("num_moe_layers", "num_experts", "top_k", "expert_bytes")
    if not facts.is_moe:
        return [missing(name, "dense model") for name in names]
    layers = facts.moe_layers
    columns = {
        "num_experts": [layer.num_experts for layer in layers],
        "top_k": [layer.top_k for layer in layers],
        "expert_bytes": [layer.expert_bytes for layer in layers],
    }
    values = [MetricValue(name="num_moe_layers", value=len(layers), exact=True)]
    for name, column in columns.items():
        differ = () if len(set(column)) == 1 else (f"layers differ: {min(column)} to {max(column)}, the largest shown",)
        values.append(MetricValue(name=name, value=max(column), exact=True, reasons=differ))
    return values


def _ratio(name: str, part: int, whole: int) -> MetricValue:
    return MetricValue(name=name, value=part / whole, exact=True) if whole else missing(name, "no parameters")


def _fact(name: str, value: int | None, facts: ModelFacts) -> MetricValue:
    if value is not None:
        return MetricValue(name=name, value=value, exact=True)
    return missing(name, next((note for note in facts.notes if note.startswith("KV bytes unknown")), "not known"))
