"""Paged decode attention in Triton, see :class:`moeprof.capture.kernels.attention.DecodeKernel`.

Two launches (one where the batch alone fills the device). The grid, the number of splits and all buffers depend on
shapes alone, so the launches can be captured in a CUDA graph; nothing waits for the device. A first call with a new
shape compiles, so call once before capturing.

Shape legend: B sequences, H query heads, G key/value heads, D head size of queries and keys, V of values, S slots of
the cache, P pages per sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from moeprof.capture.kernels.attention import AttentionKind, DecodeShape
from moeprof.capture.kernels.triton.launch import launch, padded, processors, programs, why_no_triton

MAX_SPLITS = 128
JOIN_BLOCK = 16  # splits that one step of the joining program holds


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """How the work is cut; changes speed, never the result.

    Attributes:
        block_keys: keys of one step of a program, a power of two of at least 16.
        programs_per_processor: programs wanted per multiprocessor; more of them, more splits.
        num_warps: warps of a program.
        num_stages: depth of Triton's pipeline: with 3 the next block of keys is loaded while one is used, with 5 two
            are (the table's entries take a stage of their own; shared memory of a compile for SM90, NOTES.md).
    """

    block_keys: int = 64
    programs_per_processor: int = 2
    num_warps: int = 4
    num_stages: int = 3


# What candidates.py names. Which is best depends on head size, batch and context; results stand in NOTES.md.
TILINGS = (
    Tiling(),
    Tiling(programs_per_processor=4),
    Tiling(block_keys=32, programs_per_processor=8),
    Tiling(block_keys=128, num_warps=8, num_stages=5),
)


def why_not(kind: AttentionKind) -> str | None:
    """The reason why this kernel cannot serve such a layer, or None."""
    if kind.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return f"dtype {str(kind.dtype).removeprefix('torch.')} is none of bfloat16, float16, float32"
    if max(kind.head_dim, kind.value_dim) > 512:
        return f"a head of {max(kind.head_dim, kind.value_dim)} is larger than 512"
    return why_no_triton()


def count_splits(num_seqs: int, num_groups: int, table_tokens: int, tiling: Tiling, num_processors: int) -> int:
    """Splits of every sequence's keys: enough programs to fill the device, none shorter than a block.

    Args:
        num_seqs: B.
        num_groups: G.
        table_tokens: tokens that the block table can hold per sequence (its width times the page size).
        tiling: how the work is cut.
        num_processors: multiprocessors of the device.
    """
    wanted = -(-tiling.programs_per_processor * num_processors // (num_seqs * num_groups))
    return max(1, min(wanted, -(-table_tokens // tiling.block_keys), MAX_SPLITS))


def triton_decode(
    query_BHD: torch.Tensor,
    key_SGD: torch.Tensor,
    value_SGV: torch.Tensor,
    block_table_BP: torch.Tensor,
    context_B: torch.Tensor,
    shape: DecodeShape,
    sinks_H: torch.Tensor | None = None,
    *,
    tiling: Tiling = TILINGS[0],
    num_processors: int | None = None,
) -> torch.Tensor:
    """Attend; arguments as in :class:`DecodeKernel`. Heads must be contiguous; other strides are free.

    Args:
        query_BHD: queries.
        key_SGD: the layer's keys.
        value_SGV: the layer's values.
        block_table_BP: int32 pages of each sequence.
        context_B: int32 keys of each sequence.
        shape: page size, scale, window, softcap.
        sinks_H: a logit per head, or None.
        tiling: how the work is cut.
        num_processors: multiprocessors to fill, or None for those of the device.
    """
    num_seqs, num_heads, value_dim = query_BHD.shape[0], query_BHD.shape[1], value_SGV.shape[2]
    device, num_groups = query_BHD.device, key_SGD.shape[1]
    table_tokens = block_table_BP.shape[1] * shape.page_tokens
    splits = count_splits(num_seqs, num_groups, table_tokens, tiling, num_processors or processors(device))
    out_BHV = torch.empty((num_seqs, num_heads, value_dim), dtype=query_BHD.dtype, device=device)
    sinks = out_BHV if sinks_H is None else sinks_H
    parts, peak, total = out_BHV, out_BHV, out_BHV  # never touched where there is one split
    if splits > 1:
        parts = torch.empty((num_seqs, num_heads, splits, value_dim), dtype=torch.float32, device=device)
        peak, total = torch.empty((2, num_seqs, num_heads, splits), dtype=torch.float32, device=device).unbind()
    tensors = (query_BHD, key_SGD, value_SGV, block_table_BP, context_B, sinks, parts, peak, total)
    strides = (*query_BHD.stride()[:2], *key_SGD.stride()[:2], *value_SGV.stride()[:2], block_table_BP.stride(0))
    masks = {"SCALE": shape.scale, "SOFTCAP": shape.softcap or 0.0, "WINDOW": shape.window or 0}
    launch(
        programs().attend_split,
        (num_seqs, num_groups, splits),
        (*tensors, *strides, splits),
        **(_sizes(query_BHD, key_SGD, value_SGV) | masks),
        PAGE=shape.page_tokens,
        N=tiling.block_keys,
        IS_SPLIT=splits > 1,
        HAS_SINKS=sinks_H is not None,
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
    )
    if splits > 1:
        _join(parts, peak, total, sinks, out_BHV, splits, sinks_H is not None)
    return out_BHV


def _join(
    parts: torch.Tensor,
    peak: torch.Tensor,
    total: torch.Tensor,
    sinks: torch.Tensor,
    out_BHV: torch.Tensor,
    splits: int,
    has_sinks: bool,
) -> None:
    """The second launch, into ``out_BHV``."""
    num_seqs, num_heads, value_dim = out_BHV.shape
    launch(
        programs().join_splits,
        (num_seqs, num_heads),
        (parts, peak, total, sinks, out_BHV, splits),
        NUM_HEADS=num_heads,
        V=value_dim,
        PADDED_V=padded(value_dim),
        PADDED_S=MAX_SPLITS,  # one program for any number of splits
        BLOCK_S=JOIN_BLOCK,
        HAS_SINKS=has_sinks,
    )


def _sizes(query_BHD: torch.Tensor, key_SGD: torch.Tensor, value_SGV: torch.Tensor) -> dict[str, int]:
    """What the program knows of the tensors when it is compiled."""
    num_groups, repeats = key_SGD.shape[1], query_BHD.shape[1] // key_SGD.shape[1]
    exact = {"R": repeats, "D": query_BHD.shape[2], "V": value_SGV.shape[2]}
    return {"NUM_GROUPS": num_groups, **exact} | {f"PADDED_{name}": padded(size) for name, size in exact.items()}
