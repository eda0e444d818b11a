"""What a model is, as metrics (docs/metrics.md#parameters). Counted facts: exact, without intervals.

``touched_params_per_step``, what a batch really reads, is measured: see work.py beside it.
"""

from __future__ import annotations

from functools import partial

from moeprof.analysis.metrics.context import Context
from moeprof.core.metric import Card, MetricValue, Place, measured, missing
from moeprof.core.model_facts import ModelFacts

COUNTS = ("total_params", "active_params", "active_params_no_embedding", "active_params_no_embedding_no_head")

_card = partial(Card, section="parameters", source="docs/metrics.md#parameters", kind="exact")
_shape = partial(Card, section="comparison", source="docs/metrics.md#parameters", kind="exact")
CARDS: tuple[Card, ...] = (
    _card("total_params", "parameters, total", "parameters", "neither", "all parameters, tied ones once",
          gates=(Place(10, "+0%"),), baseline=(Place(10),)),
    _card("active_params", "parameters, active (A)", "parameters", "neither",
          "total - sum over MoE layers of routed * (1 - k/E) - parts that no text token passes; Mixtral, Qwen, OLMoE, "
          "DBRX, Jamba publish this one",
          gates=(Place(20, "+0%"),), baseline=(Place(20),)),
    _card("active_params_no_embedding", "parameters, active without embedding (B)", "parameters", "neither",
          "A - input embedding (kept when tied); gpt-oss and DeepSeek-V3 publish this one"),
    _card("active_params_no_embedding_no_head", "parameters, active without embedding and head (C)", "parameters",
          "neither", "B - lm_head; GLM-4.5, MiniMax-Text-01 and Moonlight publish this one"),
    _card("active_params_ratio", "active / total", "share", "neither", "active_params / total_params",
          screen=(Place(160, "active / total parameters"),)),
    _card("params", "parameters of a group", "parameters", "neither", "parameters of the group in label group"),
    _card("num_moe_layers", "MoE layers", "layers", "neither", "blocks of routed experts"),
    _card("num_experts", "experts per layer", "experts", "neither", "E"),
    _card("top_k", "experts per token", "experts", "neither", "k"),
    _card("expert_bytes", "size of one expert", "B", "neither", "bytes of one routed expert as stored"),
    _card("kv_bytes_per_token", "KV bytes per token", "B", "lower", "keys and values of a token that all layers see",
          gates=(Place(40, "0%"),), baseline=(Place(40),)),
    _card("attention_flops_per_pair", "attention FLOPs per pair", "FLOP", "lower",
          "2 * heads * (key width + value width) over all layers, per query-key pair", gates=(Place(60, "+0%"),)),
    _shape("published_total_params", "parameters, as published", "parameters", "neither", "the vendor's figure",
          source="the built-in list: moeprof params --list"),
    _shape("published_active_params", "active parameters, as published", "parameters", "neither", "the vendor's figure",
          source="the built-in list: moeprof params --list"),
    _shape("published_convention", "how the vendor counts active parameters", "convention", "neither",
          "A = all but idle experts, B = A without the input embedding, C = B without the head, or the nearest"),
    _shape("published_total_error_ratio", "our total against the published one", "ratio", "neither",
          "total_params / published_total_params - 1"),
    _shape("published_active_error_ratio", "our active count against the published one", "ratio", "neither",
          "the active count in the vendor's convention / published_active_params - 1"),
    _shape("num_layers", "layers", "layers", "neither", "of encoder and decoder together"),
    _shape("expert_params", "parameters of one expert", "parameters", "neither", "all matrices of one routed expert"),
    _shape("weights_bytes_per_step", "bytes of weights that a decode step reads", "B", "lower",
          "resident matrices + sum over MoE layers of E(1-(1-k/E)^B) * expert_bytes + head, at batch B, uniform null",
          source="docs/metrics.md#work"),
    _shape("weights_bytes_per_token", "bytes of weights read per token", "B", "lower", "weights_bytes_per_step / batch",
          source="docs/metrics.md#work"),
    _shape("kv_bytes_per_step", "bytes of keys and values that a decode step moves", "B", "lower",
          "batch * sum over layers of bytes per token * min(context + 1, window), and 2 * every constant state",
          source="docs/metrics.md#work"),
    _shape("kept_bytes_per_sequence", "bytes kept of a sequence", "B", "lower",
          "sum over layers of bytes per token * min(context, window), and every constant state",
          source="docs/metrics.md#memory"),
    _shape("devices_needed", "devices that hold the model", "devices", "lower",
          "ceil((weights_bytes + largest batch * kept_bytes_per_sequence) / (0.9 * device memory))",
          source="docs/metrics.md#memory"),
    _shape("twin_params", "parameters of a dense twin", "parameters", "neither",
          "active_params or total_params, by label match, without the routers", source="docs/metrics.md#sparsity"),
)  # fmt: skip


def compute(context: Context) -> list[MetricValue]:
    """What a model is."""
    return parameter_metrics(context.facts)


def parameter_metrics(facts: ModelFacts) -> list[MetricValue]:
    """Total, active in three conventions, by group, and the shape that sparsity has."""
    values = [MetricValue(name=name, value=getattr(facts, name), exact=True) for name in COUNTS]
    ratio = facts.active_params / facts.total_params if facts.total_params else None
    values.append(measured("active_params_ratio", ratio, "no parameters", exact=True))
    values += [
        MetricValue(name="params", value=facts.params_by_group.get(group, 0), exact=True, labels={"group": group})
        for group in facts.groups
    ]
    layers = facts.layers_of_attention
    unknown = layers if isinstance(layers, str) else "not known"
    values += [
        measured(name, getattr(facts, name), unknown, exact=True)
        for name in ("kv_bytes_per_token", "attention_flops_per_pair")
    ]
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
