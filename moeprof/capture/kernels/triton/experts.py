"""Experts of few tokens (decode steps) in Triton, for transformers' experts interface.

Three launches a layer: up projection with the gate, down projection times the router's weight, sum over the k picks.
Nothing is sorted, nothing waits for the device, grid and buffers depend on shapes alone: captured in a CUDA graph it
stays right whatever the router picks. Where the activation is not a plain SiLU of the first half, it runs
between the launches: that of gpt-oss in one launch, any other by the module's own ``_apply_gate``.

Shape legend: T tokens, k picks of a token, E experts, d hidden size, I inner size of an expert.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from moeprof.capture.kernels.experts import is_experts, is_plain_silu
from moeprof.capture.kernels.triton.launch import MIN_ROWS, launch, padded, processors, programs, why_no_triton

PICKS_TOGETHER = 128
SUM_BLOCK = 1024
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertTiling:
    """How the work is cut; changes speed, never the result.

    Attributes:
        most_columns: largest tile in columns; smaller ones are taken until the device is full.
        depth: K of a tile.
        programs_per_processor: programs wanted per multiprocessor.
        num_warps: warps of a program.
        num_stages: loads in flight.
    """

    most_columns: int = 64
    depth: int = 128
    programs_per_processor: int = 2
    num_warps: int = 4
    num_stages: int = 3


# What candidates.py names; results stand in NOTES.md.
TILINGS = (ExpertTiling(), ExpertTiling(most_columns=128, depth=64, num_stages=4), ExpertTiling(most_columns=32))


def why_not(layers: Sequence[nn.Module]) -> str | None:
    """The reason why the experts of these layers cannot run here, or None."""
    dtype: torch.dtype = layers[0].down_proj.dtype  # type: ignore[assignment]
    return next(filter(None, (why_no_layer(layer, dtype) for layer in layers)), None) or why_no_triton()


def why_no_layer(module: nn.Module, dtype: torch.dtype) -> str | None:
    """The reason why the programs do not do these experts on hidden states of this dtype, or None."""
    if not is_experts(module):
        return f"{type(module).__name__} is not behind transformers' experts interface"
    if getattr(module, "has_post_expert_norm", False):
        return "experts are followed by a norm of their own"
    for name in ("gate_up_proj" if module.has_gate else "up_proj", "down_proj"):
        weight = getattr(module, name, None)
        if not isinstance(weight, torch.Tensor) or hasattr(weight, "to_local") or weight.ndim != 3:
            return "experts' weights are not plain [E, out, in] tensors"
        if weight.dtype != dtype or dtype not in DTYPES:
            names = [str(one).removeprefix("torch.") for one in (weight.dtype, dtype)]
            return f"weights of {names[0]}, hidden states of {names[1]}"
    if not module.has_gate and not callable(getattr(module, "act_fn", None)):
        return "no activation function is found"
    return None


def triton_experts(
    module: nn.Module,
    hidden_Td: torch.Tensor,
    top_k_index_Tk: torch.Tensor,
    top_k_weights_Tk: torch.Tensor,
    tiling: ExpertTiling = TILINGS[0],
) -> torch.Tensor:
    """The module's experts on the tokens, [T, d] in their dtype.

    Args:
        module: experts that ``why_not`` accepts.
        hidden_Td: tokens.
        top_k_index_Tk: executed picks; ids of E and above are no expert here and count as zero (expert parallel).
        top_k_weights_Tk: the router's weights.
        tiling: how the work is cut.
    """
    (num_tokens, hidden_size), top_k = hidden_Td.shape, top_k_index_Tk.shape[1]
    index, factor = top_k_index_Tk.contiguous(), top_k_weights_Tk.contiguous()
    first, transposed = "gate_up_proj" if module.has_gate else "up_proj", bool(module.is_transposed)
    weight, bias = _parameters(module, first)
    down_weight, down_bias = _parameters(module, "down_proj")
    fused = is_plain_silu(module)
    width = weight.shape[2 if transposed else 1]
    inner = hidden_Td.new_empty((num_tokens * top_k, width // 2 if fused else width))
    _linear(hidden_Td, weight, bias, None, index, inner, transposed, top_k, fused, tiling)
    if not fused:
        inner = _activated(module, inner)
    parts = torch.empty((num_tokens * top_k, hidden_size), dtype=torch.float32, device=hidden_Td.device)
    _linear(inner, down_weight, down_bias, factor, index, parts, transposed, 1, False, tiling)
    out_Td = hidden_Td.new_empty(hidden_Td.shape)
    launch(
        programs().sum_picks,
        (num_tokens, -(-hidden_size // SUM_BLOCK)),
        (parts, index, out_Td, hidden_size),
        NUM_EXPERTS=weight.shape[0],
        TOP_K=top_k,
        BLOCK=SUM_BLOCK,
    )
    return out_Td


def _activated(module: Any, inner: torch.Tensor) -> torch.Tensor:
    """What stands between the projections, by the module's own code unless it is that of gpt-oss."""
    if type(module).__name__ == "GptOssExperts" and not module.is_concatenated:
        rows, width = inner.shape[0], inner.shape[1] // 2
        out = inner.new_empty(rows, width)
        grid, constants = (rows, -(-width // SUM_BLOCK)), {"ALPHA": float(module.alpha), "LIMIT": float(module.limit)}
        launch(programs().gate_pairs, grid, (inner, out, width), **constants, BLOCK=SUM_BLOCK)
        return out
    activated: torch.Tensor = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
    return activated


def _linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    factor: torch.Tensor | None,
    index: torch.Tensor,
    out: torch.Tensor,
    transposed: bool,
    picks_per_row: int,
    gated: bool,
    tiling: ExpertTiling,
) -> None:
    """One launch: ``out[pick] = x[pick // picks_per_row] @ weight[expert of the pick].T``."""
    num_experts, num_picks, (rows, columns) = weight.shape[0], index.numel(), out.shape
    expert_stride, col_stride, depth_stride = weight.stride()
    if transposed:
        col_stride, depth_stride = depth_stride, col_stride
    depth = x.shape[1]
    slots = min(num_experts, num_picks)
    tile_n = _tile_columns(columns, slots, tiling, processors(x.device))
    tile_k = _tile_depth(depth, tiling)
    tensors = (x, weight, x if bias is None else bias, x if factor is None else factor, index, out)
    strides = (x.stride(0), expert_stride, col_stride, depth_stride, 0 if bias is None else bias.stride(0))
    launch(
        programs().expert_linear,
        (-(-columns // tile_n), slots),
        (*tensors, rows, columns, depth, *strides),
        NUM_EXPERTS=num_experts,
        TOP_K=picks_per_row,
        BY_PICK=num_picks <= num_experts,
        GATED=gated,
        HAS_BIAS=bias is not None,
        HAS_FACTOR=factor is not None,
        EVEN=columns % tile_n == 0 and depth % tile_k == 0,
        P=PICKS_TOGETHER if num_picks > MIN_ROWS else MIN_ROWS,  # two programs to compile, not one per batch size
        M=min(64, padded(2 * num_picks // num_experts + 1)),
        N=tile_n,
        K=tile_k,
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
    )


def _tile_columns(columns: int, slots: int, tiling: ExpertTiling, num_processors: int) -> int:
    """The largest tile that still gives every multiprocessor its programs; 32 (or all columns) at least."""
    tile = min(tiling.most_columns, padded(columns))
    while tile > 32 and slots * -(-columns // tile) < tiling.programs_per_processor * num_processors:
        tile //= 2
    return tile


def _tile_depth(depth: int, tiling: ExpertTiling) -> int:
    """The largest tile that divides the depth, so that nothing is masked (2880 = 45 * 64); else the largest."""
    most = min(tiling.depth, padded(depth))
    tile = most
    while tile > 32 and depth % tile:
        tile //= 2
    return most if depth % tile else tile


def _parameters(module: nn.Module, name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight and bias of a projection."""
    return getattr(module, name), getattr(module, name + "_bias") if module.has_bias else None
