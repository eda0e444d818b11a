"""Attention that does not grow with the batch.

Continuous batching flattens all sequences of a step into one row. The stock SDPA path then multiplies every query by
every key of the batch and masks what does not belong: cost (sum q) * (sum k). Here a prompt attends by itself, cost
q_i * k_i, and sequences that decode attend together, their keys padded to the longest of a few of like length. With 16
prompts of 1,000 tokens that is a sixteenth of the products. The mathematics is the same, so the tokens are the same (a
test compares them).

Plain causal attention only. Sliding windows, sinks and soft-capping keep the stock path; ``why_stock`` says why. Who
reads which keys is planned once per step (attention_plan.py).
Shape legend: H query heads, G key/value heads, Q queries of the step, K keys of the step, D head dimension, B sequences
of a group, W keys of each, padding included.
"""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.generation.continuous_batching.cache import PagedAttentionCache

from moeprof.capture.engines.attention_plan import DecodeGroup, StepEdges

NAME = "moeprof_per_sequence"
STOCK = "sdpa"
# transformers 5.17: update() takes the indices by name, returns [K, G, D]; later it takes kwargs, returns [1, G, K, D]
_UPDATE_TAKES_KWARGS = "kwargs" in inspect.signature(PagedAttentionCache.update).parameters


def per_sequence_attention(
    module: nn.Module,
    query_1HQD: torch.Tensor,
    key_1GQD: torch.Tensor,
    value_1GQD: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a flattened step, each sequence to its own keys. Returns [1, Q, H, D].

    The edges of the sequences come from ``StepEdges`` on the cache, set by the engine before the forward: reading them
    from ``cu_seq_lens_*`` would synchronise the device once per layer.
    """
    cache = kwargs["cache"]
    edges: StepEdges = cache.moeprof_edges
    kwargs["read_index"] = edges.read_index(kwargs["read_index"])
    key, value = _updated(cache, key_1GQD, value_1GQD, cast("int", module.layer_idx), kwargs)
    if edges.only_group is not None:
        return _decode(edges.only_group, query_1HQD, key, value, scaling).permute(2, 0, 1, 3), None
    out_1HQD = torch.empty_like(query_1HQD)
    for group in edges.groups:
        out_BH1D = _decode(group, query_1HQD.index_select(2, group.rows), key, value, scaling)
        out_1HQD.index_copy_(2, group.rows, out_BH1D.permute(2, 1, 0, 3))
    grouped = query_1HQD.shape[1] != key.shape[1]
    for q0, q1, k0, k1 in edges.spans:
        num_q, num_k = q1 - q0, k1 - k0
        out_1HQD[:, :, q0:q1] = scaled_dot_product_attention(
            query_1HQD[:, :, q0:q1],
            key[:, :, k0:k1],
            value[:, :, k0:k1],
            attn_mask=edges.chunk_mask(num_q, num_k, query_1HQD.dtype) if 1 < num_q < num_k else None,
            is_causal=num_q == num_k > 1,
            scale=scaling,
            enable_gqa=grouped,
        )
    return out_1HQD.transpose(1, 2), None


def _decode(
    group: DecodeGroup, query_1HBD: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """One query of each sequence of a group to all keys of that sequence, [B, H, 1, D]."""
    query_BH1D = query_1HBD.permute(2, 1, 0, 3)
    key_BGWD, value_BGWD = (
        part[0, :, group.first_key : group.end_key].reshape(-1, group.size, group.width, part.shape[3]).transpose(0, 1)
        for part in (key, value)
    )
    num_heads, num_groups = query_BH1D.shape[1], key_BGWD.shape[1]
    mask = group.mask(query_BH1D.dtype)
    if query_BH1D.is_cuda and num_heads != num_groups:
        # No fused CUDA kernel takes a mask and grouped heads; heads that share keys are as good as queries of one head.
        query_BH1D = query_BH1D.reshape(group.size, num_groups, num_heads // num_groups, -1)
    out = scaled_dot_product_attention(
        query_BH1D, key_BGWD, value_BGWD, attn_mask=mask, scale=scaling, enable_gqa=query_BH1D.shape[1] != num_groups
    )
    return out.reshape(group.size, num_heads, 1, -1)


def _updated(
    cache: Any, key_1GQD: torch.Tensor, value_1GQD: torch.Tensor, layer: int, kwargs: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Write the new keys and values; all keys and values of the step's sequences, [1, G, K, D] each."""
    if _UPDATE_TAKES_KWARGS:
        key, value = cache.update(key_states=key_1GQD, value_states=value_1GQD, layer_idx=layer, kwargs=kwargs)
        return key, value
    key, value = cache.update(
        key_states=key_1GQD,
        value_states=value_1GQD,
        layer_idx=layer,
        read_index=kwargs["read_index"],
        write_index=kwargs["write_index"],
    )
    return key.transpose(0, 1)[None], value.transpose(0, 1)[None]


def why_stock(config: Any, model: nn.Module) -> str | None:
    """The reason why this model must keep the stock attention path, or None when per-sequence attention serves it."""
    layer_types = set(getattr(config, "layer_types", None) or ())
    if layer_types - {"full_attention"}:
        return f"layer types {', '.join(sorted(layer_types - {'full_attention'}))}"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "a sliding window"
    if getattr(config, "attn_logit_softcapping", None):
        return "soft-capped attention scores"
    if any(name.endswith("sinks") for name, _ in model.named_parameters()):
        return "attention sinks"
    return None


def register() -> None:
    """Make the attention known to transformers; calling it twice does no harm."""
    AttentionInterface.register(NAME, per_sequence_attention)
