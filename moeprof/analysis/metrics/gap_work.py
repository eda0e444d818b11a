"""Bytes and FLOPs of each part of a step: METRICS section 5, one stage of core/gap.py at a time.

The sum over stages is that of step_work.py, plus the embedding rows looked up. A part's floor is the longer of moving
its bytes at the measured bandwidth and multiplying at the measured rate; parts follow each other, so the sum of the
floors is at least the floor of the whole step, and more where some parts wait for memory and others for arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moeprof.analysis.metrics.work import Limits
from moeprof.analysis.step_work import GATHER_FACTOR
from moeprof.core.gap import STAGES, GapPoint
from moeprof.core.modelfacts import ModelFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one part of a step has to do. Bytes are moved, FLOPs computed."""

    num_bytes: float = 0.0
    flops: float = 0.0

    def floor_s(self, limits: Limits) -> float | None:
        """Seconds it takes at least; None unless both limits are known and apply."""
        if limits.bandwidth_bytes_per_s is None or limits.flops_per_s is None:
            return None
        return max(self.num_bytes / limits.bandwidth_bytes_per_s, self.flops / limits.flops_per_s)

    def __add__(self, other: Work) -> Work:
        return Work(num_bytes=self.num_bytes + other.num_bytes, flops=self.flops + other.flops)


def total_of(works: Mapping[str, Work]) -> Work:
    """The work of the whole step."""
    return sum(works.values(), Work())


def stage_work(
    point: GapPoint, layers: tuple[str, ...], facts: ModelFacts, engine: Mapping[str, Any]
) -> dict[str, Work] | str:
    """The work of every stage of a step of this size, or the reason why it is unknown.

    Args:
        point: the size, with what its steps touched.
        layers: names of the MoE layers, the order of ``point.distinct_L``.
        facts: the model.
        engine: EngineFacts as in launch.json; the experts kernel says how often an expert is read.
    """
    if facts.kv_bytes_per_token is None or facts.attention_flops_per_pair is None:
        return next((n for n in facts.notes if n.startswith("KV bytes unknown")), "KV bytes per token are unknown")
    distinct = _distinct(point, layers, facts)
    if isinstance(distinct, str):
        return distinct
    size, params, tokens = facts.bytes_by_group, facts.params_by_group, point.tokens

    def dense(*groups: str) -> Work:
        """Matrices that are read once and multiply every token."""
        through = sum(params.get(group, 0) for group in groups if group != "norm")
        return Work(num_bytes=sum(size.get(group, 0) for group in groups), flops=2 * tokens * through)

    head, rows = "embedding" if facts.tied_embeddings else "lm_head", point.new_tokens
    per_param = size.get("embedding", 0) / max(1, params.get("embedding", 0))
    gathers = _kernel(point, engine) == "batched_mm"
    experts, copied = _experts(point, facts, distinct, gathers)
    works = dict.fromkeys(STAGES, Work()) | {
        "embedding": Work(num_bytes=tokens * facts.hidden_size * per_param),
        "attention_projections": dense("attention"),
        "attention": Work(
            num_bytes=facts.kv_bytes_per_token * (point.context_tokens + tokens),
            flops=facts.attention_flops_per_pair * point.attention_pairs,
        ),
        "router": dense("router"),
        "dispatch": Work(num_bytes=copied),
        "experts": experts,
        "mlp": dense("dense_mlp", "shared_experts"),
        "elementwise": dense("norm", "other"),
        "lm_head": Work(num_bytes=size.get(head, 0) if rows else 0, flops=2 * rows * params.get(head, 0)),
    }
    return works


def _kernel(point: GapPoint, engine: Mapping[str, Any]) -> str | None:
    own = engine.get("decode_experts") if point.phase == "decode" else None
    return own or engine.get("experts")


def _distinct(point: GapPoint, layers: tuple[str, ...], facts: ModelFacts) -> tuple[float, ...] | str:
    """Experts touched per MoE layer, in the order of ``facts.moe_layers``."""
    if not facts.is_moe:
        return ()
    if point.distinct_L is None:
        return "routing was not recorded"
    known = dict(zip(layers, point.distinct_L, strict=True))
    if any(layer.name not in known for layer in facts.moe_layers):
        return "routing was recorded for other layers than the model has"
    return tuple(known[layer.name] for layer in facts.moe_layers)


def _experts(point: GapPoint, facts: ModelFacts, distinct: tuple[float, ...], gathers: bool) -> tuple[Work, float]:
    """The experts' products, and bytes copied for them: kernels that gather weights read and write them once before."""
    products, copied = Work(), 0.0
    for layer, touched in zip(facts.moe_layers, distinct, strict=True):
        everyone = layer.executes_all_experts
        picks = point.tokens * (layer.num_experts if everyone else layer.top_k)
        read = layer.num_experts if everyone else picks if gathers else touched
        products += Work(num_bytes=layer.expert_bytes * read, flops=2 * layer.expert_params * picks)
        copied += layer.expert_bytes * (GATHER_FACTOR - 1) * picks if gathers and not everyone else 0.0
    return products, copied
