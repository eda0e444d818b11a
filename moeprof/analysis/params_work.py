"""Bytes and FLOPs that a model's shape promises, before anything runs. METRICS sections 3 (uniform null) and 5."""

from __future__ import annotations

import math

from moeprof.analysis.metrics.routing_nulls import uniform_distinct
from moeprof.analysis.step_work import ALWAYS_READ
from moeprof.core.modelfacts import ModelFacts, MoeLayerFacts


def weights_bytes(facts: ModelFacts, bits: int) -> int:
    """Bytes of all parameters at so many bits each, scales not counted."""
    return math.ceil(facts.total_params * bits / 8)


def flops_per_token(facts: ModelFacts, context: int) -> int:
    """FLOPs of one decoded token: 2 per parameter it passes, and attention over ``context`` tokens where known.

    Norms and the look-up of the embedding are not counted; code that runs all experts counts all.
    """
    through = sum(facts.params_by_group.get(group, 0) for group in ALWAYS_READ if group != "norm")
    experts = sum(_executed(layer) * layer.expert_params for layer in facts.moe_layers)
    head = facts.params_by_group.get(_head(facts), 0)
    return 2 * (through + experts + head) + (facts.attention_flops_per_pair or 0) * context


def weights_bytes_per_step(facts: ModelFacts, batch: int, bits: int) -> float:
    """Bytes of weights that one decode step of ``batch`` tokens reads, experts chosen evenly (METRICS 5).

    Every matrix outside of the experts once, each distinct expert once, the head once; embedding rows are not counted.
    """
    resident = sum(facts.params_by_group.get(group, 0) for group in ALWAYS_READ)
    experts = sum(touched(layer, batch) * layer.expert_params for layer in facts.moe_layers)
    return (resident + experts + facts.params_by_group.get(_head(facts), 0)) * bits / 8


def _head(facts: ModelFacts) -> str:
    return "embedding" if facts.tied_embeddings else "lm_head"


def _executed(layer: MoeLayerFacts) -> int:
    return layer.num_experts if layer.executes_all_experts else layer.top_k


def touched(layer: MoeLayerFacts, batch: int) -> float:
    """Distinct experts of a layer that ``batch`` tokens touch when they choose evenly: E * (1 - (1 - k/E)^batch)."""
    if layer.executes_all_experts:
        return float(layer.num_experts)
    return float(uniform_distinct(layer.num_experts, layer.top_k, batch))
