"""Attention of decode steps over a paged cache: one query per sequence, keys found by a block table.

The contract, the plain form, and torch's own ``varlen_attn`` with a block table, where this torch and device have it.
Block tables came to ``varlen_attn`` after torch 2.11, for FlashAttention 3 (pytorch/pytorch#175924), which is a package
of its own; FlashAttention 2 takes pages of a multiple of 256 tokens only.

Shape legend: B sequences, H query heads, G key/value heads, D head size of queries and keys, V of values, S slots of
the cache (pages x page size), P pages per sequence.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeShape:
    """What a model's attention asks of a kernel, besides the tensors.

    Attributes:
        page_tokens: tokens of a page.
        scale: factor on the scores.
        window: keys that a query sees, itself included (sliding window), or None for all.
        softcap: bound of the scores (``softcap * tanh(score / softcap)``), or None.
    """

    page_tokens: int
    scale: float
    window: int | None = None
    softcap: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionKind:
    """One kind of attention layer.

    Attributes:
        dtype: of queries, keys and values.
        num_heads: query heads, H.
        num_groups: key/value heads, G.
        head_dim: size of queries and keys, D.
        value_dim: size of values, V.
        shape: scale, window, softcap, page size.
        has_sinks: whether it has attention sinks.
    """

    dtype: torch.dtype
    num_heads: int
    num_groups: int
    head_dim: int
    value_dim: int
    shape: DecodeShape
    has_sinks: bool = False


class DecodeKernel(Protocol):
    """Attention of one query per sequence. Launches only: no synchronisation, shapes depend on shapes alone."""

    def __call__(
        self,
        query_BHD: torch.Tensor,
        key_SGD: torch.Tensor,
        value_SGV: torch.Tensor,
        block_table_BP: torch.Tensor,
        context_B: torch.Tensor,
        shape: DecodeShape,
        sinks_H: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend.

        Args:
            query_BHD: queries.
            key_SGD: the layer's keys; a sequence's token t lies in slot
                ``block_table[t // page_tokens] * page_tokens + t % page_tokens``.
            value_SGV: the layer's values.
            block_table_BP: int32 pages of each sequence; entries past its context have no meaning but are in range.
            context_B: int32 keys of each sequence, the newest included, at least 1.
            shape: page size, scale, window, softcap.
            sinks_H: a logit per head that takes part in the softmax and has no value (attention sinks), or None.

        Returns:
            [B, H, V] in the dtype of the query.
        """


def torch_decode(
    query_BHD: torch.Tensor,
    key_SGD: torch.Tensor,
    value_SGV: torch.Tensor,
    block_table_BP: torch.Tensor,
    context_B: torch.Tensor,
    shape: DecodeShape,
    sinks_H: torch.Tensor | None = None,
) -> torch.Tensor:
    """The plain form, see :class:`DecodeKernel`: gathers all pages of the table, so it costs what the table is wide."""
    num_seqs, num_heads, _ = query_BHD.shape
    num_groups = key_SGD.shape[1]
    offsets = torch.arange(shape.page_tokens, device=query_BHD.device)
    slots_BK = (block_table_BP.long()[:, :, None] * shape.page_tokens + offsets).flatten(1)
    key_BKGD, value_BKGV = key_SGD[slots_BK], value_SGV[slots_BK]
    query_BGRD = query_BHD.reshape(num_seqs, num_groups, num_heads // num_groups, -1).float()
    scores_BGRK = torch.einsum("bgrd,bkgd->bgrk", query_BGRD, key_BKGD.float()) * shape.scale
    if shape.softcap is not None:
        scores_BGRK = shape.softcap * torch.tanh(scores_BGRK / shape.softcap)
    place_K = torch.arange(slots_BK.shape[1], device=query_BHD.device)
    hidden_BK = place_K >= context_B[:, None]
    if shape.window is not None:
        hidden_BK = hidden_BK | (place_K < context_B[:, None] - shape.window)
    scores_BGRK = scores_BGRK.masked_fill(hidden_BK[:, None, None], float("-inf"))
    if sinks_H is not None:
        sinks = sinks_H.float().reshape(1, num_groups, -1, 1).expand(num_seqs, -1, -1, 1)
        scores_BGRK = torch.cat([scores_BGRK, sinks], dim=-1)
    weight_BGRK = scores_BGRK.softmax(dim=-1)[..., : slots_BK.shape[1]]
    out_BGRV = torch.einsum("bgrk,bkgv->bgrv", weight_BGRK, value_BKGV.float())
    return out_BGRV.reshape(num_seqs, num_heads, -1).to(query_BHD.dtype)


PAGE_MULTIPLE = 256  # of FlashAttention 2
MAX_HEAD_DIM = 256


def why_no_varlen(kind: AttentionKind) -> str | None:
    """The reason why ``varlen_decode`` cannot serve such a layer, or None."""
    if kind.dtype not in (torch.bfloat16, torch.float16):
        return f"FlashAttention has no {str(kind.dtype).removeprefix('torch.')}"
    if kind.head_dim != kind.value_dim or kind.head_dim > MAX_HEAD_DIM or kind.head_dim % 8:
        sizes = f"{kind.head_dim}/{kind.value_dim}"
        return f"FlashAttention wants keys and values of one size, a multiple of 8 up to 256, not {sizes}"
    if kind.has_sinks or kind.shape.softcap is not None:
        return "varlen_attn has no " + ("attention sinks" if kind.has_sinks else "soft-capped scores")
    if "block_table" not in inspect.signature(_varlen().varlen_attn).parameters:
        return f"varlen_attn of torch {torch.__version__} takes no block table"
    active = getattr(torch.nn.attention, "current_flash_attention_impl", lambda: None)()
    if active is None and kind.shape.page_tokens % PAGE_MULTIPLE:
        return (
            f"pages of {kind.shape.page_tokens} tokens need FlashAttention 3, which is not active; version 2 takes 256"
        )
    return None


def varlen_decode(
    query_BHD: torch.Tensor,
    key_SGD: torch.Tensor,
    value_SGV: torch.Tensor,
    block_table_BP: torch.Tensor,
    context_B: torch.Tensor,
    shape: DecodeShape,
    sinks_H: torch.Tensor | None = None,
) -> torch.Tensor:
    """By torch's ``varlen_attn``, see :class:`DecodeKernel`; no sinks, no soft cap."""
    assert sinks_H is None and shape.softcap is None
    num_seqs = query_BHD.shape[0]
    first_B1 = torch.arange(num_seqs + 1, dtype=torch.int32, device=query_BHD.device)
    num_pages = key_SGD.shape[0] // shape.page_tokens
    out: torch.Tensor = _varlen().varlen_attn(
        query_BHD.contiguous(),
        key_SGD.view(num_pages, shape.page_tokens, *key_SGD.shape[1:]),
        value_SGV.view(num_pages, shape.page_tokens, *value_SGV.shape[1:]),
        first_B1,
        None,
        1,
        block_table_BP.shape[1] * shape.page_tokens,
        scale=shape.scale,
        window_size=(-1, 0) if shape.window is None else (shape.window - 1, 0),
        enable_gqa=query_BHD.shape[1] != key_SGD.shape[1],
        seqused_k=context_B,
        block_table=block_table_BP,
    )
    return out


def _varlen() -> Any:
    return importlib.import_module("torch.nn.attention.varlen")
