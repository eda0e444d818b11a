"""Attention of one prompt, or a chunk of one: its queries are the last of its keys. Not for captured steps.

Three forms of the same sum. ``sdpa``: torch's attention, flash where torch has it. ``varlen``: FlashAttention with a
sliding window, and with sinks by way of the log-sum-exp that it returns. ``plain``: score by score, anything goes.

Shape legend: H query heads, G key/value heads, Q queries, K keys (Q <= K), D head size of queries and keys, V of
values.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any, Protocol

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from moeprof.capture.kernels.attention import MAX_HEAD_DIM, AttentionKind, DecodeShape

MOST_SCORES = 1 << 26  # 256 MB in float32


class PrefillKernel(Protocol):
    """Attention of the last Q of K tokens of one sequence."""

    def __call__(
        self,
        query_1HQD: torch.Tensor,
        key_1GKD: torch.Tensor,
        value_1GKV: torch.Tensor,
        shape: DecodeShape,
        sinks_H: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend; [1, H, Q, V] in the dtype of the query. Query i sees keys up to ``K - Q + i``."""


def prefill_attention(
    query_1HQD: torch.Tensor,
    key_1GKD: torch.Tensor,
    value_1GKV: torch.Tensor,
    shape: DecodeShape,
    sinks_H: torch.Tensor | None = None,
) -> torch.Tensor:
    """The fast form that needs no trial (see :class:`PrefillKernel`): ``sdpa``, or ``plain`` where that cannot."""
    plain = shape.softcap is not None or sinks_H is not None
    return (plain_prefill if plain else sdpa_prefill)(query_1HQD, key_1GKD, value_1GKV, shape, sinks_H)


