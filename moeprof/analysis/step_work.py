"""Bytes and FLOPs of every step, from what ran (METRICS section 5). Vectorised: S steps, L MoE layers.

A step reads every resident matrix once, the experts that its tokens chose, the keys and values of its sequences, and
the head; it multiplies each token with the matrices it passes. How many expert bytes are read depends on the kernel:
grouped kernels fetch each distinct expert once, gathering kernels fetch three times per token and pick, and code that
runs all experts fetches all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moeprof.analysis.tables import BoolArray, FloatArray, PassTables, column, is_phase
from moeprof.core.modelfacts import ModelFacts

ALWAYS_READ = ("attention", "dense_mlp", "router", "shared_experts", "norm", "other")
# bytes per (token, pick) relative to one expert, for kernels that copy weights per pick: read, write, read again.
GATHER_FACTOR = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWork:
    """Work of the steps of a pass that were counted.

    Attributes:
        bytes_S: bytes moved per step.
        flops_S: FLOPs per step.
        time_S: wall time per step, seconds.
        tokens_S: tokens computed per step.
        touched_params_S: parameters read per step, the embedding rows looked up included.
        kept_S: which rows of table ``steps`` these are.
    """

    bytes_S: FloatArray
    flops_S: FloatArray
    time_S: FloatArray
    tokens_S: FloatArray
    touched_params_S: FloatArray
    kept_S: BoolArray

    def phase_mask(self, tables: PassTables, phase: str) -> BoolArray:
        """Which of the counted steps are of this phase (``all`` = every one)."""
        mask: BoolArray = is_phase(tables.steps, phase)[self.kept_S]
        return mask


def step_work(tables: PassTables, facts: ModelFacts, engine: Mapping[str, Any]) -> StepWork | str:
    """The work of a pass, or the reason why it is unknown.

    Args:
        tables: the pass.
        facts: the model.
        engine: EngineFacts as in launch.json; ``experts`` names the experts implementation.
    """
    steps = tables.steps
    if facts.kv_bytes_per_token is None or facts.attention_flops_per_pair is None:
        return next((n for n in facts.notes if n.startswith("KV bytes unknown")), "KV bytes per token are unknown")
    distinct = distinct_experts(tables, facts)
    if isinstance(distinct, str):
        return distinct
    distinct_SL, kept_S = distinct
    tokens = (column(steps, "prefill_tokens") + column(steps, "decode_tokens"))[kept_S]
    rows = column(steps, "new_tokens")[kept_S]
    pairs, context = column(steps, "attention_pairs")[kept_S], column(steps, "context_tokens")[kept_S]
    size, params = facts.bytes_by_group, facts.params_by_group
    head = "embedding" if facts.tied_embeddings else "lm_head"
    expert_bytes, expert_params_read, expert_flops = _experts(facts, distinct_SL, tokens, engine.get("experts"))
    resident = sum(size.get(group, 0) for group in ALWAYS_READ)
    bytes_S = resident + expert_bytes + facts.kv_bytes_per_token * (context + tokens) + (rows > 0) * size.get(head, 0)
    through = sum(params.get(group, 0) for group in ALWAYS_READ if group != "norm")
    flops_S = 2 * (tokens * through + expert_flops + rows * params.get(head, 0))
    flops_S = flops_S + facts.attention_flops_per_pair * pairs
    looked_up = 0.0 if facts.tied_embeddings else tokens * facts.hidden_size
    not_routed = facts.total_params - params.get("routed_experts", 0)
    touched = not_routed - (0 if facts.tied_embeddings else params.get("embedding", 0)) + expert_params_read + looked_up
    return StepWork(
        bytes_S=bytes_S,
        flops_S=flops_S,
        time_S=(column(steps, "end_s") - column(steps, "start_s"))[kept_S],
        tokens_S=tokens,
        touched_params_S=np.broadcast_to(touched, tokens.shape).astype(np.float64),
        kept_S=kept_S,
    )


def distinct_experts(tables: PassTables, facts: ModelFacts) -> tuple[FloatArray, BoolArray] | str:
    """U per counted step and MoE layer, in the order of ``facts.moe_layers``, and which steps were counted."""
    num = len(tables.steps)
    if num == 0:
        return "no steps"
    if not facts.is_moe:
        return np.zeros((num, 0)), np.ones(num, dtype=np.bool_)
    routing = tables.routing
    if routing is None:
        return "routing was not recorded"
    known = {name: i for i, name in enumerate(routing.layer_names)}
    if any(layer.name not in known for layer in facts.moe_layers):
        return "routing was recorded for other layers than the model has"
    counted = min(num, len(routing.distinct_SL))
    kept = (np.arange(num) < counted) & tables.steps["instrumented"].fillna(True).to_numpy(dtype=np.bool_)
    if not kept.any():
        return "routing was recorded for no step"
    order = [known[layer.name] for layer in facts.moe_layers]
    return routing.distinct_SL[:counted][kept[:counted]][:, order].astype(np.float64), kept


def _experts(
    facts: ModelFacts, distinct_SL: FloatArray, tokens_S: FloatArray, kernel: str | None
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Expert bytes moved, distinct expert parameters read, and multiply-adds of experts, per step."""
    num_bytes, params, macs = (np.zeros(len(tokens_S)) for _ in range(3))
    for i, layer in enumerate(facts.moe_layers):
        everyone = layer.executes_all_experts
        touched_S = np.full(len(tokens_S), float(layer.num_experts)) if everyone else distinct_SL[:, i]
        picks_S = tokens_S * (layer.num_experts if everyone else layer.top_k)
        gathers = kernel == "batched_mm" and not everyone
        num_bytes += layer.expert_bytes * (GATHER_FACTOR * picks_S if gathers else touched_S)
        params += layer.expert_params * touched_S
        macs += layer.expert_params * picks_S
    return num_bytes, params, macs
