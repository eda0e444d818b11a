"""What attention keeps and computes per token: KV elements and FLOPs per query-key pair, read off the modules."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

_STATE = re.compile(r"Mamba|DeltaNet|Lightning|LinearAttention|ShortConv|Recurrent|Kda|Rwkv", re.IGNORECASE)
_CONTAINER = re.compile(r"(Layer|Model|Block|LM)$")
_OUT_PROJECTIONS = ("o_proj", "out_proj", "dense", "wo", "c_proj", "o", "linear_proj")
_FUSED = ("Wqkv", "qkv_proj", "query_key_value", "kv_proj", "c_attn", "qkv", "wqkv")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionShapes:
    """Sums over the layers that keep keys and values.

    Attributes:
        kv_elements_per_token: elements cached per token, or None when the cache is of another kind.
        flops_per_pair: FLOPs per query-key pair (scores and values), or None.
        notes: why something is None, or what is left out.
    """

    kv_elements_per_token: int | None
    flops_per_pair: int | None
    notes: tuple[str, ...]


def attention_shapes(model: nn.Module) -> AttentionShapes:
    """Shapes of every attention module: 2 FLOPs per element of q.k and 2 per element of p.v, per query-key pair."""
    config = _text_config(getattr(model, "config", None))
    if getattr(config, "is_encoder_decoder", False):
        return _unknown("encoder and decoder")
    elements = flops = 0
    keeping, states = set[str](), set[str]()
    for path, module in model.named_modules():
        layer, kind = _layer_of(path), type(module).__name__
        if hasattr(module, "indexer") and isinstance(module.indexer, nn.Module):
            return _unknown("sparse attention keeps an index besides keys and values")
        if _STATE.search(kind) or _is_stateful(path, config):
            if not _CONTAINER.search(kind) and next(module.children(), None) is not None:
                states.add(layer)
            continue
        shape = _shape_of(module, config)
        if shape is not None:
            keeping.add(layer)
            elements, flops = elements + shape[0], flops + shape[1]
    if not keeping:
        return _unknown("no attention module understood")
    notes = []
    if states - keeping:
        notes.append(f"{len(states - keeping)} layers keep a state of constant size, not counted in KV bytes per token")
    if any("sliding" in str(kind) or "chunked" in str(kind) for kind in getattr(config, "layer_types", None) or ()):
        notes.append("some layers keep only a window of keys and values: KV bytes per token hold up to that window")
    return AttentionShapes(kv_elements_per_token=elements, flops_per_pair=flops, notes=tuple(notes))


def _unknown(reason: str) -> AttentionShapes:
    return AttentionShapes(kv_elements_per_token=None, flops_per_pair=None, notes=(f"KV bytes unknown: {reason}",))


def _layer_of(path: str) -> str:
    """The path up to its first number: one decoder layer."""
    match = re.match(r"(.*?\.\d+)(\.|$)", path)
    return match.group(1) if match else ""


def _is_stateful(path: str, config: Any) -> bool:
    """True for a token mixer in a layer whose declared kind keeps a state instead of keys and values."""
    kinds = getattr(config, "layer_types", None)
    match = re.search(r"\.(\d+)\.[^.]*(attn|attention|mixer)[^.]*$", path)
    if not kinds or match is None or int(match.group(1)) >= len(kinds):
        return False
    return re.search(r"linear|mamba|conv|recurrent|state", str(kinds[int(match.group(1))])) is not None


def _text_config(config: Any) -> Any:
    """The part of a config that speaks of the language model."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _shape_of(module: Any, config: Any) -> tuple[int, int] | None:
    """(KV elements per token, FLOPs per pair) of one attention module, else None."""
    if hasattr(module, "kv_a_proj_with_mqa"):
        return _latent_shape(module)
    key, value = getattr(module, "k_proj", None), getattr(module, "v_proj", None)
    if isinstance(key, nn.Module) and hasattr(key, "out_features"):
        key_width: int = getattr(key, "out_features")  # noqa: B009  (modules type every attribute as Tensor | Module)
        value_width: int = getattr(value, "out_features", key_width)
        width = _out_width(module) or _query_width(config)
        if width is None:
            return None
        # The output projection takes heads * value width; scores need heads * key width.
        return key_width + value_width, 2 * width + 2 * width * key_width // value_width
    if any(isinstance(getattr(module, name, None), nn.Module) for name in _FUSED):
        heads = getattr(config, "num_key_value_heads", None) or _kv_heads_elsewhere(config)
        head_dim, width = _head_dim(config), _out_width(module) or _query_width(config)
        if heads and head_dim and width:
            return 2 * heads * head_dim, 4 * width
    return None


def _latent_shape(module: Any) -> tuple[int, int]:
    """Latent attention. Newer transformers cache the latent and expand it afterwards, older ones cache all heads."""
    heads = int(module.num_heads)
    qk, v = int(module.qk_head_dim), int(module.v_head_dim)
    latent = hasattr(module, "expand_kv")
    kept = int(module.kv_lora_rank) + int(module.qk_rope_head_dim) if latent else heads * (qk + v)
    return kept, 2 * heads * (qk + v)


def _out_width(module: Any) -> int | None:
    """Heads * head_dim, as the output projection takes it."""
    for name in _OUT_PROJECTIONS:
        child = getattr(module, name, None)
        features = getattr(child, "in_features", None)
        if isinstance(features, int):
            return features
    return None


def _head_dim(config: Any) -> int | None:
    given = getattr(config, "head_dim", None) or getattr(config, "kv_channels", None)
    if given:
        return int(given)
    heads, hidden = getattr(config, "num_attention_heads", None), getattr(config, "hidden_size", None)
    return int(hidden // heads) if heads and hidden else None


def _query_width(config: Any) -> int | None:
    heads, head_dim = getattr(config, "num_attention_heads", None), _head_dim(config)
    return int(heads * head_dim) if heads and head_dim else None


def _kv_heads_elsewhere(config: Any) -> int | None:
    nested = getattr(config, "attn_config", None)
    heads = getattr(nested, "kv_n_heads", None) or getattr(config, "num_attention_heads", None)
    return int(heads) if heads else None
