"""Attention that does not grow with the batch.

Continuous batching flattens all sequences of a step into one row. The stock SDPA path then multiplies every query by
every key of the batch and masks what does not belong: cost (sum q) * (sum k). Attending sequence by sequence costs
sum(q_i * k_i); with 16 prompts of 1,000 tokens that is a sixteenth of the products. The mathematics is the same, so the
tokens are the same (a test compares them).

Plain causal attention only. Sliding windows, sinks and soft-capping keep the stock path; ``why_stock`` says why.
Shape legend: H query heads, G key/value heads, Q queries of the step, K keys of the step, D head dimension.
"""

from __future__ import annotations

import inspect
from itertools import pairwise
from typing import Any, cast

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.generation.continuous_batching.cache import PagedAttentionCache

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
    """Attention of a flattened step, one sequence at a time. Returns [1, Q, H, D].

    The edges of the sequences come from ``StepEdges`` on the cache, set by the engine before the forward: reading them
    from ``cu_seq_lens_*`` would synchronise the device once per layer.
    """
    cache = kwargs["cache"]
    edges: StepEdges = cache.moeprof_edges
    key, value = _updated(cache, key_1GQD, value_1GQD, cast("int", module.layer_idx), kwargs)
    grouped = query_1HQD.shape[1] != key.shape[1]
    out_1HQD = torch.empty_like(query_1HQD)
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


class StepEdges:
    """Where each sequence of a step lies among its queries and keys.

    Attributes:
        spans: (first query, end query, first key, end key) per sequence.
    """

    def __init__(self, query_tokens: list[int], key_tokens: list[int], device: torch.device) -> None:
        self.spans = [
            (q0, q1, k0, k1) for (q0, q1), (k0, k1) in zip(_edges(query_tokens), _edges(key_tokens), strict=True)
        ]
        self._device = device
        self._masks: dict[tuple[int, int], torch.Tensor] = {}

    def chunk_mask(self, num_q: int, num_k: int, dtype: torch.dtype) -> torch.Tensor:
        """What to add to the scores of a prompt chunk that continues cached tokens, [num_q, num_k]: 0 or -inf.

        Made once per step. A boolean mask would be turned into this one by every layer anew.
        """
        mask = self._masks.get((num_q, num_k))
        if mask is None:
            hidden = torch.full((num_q, num_k), float("-inf"), dtype=dtype, device=self._device)
            mask = self._masks[num_q, num_k] = hidden.triu(num_k - num_q + 1)
        return mask


def _edges(lengths: list[int]) -> list[tuple[int, int]]:
    ends = [0]
    for length in lengths:
        ends.append(ends[-1] + length)
    return list(pairwise(ends))


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
