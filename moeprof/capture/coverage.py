"""Which MoE classes of the installed transformers can be measured: every one is tried, tiny and random.

A class is run through the real engine with the tap on and the self-check of every replay; nothing is concluded from a
forward pass alone. ``moeprof doctor --coverage`` prints the table.

A tiny random model of every MoE class that transformers can load as a causal language model.

The classes are found by looking, not by a list: a causal class counts as a mixture of experts when its modelling file
defines a class whose name ends in ``Experts`` (or one of the few that call theirs otherwise). The tiny configuration
starts from the class's own defaults and shrinks what it finds, so a new architecture usually needs no line here.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers.configuration_utils import ALLOWED_LAYER_TYPES
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from moeprof.capture import compat
from moeprof.capture.engines.base import Engine, ListenerSet
from moeprof.capture.models.moe_layers import find_moe_layers
from moeprof.capture.routing.check import SelfCheck, self_check
from moeprof.capture.routing.tap import RoutingTap
from moeprof.core.errors import ModelError, UnsupportedModelError
from moeprof.core.trace import Request

NUM_EXPERTS, TOP_K, VOCABULARY = 8, 2, 128

# attribute -> tiny value, applied where the default configuration has the attribute and it is a number.
SHRUNK: dict[str, int] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "d_model": 32,
    "intermediate_size": 32,
    "dense_intermediate_size": 32,
    "ffn_hidden_size": 32,
    "expert_ffn_hidden_size": 16,
    "moe_intermediate_size": 16,
    "shared_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "shared_experts_intermediate_size": 16,
    "moe_shared_expert_intermediate_size": 16,
    "intermediate_size_mlp": 32,
    "num_hidden_layers": 3,
    "num_layers": 2,
    "n_layers": 3,
    "num_attention_heads": 4,
    "n_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "global_head_dim": 8,
    "max_position_embeddings": 256,
    "max_seq_len": 256,
    "num_experts": NUM_EXPERTS,
    "num_local_experts": NUM_EXPERTS,
    "n_routed_experts": NUM_EXPERTS,
    "moe_num_experts": NUM_EXPERTS,
    "num_experts_per_tok": TOP_K,
    "num_experts_per_token": TOP_K,
    "moe_topk": TOP_K,
    "moe_k": TOP_K,
    "top_k_experts": TOP_K,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "sliding_window": 8,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 16,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_dt_rank": 2,
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "ssm_state_size": 8,
    "n_groups": 1,
    "o_groups": 2,
    "o_lora_rank": 16,
    "router_hidden_size": 16,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 8,
    "unpadded_vocab_size": VOCABULARY,
    "d_rel": 4,
    "rel_extent": 16,
    "kv_channels": 8,
    "num_expert_group": 1,
    "zero_expert_num": 4,
    "attention_chunk_size": 8,
}


def moe_causal_lm_types() -> tuple[str, ...]:
    """The model types of every MoE causal language model of the installed transformers, sorted, one per class."""
    by_class: dict[type, str] = {}
    for config_class in MODEL_FOR_CAUSAL_LM_MAPPING:
        model_class = MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
        model_class = model_class[0] if isinstance(model_class, tuple) else model_class
        module = importlib.import_module(model_class.__module__)
        names = [name for name, item in vars(module).items() if inspect.isclass(item)]
        if any(name.endswith(("Experts", "CDMoE")) for name in names) and "text_config" not in config_class.sub_configs:
            by_class[model_class] = config_class.model_type
    return tuple(sorted(by_class.values()))


# Older transformers (5.17) have a name per model for the same kind of layer.
_INDEXED = "indexed_attention" if "indexed_attention" in ALLOWED_LAYER_TYPES else "qwen_sparse_attention"
# What the generic shrinking cannot know, by model type.
_SPARSE_TAIL = {"layer_types": ["conv", "full_attention", "conv", "full_attention"], "num_hidden_layers": 4}
OVERRIDES: dict[str, dict[str, Any]] = {
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": NUM_EXPERTS, "moe_top_k": TOP_K},
    },
    "deepseek_v2": {"num_experts_per_tok": TOP_K},
    "doge": {"is_moe": True, "num_experts": 16},
    "dots1": {"n_routed_experts": NUM_EXPERTS, "num_experts_per_tok": TOP_K, "n_shared_experts": 1},
    "dots3_note_text": {
        "layer_types": ["indexed_attention"] * 3,
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "num_hidden_layers": 3,
        "num_key_value_heads": 4,
        "head_dim": 16,
    },
    "gemma4_text": {
        "enable_moe_block": True,
        "num_experts": NUM_EXPERTS,
        "top_k_experts": TOP_K,
        "moe_intermediate_size": 16,
        "layer_types": ["sliding_attention", "full_attention"],
        "num_hidden_layers": 2,
        "head_dim": 8,
        "global_head_dim": 16,
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": VOCABULARY,
    },
    "granitemoehybrid": {
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "num_hidden_layers": 3,
    },
    "hunyuan_v1_moe": {"num_key_value_heads": 2, "head_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "num_hidden_layers": 4},
    "lfm2_moe": _SPARSE_TAIL,
    "longcat_flash": {"moe_topk": TOP_K, "num_layers": 2, "num_hidden_layers": 4},
    "minimax_m3_vl_text": {"layer_types": ["full_attention", "minimax_m3_sparse"] * 2},
    "nemotron_h": {"layers_block_type": ["linear_attention", "moe", "full_attention", "moe"]},
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", _INDEXED],
        "num_hidden_layers": 2,
        "hc_lowrank": 8,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
    },
    "zaya": {"num_experts_per_tok": 1},
}


def _tiny_layers(default: Any, num_layers: int) -> dict[str, list[Any]]:
    """Per-layer lists of a default configuration, cut to a few layers that still hold every kind of layer."""
    depth = getattr(default, "num_hidden_layers", None)
    if not isinstance(depth, int):
        return {}
    lists = {
        name: value for name, value in default.to_dict().items() if isinstance(value, list) and len(value) == depth
    }
    if not lists:
        return {}
    kinds: dict[tuple[Any, ...], int] = {}
    for layer, kind in enumerate(zip(*lists.values(), strict=True)):
        kinds.setdefault(tuple(map(str, kind)), layer)
    chosen = sorted(kinds.values())[:num_layers]
    chosen += [layer for layer in range(depth - 1, -1, -1) if layer not in chosen][: num_layers - len(chosen)]
    return {name: [value[layer] for layer in sorted(chosen)] for name, value in lists.items()}


def _global_value(config: Any, name: str) -> Any:
    """A default, also where the configuration lets layers differ (then plain access raises)."""
    return config.to_dict().get(name, None if "per_layer_config" in config.to_dict() else getattr(config, name, None))


def tiny_config(model_type: str) -> Any:
    """A configuration of this type with a few thousand parameters, 8 experts and top-2 where it can choose.

    Raises:
        ModelError: transformers does not know the type.
    """
    if model_type not in CONFIG_MAPPING:
        raise ModelError(f"model type {model_type!r} is unknown to the installed transformers")
    config_class = CONFIG_MAPPING[model_type]
    default = config_class()
    values: dict[str, Any] = {}
    for name, tiny in SHRUNK.items():
        if isinstance(_global_value(default, name), int):
            values[name] = tiny
    if "kv_lora_rank" in values:
        values["num_key_value_heads"] = values["num_attention_heads"]  # latent attention has one value per head
    lists = _tiny_layers(default, 4)
    if lists:
        values |= lists | {"num_hidden_layers": len(next(iter(lists.values())))}
    values |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2} | OVERRIDES.get(model_type, {})
    return config_class(**values)


def tiny_model(model_type: str, *, seed: int = 0) -> torch.nn.Module:
    """A tiny random float32 model in evaluation mode."""
    config = tiny_config(model_type)
    torch.manual_seed(seed)
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    model_class = model_class[0] if isinstance(model_class, tuple) else model_class
    model: torch.nn.Module = compat.from_config_of(model_class)(config, dtype=torch.float32)
    return model.eval()


Verdict = Literal["works", "adapter", "refused", "fails"]
EngineFactory = Callable[[Any, ListenerSet], Engine]
PROMPT_TOKENS, OUTPUT_TOKENS = (7, 4), (3, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class CoverageRow:
    """One architecture.

    Attributes:
        model_type: as in its configuration.
        architecture: class name.
        verdict: ``works`` by the rule, by an ``adapter``, ``refused`` by name, or ``fails`` the self-check.
        batching: ``continuous`` or ``static``; None when refused.
        reason: why refused or failing, else what a reader should know; may be empty.
        check: the self-check, or None when refused.
    """

    model_type: str
    architecture: str
    verdict: Verdict
    batching: str | None
    reason: str
    check: SelfCheck | None = None


def coverage(engine_factory: EngineFactory, model_types: Sequence[str] | None = None) -> list[CoverageRow]:
    """Try every class (or the given types) through the engine; an unexpected error is raised, not hidden."""
    return [_try(model_type, engine_factory) for model_type in (model_types or moe_causal_lm_types())]


def _try(model_type: str, engine_factory: EngineFactory) -> CoverageRow:
    model, listeners = tiny_model(model_type), ListenerSet()
    architecture = type(model).__name__
    try:
        layers = find_moe_layers(model)
    except UnsupportedModelError as error:
        return CoverageRow(
            model_type=model_type, architecture=architecture, verdict="refused", batching=None, reason=str(error)
        )
    engine = engine_factory(model, listeners)
    tap = RoutingTap(model, layers)
    try:
        check = self_check(tap, engine, listeners, lambda: _run(engine))
    finally:
        tap.close()
    verdict: Verdict = "works" if check.passed else "fails"
    if check.passed and any(
        layer.hook != "experts_arguments" or layer.skips_zero_weight or layer.num_identity > 0 for layer in layers
    ):
        verdict = "adapter"
    return CoverageRow(
        model_type=model_type,
        architecture=architecture,
        verdict=verdict,
        batching=engine.facts.batching,
        reason=check.reason or "; ".join((*engine.facts.notes, *check.notes)),
        check=check,
    )


def _run(engine: Engine) -> None:
    for index, (prompt, output) in enumerate(zip(PROMPT_TOKENS, OUTPUT_TOKENS, strict=True)):
        ids = [3 + (5 * index + 7 * i) % (VOCABULARY - 3) for i in range(prompt)]
        engine.submit(
            Request(
                index=index,
                request_id=str(index),
                arrival_s=0.0,
                input_ids=ids,
                output_tokens=output,
                output_ids=None,
                request_class="all",
            )
        )
    while engine.step() is not None:
        pass
