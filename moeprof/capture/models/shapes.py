"""Sizes without torch: widths that a config names, bytes of a token's keys and values, the shape of an MoE layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Configs that name one of these cache something else, or more, than keys and values.
_OTHER_CACHES = ("linear_num_value_heads", "mamba_d_state", "ssm_state_size", "index_topk", "indexer_budget")
# Kind of a layer -> keys of its heads of keys, width of a key and of a value, where they are not those of all layers.
_WIDTHS_OF_KINDS = {
    "full_attention": ("num_global_key_value_heads", "global_head_dim", "global_head_dim"),
    "sliding_attention": ("swa_num_key_value_heads", "swa_head_dim", "swa_v_head_dim"),
}
# How configs (and modules of their classes) call the number of experts and of a token's picks.
EXPERT_COUNT_KEYS = ("num_experts", "n_routed_experts", "num_routed_experts", "num_local_experts", "moe_num_experts")
TOP_K_KEYS = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_top_k", "moe_topk", "moe_k",
              "num_selected_experts")  # fmt: skip

# Under which of its keys a config of several parts holds that of its language model.
NESTED = (
    "text_config",
    "llm_config",
    "language_config",
    "thinker_config",
    "language_model_config",
    "text_cfg",
    "llm_cfg",
)


def nested_key(config: Mapping[str, Any]) -> str | None:
    """The key that holds the config of the language model; None where it is not nested."""
    return next((key for key in NESTED if isinstance(config.get(key), dict) and config[key]), None)


def text_values(config: dict[str, Any]) -> dict[str, Any]:
    """What a config.json says of its language model: its nested config, of several inside each other the last."""
    for _ in range(len(NESTED)):
        key = nested_key(config)
        if key is None:
            break
        config = config[key]
    return config


def kv_bytes_per_token(config: dict[str, Any], *, width_bytes: int | None = None, paged: bool = True) -> int | None:
    """Bytes of keys and values per token over all layers, each as wide as its kind.

    Sum over layers of heads of keys * (key width + value width) * bytes. Latent attention is cached expanded to all
    heads by the paged engine, and in another form by others.

    Args:
        config: a config.json.
        width_bytes: of an element; the config's own dtype when left out.
        paged: True where the paged engine (moeprof's own) runs it.

    Returns:
        None for caches of another kind (states of constant size, an index beside keys and values), and where layers
        differ in width and the config does not say which is which.
    """
    text = text_values(config)
    widths = read_widths(config)
    if widths is None or any(key in text for key in _OTHER_CACHES):
        return None
    if text.get("kv_lora_rank") and not paged:
        return None
    per_layer = widths.kv_heads * (widths.key_dim + widths.value_dim)
    elements = widths.layers * per_layer
    if any(text.get(key) for names in _WIDTHS_OF_KINDS.values() for key in names):
        kinds = text.get("layer_types") or ()
        if len(kinds) != widths.layers:
            return None
        elements = sum(_elements(text, widths, str(kind)) for kind in kinds)
    return elements * (width_bytes or stored_bytes(config))


def _elements(text: dict[str, Any], widths: Widths, kind: str) -> int:
    """Of one token in a layer of this kind: heads of keys times the widths of key and value."""
    heads, key, value = (text.get(name) for name in _WIDTHS_OF_KINDS.get(kind, ("", "", "")))
    return (heads or widths.kv_heads) * ((key or widths.key_dim) + (value or key or widths.value_dim))


def read_widths(config: dict[str, Any]) -> Widths | None:
    """The sizes that a config.json names; None where it does not speak of a plain decoder."""
    config = text_values(config)

    def number(*names: str) -> int:
        return next((int(config[n]) for n in names if isinstance(config.get(n), int | float) and config[n]), 0)

    heads, model_dim = number("num_attention_heads", "n_heads", "num_heads"), number("hidden_size", "d_model", "n_embd")
    layers = number("num_hidden_layers", "n_layers", "num_layers", "n_layer")
    if not (heads and model_dim and layers):
        return None
    is_latent = bool(config.get("kv_lora_rank"))
    key_dim = number("qk_nope_head_dim") + number("qk_rope_head_dim") if is_latent else 0
    head_dim = number("head_dim") or model_dim // heads
    experts = number(*EXPERT_COUNT_KEYS)
    expert_units = number("moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size", "ffn_hidden_size")
    shared = (
        number("shared_expert_intermediate_size") or number("n_shared_experts", "num_shared_experts") * expert_units
    )
    return Widths(
        model_dim=model_dim,
        layers=layers,
        heads=heads,
        kv_heads=heads if is_latent else number("num_key_value_heads") or heads,
        key_dim=key_dim or head_dim,
        value_dim=number("v_head_dim") or head_dim,
        dense_units=number("intermediate_size", "ffn_hidden_size") or 4 * model_dim,
        experts=experts,
        top_k=number(*TOP_K_KEYS) if experts else 0,
        expert_units=expert_units if experts else 0,
        shared_units=shared if experts else 0,
        vocabulary=number("vocab_size"),
    )


def stored_bytes(config: dict[str, Any]) -> int:
    """Bytes of an element in the dtype that the config names; 4 where it names none."""
    text = text_values(config)
    named = next((c.get(key) for c in (config, text) for key in ("dtype", "torch_dtype") if c.get(key)), "float32")
    return DTYPE_BYTES.get(str(named), 4)


DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}


@dataclass(frozen=True, slots=True, kw_only=True)
class Widths:
    """Sizes of a decoder, per token.

    Attributes:
        model_dim: of the residual stream.
        layers: decoder layers.
        heads: query heads.
        kv_heads: key and value heads; all heads for latent attention, which is cached expanded.
        key_dim: width of a key.
        value_dim: width of a value.
        dense_units: of a dense layer's MLP.
        experts: per layer; 0 for a dense model.
        top_k: experts of a token.
        expert_units: of one expert.
        shared_units: of all shared experts.
        vocabulary: logits of a token.
    """

    model_dim: int
    layers: int
    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    dense_units: int
    experts: int
    top_k: int
    expert_units: int
    shared_units: int
    vocabulary: int

    def twin_units(self, match: str) -> int:
        """Units of a dense twin's MLP; see ModelSpec.match."""
        active = self.top_k * self.expert_units + self.shared_units
        if match.endswith("x"):
            return round(float(match[:-1]) * active)
        whole = {"active": active, "total": self.experts * self.expert_units + self.shared_units}
        return whole[match] if match in whole else int(match)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """E and k of one MoE layer; ``num_identity`` ids from E on stand for experts that compute nothing.

    ``number`` is the layer's own in the model, dense layers counted; None where its name has none.
    """

    num_experts: int
    top_k: int
    num_identity: int = 0
    number: int | None = field(default=None, compare=False)

    @property
    def num_ids(self) -> int:
        """Ids that a pick may have."""
        return self.num_experts + self.num_identity


def layer_number(name: str) -> int | None:
    """The number in a layer's name: 3 of ``model.layers.3.mlp``; None where there is none, or more than one."""
    found = [part for part in name.split(".") if part.isdecimal()]
    return int(found[0]) if len(found) == 1 else None
