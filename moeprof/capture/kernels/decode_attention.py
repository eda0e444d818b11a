"""Attention of decode steps over a paged cache: one query per sequence, keys found by a block table.

Shape legend: B sequences, H query heads, G key/value heads, D head size of queries and keys, V of values, S slots of
the cache (pages x page size), P pages per sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

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
