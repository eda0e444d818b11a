"""Which models continuous batching cannot run, and which are not invariant to padding, by structure.

Continuous batching pages one key and one value per token and head through the attention interface. Anything else that
a layer remembers (a recurrent state, a compressed key, an index, a chunk) has no page. The reasons stand in the report.
"""

from __future__ import annotations

from typing import Any

PAGED_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})
REASONS = {
    "linear_attention": "linear attention or state-space layers keep a recurrent state",
    "hybrid": "its attention layers also keep a convolution state",
    "hybrid_sliding": "its attention layers also keep a convolution state",
    "conv": "convolution layers keep a state",
    "chunked_attention": "chunked attention",
    "indexed_attention": "sparse attention with an index",
    "deepseek_sparse_attention": "sparse attention with an index",  # its name in transformers 5.17
    "qwen_sparse_attention": "sparse attention with an index",  # likewise
    "minimax_m3_sparse": "sparse attention with an index",
    "compressed_sparse_attention": "compressed sparse attention",
    "heavily_compressed_attention": "compressed attention",
}


def needs_static(model: Any, *, own_pages: bool = False) -> str | None:
    """Why this model cannot run in continuous batches, or None when nothing in its structure forbids it.

    A model that passes can still fail on its first step; whoever selects an engine should try one step and fall back.

    Args:
        model: the model.
        own_pages: for our own paged cache, which keeps what the attention interface is given: expanded keys of latent
            attention, and keys of any shape in every layer.
    """
    config = model.config.get_text_config(decoder=True)
    others = sorted({str(kind) for kind in layer_types(config)} - PAGED_LAYER_TYPES)
    if others:
        return REASONS.get(others[0], f"layers of type {others[0]}")
    if getattr(model, "_is_stateful", False):
        return "it keeps a recurrent state between forwards"
    if _has_indexer(model):
        return "sparse attention with an index"
    if _global(config, "kv_lora_rank") and not own_pages:
        return "latent attention caches a compressed key"
    if not own_pages and not getattr(model, "_supports_sdpa", False):
        return "its attention has no form for scaled_dot_product_attention"
    if not model._supports_default_dynamic_cache():
        return "it has a cache of its own"
    return None if own_pages else _uneven_keys(model, config)


def _uneven_keys(model: Any, config: Any) -> str | None:
    """Pages have one shape: as many heads and as wide as the configuration says, for keys and values of all layers."""
    if any(type(module).__name__ == "JetMoeMoA" for module in model.modules()):
        return "its attention experts cache keys of another number of heads than the configuration says"
    head_dim, value_dim = _global(config, "head_dim"), _global(config, "v_head_dim")
    if isinstance(head_dim, int) and isinstance(value_dim, int) and head_dim != value_dim:
        return f"keys and values differ in width ({head_dim} and {value_dim})"
    layers = config.to_dict().get("per_layer_config") or {}
    named = [name for layer in layers.values() for name in layer if name in ("head_dim", "num_key_value_heads")]
    return f"layers differ in {named[0]}" if named else None


def needs_equal_lengths(model: Any) -> str | None:
    """Why batches must hold prompts of one length, or None when left padding changes nothing.

    Compressed caches pool neighbouring slots, padding included, and an index picks its top slots from padded rows.
    """
    config = model.config.get_text_config(decoder=True)
    kinds = {str(kind) for kind in layer_types(config)}
    if kinds & {"compressed_sparse_attention", "heavily_compressed_attention"}:
        return "compressed attention is not invariant to padding: batches of equal prompt length only"
    if kinds & {"indexed_attention", "minimax_m3_sparse"} or _has_indexer(model):
        return "indexed attention is not invariant to padding: batches of equal prompt length only"
    return None


def _has_indexer(model: Any) -> bool:
    """Older configurations (transformers 5.17) do not name the kind of layer; its index is a module all the same."""
    return any("indexer" in name.rpartition(".")[2].lower() for name, _ in model.named_modules())


def layer_types(config: Any) -> list[str]:
    """The kinds of layers that a configuration names; empty when all are alike."""
    kinds = _global(config, "layer_types")
    return list(kinds) if isinstance(kinds, (list, tuple)) else []


def _global(config: Any, name: str) -> Any:
    """A value of the whole model, also where the configuration lets layers differ (then plain access raises)."""
    values = config.to_dict()
    return values[name] if name in values else getattr(config, name, None)
