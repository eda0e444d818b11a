"""Paged decode attention by torch's own ``varlen_attn`` with a block table, where this torch and device have it.

Block tables came to ``varlen_attn`` after torch 2.11, for FlashAttention 3 (pytorch/pytorch#175924), which is a package
of its own; FlashAttention 2 takes pages of a multiple of 256 tokens only.

Shape legend: B sequences, H query heads, G key/value heads, D head size, S slots, P pages per sequence.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import torch

from moeprof.capture.kernels.decode_attention import DecodeShape

PAGE_MULTIPLE = 256  # of FlashAttention 2
MAX_HEAD_DIM = 256


def why_not(
    device: torch.device, dtype: torch.dtype, head_dim: int, value_dim: int, shape: DecodeShape, has_sinks: bool
) -> str | None:
    """The reason why this kernel cannot serve such a layer, or None."""
    if dtype not in (torch.bfloat16, torch.float16):
        return f"FlashAttention has no {str(dtype).removeprefix('torch.')}"
    if head_dim != value_dim or head_dim > MAX_HEAD_DIM or head_dim % 8:
        return (
            f"FlashAttention wants keys and values of one size, a multiple of 8 up to 256, not {head_dim}/{value_dim}"
        )
    if has_sinks or shape.softcap is not None:
        return "varlen_attn has no " + ("attention sinks" if has_sinks else "soft-capped scores")
    if device.type != "cuda":
        return f"FlashAttention needs a CUDA device, this is {device.type}"
    if "block_table" not in inspect.signature(_varlen().varlen_attn).parameters:
        return f"varlen_attn of torch {torch.__version__} takes no block table"
    active = getattr(torch.nn.attention, "current_flash_attention_impl", lambda: None)()
    if active is None and shape.page_tokens % PAGE_MULTIPLE:
        return f"pages of {shape.page_tokens} tokens need FlashAttention 3, which is not active; version 2 takes 256"
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
    """Attend; arguments as in :class:`DecodeKernel`.

    Raises:
        AssertionError: sinks were given; ``why_not`` says that there are none.
    """
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