def sdpa_prefill(
    query_1HQD: torch.Tensor,
    key_1GKD: torch.Tensor,
    value_1GKV: torch.Tensor,
    shape: DecodeShape,
    sinks_H: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of torch; no soft cap, no sinks. Values narrower than keys are padded: flash wants one size."""
    assert shape.softcap is None and sinks_H is None
    num_queries, num_keys, value_dim = query_1HQD.shape[2], key_1GKD.shape[2], value_1GKV.shape[3]
    value = pad(value_1GKV, (0, query_1HQD.shape[3] - value_dim)) if value_dim < query_1HQD.shape[3] else value_1GKV
    query, key = query_1HQD, key_1GKD
    windowed = shape.window is not None and shape.window < num_keys
    causal = not windowed and num_queries == num_keys > 1
    mask: Any = None
    if query.is_cuda and not windowed and 1 < num_queries < num_keys:
        mask = importlib.import_module("torch.nn.attention.bias").causal_lower_right(num_queries, num_keys)
    elif windowed or 1 < num_queries < num_keys:
        mask = _mask(num_queries, num_keys, shape.window if windowed else None, query.dtype, query.device)
        if query.is_cuda:
            # No fused CUDA kernel takes a mask and grouped heads; a copy of the keys is small beside [H, Q, K] scores.
            repeats = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    out: torch.Tensor = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=causal,
        scale=shape.scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out[..., :value_dim]


def varlen_prefill(
    query_1HQD: torch.Tensor,
    key_1GKD: torch.Tensor,
    value_1GKV: torch.Tensor,
    shape: DecodeShape,
    sinks_H: torch.Tensor | None = None,
) -> torch.Tensor:
    """FlashAttention with a window and sinks; no soft cap.

    A sink adds ``exp(sink)`` to the softmax's denominator ``exp(lse)`` and nothing to its sum, so the result without
    it is scaled by ``exp(lse) / (exp(lse) + exp(sink)) = sigmoid(lse - sink)``.
    """
    assert shape.softcap is None
    varlen = importlib.import_module("torch.nn.attention.varlen")
    (_, num_heads, num_queries, head_dim), num_keys = query_1HQD.shape, key_1GKD.shape[2]
    value_dim = value_1GKV.shape[3]
    value = pad(value_1GKV, (0, head_dim - value_dim)) if value_dim < head_dim else value_1GKV
    ends = (torch.arange(2, dtype=torch.int32, device=query_1HQD.device) * size for size in (num_queries, num_keys))
    grouped = {"enable_gqa": True} if num_heads != key_1GKD.shape[1] and _takes_gqa() else {}
    found = varlen.varlen_attn(
        *(part[0].transpose(0, 1) for part in (query_1HQD, key_1GKD, value)),
        *ends,
        num_queries,
        num_keys,
        scale=shape.scale,
        window_size=(-1, 0) if shape.window is None else (shape.window - 1, 0),
        return_aux=varlen.AuxRequest(lse=True),
        **grouped,
    )
    lse: torch.Tensor = found[1]
    out_QHV: torch.Tensor = found[0][..., :value_dim]
    if sinks_H is not None:
        lse_HQ = lse if lse.shape == (num_heads, num_queries) else lse.transpose(0, 1)
        share_QH = torch.sigmoid(lse_HQ.float() - sinks_H.float()[:, None]).transpose(0, 1)
        out_QHV = (out_QHV * share_QH[:, :, None]).to(query_1HQD.dtype)
    return out_QHV.transpose(0, 1)[None]


def plain_prefill(
    query_1HQD: torch.Tensor,
    key_1GKD: torch.Tensor,
    value_1GKV: torch.Tensor,
    shape: DecodeShape,
    sinks_H: torch.Tensor | None = None,
) -> torch.Tensor:
    """Windows, soft caps and sinks in float32. Scores of up to 2^26 elements stand in memory, else group by group."""
    num_heads, num_groups = query_1HQD.shape[1], key_1GKD.shape[1]
    mask = _mask(query_1HQD.shape[2], key_1GKD.shape[2], shape.window, torch.float32, query_1HQD.device)
    sinks = None if sinks_H is None else sinks_H.float().reshape(1, -1, 1, 1)
    parts = num_groups if num_heads * mask.numel() > MOST_SCORES else 1
    heads, groups = num_heads // parts, num_groups // parts
    out = [
        _attend_plainly(
            query_1HQD[:, part * heads : (part + 1) * heads],
            key_1GKD[:, part * groups : (part + 1) * groups],
            value_1GKV[:, part * groups : (part + 1) * groups],
            shape,
            mask,
            None if sinks is None else sinks[:, part * heads : (part + 1) * heads],
        )
        for part in range(parts)
    ]
    return out[0] if parts == 1 else torch.cat(out, dim=1)


def _attend_plainly(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    shape: DecodeShape,
    mask: torch.Tensor,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = query.float() @ key.float().transpose(2, 3) * shape.scale
    if shape.softcap is not None:
        scores = shape.softcap * torch.tanh(scores / shape.softcap)
    scores += mask
    if sinks is not None:
        scores = torch.cat([scores, sinks.expand(-1, -1, scores.shape[2], 1)], dim=-1)
    weight = scores.softmax(dim=-1)[..., : key.shape[2]]
    return (weight @ value.float()).to(query.dtype)


def why_no_sdpa(kind: AttentionKind) -> str | None:
    """The reason why ``sdpa_prefill`` cannot serve such a layer, or None."""
    return "has no sinks and no soft-capped scores" if kind.has_sinks or kind.shape.softcap is not None else None


def why_no_varlen(kind: AttentionKind) -> str | None:
    """The reason why ``varlen_prefill`` cannot serve such a layer, or None."""
    if kind.dtype not in (torch.bfloat16, torch.float16):
        return f"FlashAttention has no {str(kind.dtype).removeprefix('torch.')}"
    if kind.head_dim > MAX_HEAD_DIM or kind.head_dim % 8:
        return f"FlashAttention wants heads of a multiple of 8 up to 256, not {kind.head_dim}"
    return "varlen_attn has no soft-capped scores" if kind.shape.softcap is not None else None


@functools.lru_cache(maxsize=2)  # one mask serves all layers of a step; two kinds of layers take turns
def _mask(
    num_queries: int, num_keys: int, window: int | None, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """What to add to the scores, [Q, K]: 0 where a query may look, -inf elsewhere."""
    place_Q1 = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
    place_K = torch.arange(num_keys, device=device)
    hidden = place_K > place_Q1
    if window is not None:
        hidden |= place_K <= place_Q1 - window
    return torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))


@functools.cache
def _takes_gqa() -> bool:
    """Fewer key heads than query heads: torch 2.11 takes them without being told, later ones want to be told."""
    varlen = importlib.import_module("torch.nn.attention.varlen")
    return "enable_gqa" in varlen.varlen_attn.__code__.co_varnames
