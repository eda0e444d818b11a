"""Triton programs of experts for few tokens. Imported lazily: this file needs ``triton`` (see triton_experts.py).

A decode step is bound by the bytes of the experts that it touches, so each touched expert's weights are read once. No
launch sorts the picks: a program owns some columns of one expert, looks for that expert among the picks itself, and
leaves at once when there is none. The grid is bounded by shapes: as many expert slots as picks, or as experts.

Shape legend: M rows (picks of the expert), N columns and K depth of a tile, P picks looked at together.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def _count(index, expert, slot, num_picks, P: tl.constexpr):  # type: ignore[no-untyped-def]
    """Picks of the expert, and how many of them stand before pick ``slot``."""
    count = tl.zeros([P], tl.int32)
    before = tl.zeros([P], tl.int32)
    for start in range(0, num_picks, P):
        at = start + tl.arange(0, P)
        hit = tl.load(index + at, mask=at < num_picks, other=-1) == expert
        count += hit.to(tl.int32)
        before += (hit & (at < slot)).to(tl.int32)
    return tl.sum(count, 0), tl.sum(before, 0)


@triton.jit  # type: ignore[untyped-decorator]
def _picks(index, expert, first, num_picks, P: tl.constexpr, M: tl.constexpr):  # type: ignore[no-untyped-def]
    """Which picks are number ``first`` to ``first + M`` of the expert; 0 where it has fewer."""
    row_M = first + tl.arange(0, M)
    pick_M = tl.zeros([M], tl.int32)
    passed = 0
    for start in range(0, num_picks, P):
        at = start + tl.arange(0, P)
        hit = (tl.load(index + at, mask=at < num_picks, other=-1) == expert).to(tl.int32)
        rank = passed + tl.cumsum(hit, 0) - 1
        mine = (hit[None, :] > 0) & (rank[None, :] == row_M[:, None])
        pick_M += tl.sum(tl.where(mine, at[None, :], 0), 1)
        passed += tl.sum(hit, 0)
    return pick_M


@triton.jit  # type: ignore[untyped-decorator]
def _tile(at, held, EVEN: tl.constexpr):  # type: ignore[no-untyped-def]
    """A tile of weights, 0 past the end of the matrix."""
    return tl.load(at) if EVEN else tl.load(at, mask=held, other=0.0)


@triton.jit(do_not_specialize=["num_picks"])  # type: ignore[untyped-decorator]
def expert_linear(  # type: ignore[no-untyped-def]
    x, weight, bias, factor, index, out,
    num_picks, cols, depth, x_row_stride, expert_stride, col_stride, depth_stride, bias_stride,
    NUM_EXPERTS: tl.constexpr, TOP_K: tl.constexpr, BY_PICK: tl.constexpr, GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_FACTOR: tl.constexpr, EVEN: tl.constexpr,
    P: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """``out[pick] = x[pick // TOP_K] @ weight[expert of the pick].T``, for some columns of one expert.

    BY_PICK: a slot is a pick, and the first pick of an expert does the work of all; else a slot is an expert.
    GATED: rows of ``weight`` are gates, then as many up projections; out is ``silu(gate) * up``.
    HAS_FACTOR: out is multiplied by ``factor[pick]``. EVEN: tiles end where the matrix ends, so nothing is masked.
    """
    slot = tl.program_id(1)
    expert = slot.to(tl.int64)
    if BY_PICK:
        expert = tl.load(index + slot).to(tl.int64)
    count, before = _count(index, expert, slot if BY_PICK else 0, num_picks, P)
    if (count == 0) | (before > 0) | (expert >= NUM_EXPERTS):
        return
    col_N, place_K = tl.program_id(0) * N + tl.arange(0, N), tl.arange(0, K)
    held_N = col_N < cols
    weight_at = weight + expert * expert_stride + col_N[None, :] * col_stride + place_K[:, None] * depth_stride
    for first in range(0, count, M):
        pick_M = _picks(index, expert, first, num_picks, P, M)
        used_M = first + tl.arange(0, M) < count
        x_at = x + (pick_M // TOP_K).to(tl.int64)[:, None] * x_row_stride + place_K[None, :]
        sum_MN, up_MN = tl.zeros([M, N], tl.float32), tl.zeros([M, N], tl.float32)
        for start in range(0, depth, K):
            left = depth - start
            held_KN = (place_K < left)[:, None] & held_N[None, :]
            x_MK = tl.load(x_at + start, mask=used_M[:, None] & (place_K < left)[None, :], other=0.0)
            tile_at = weight_at + start * depth_stride
            sum_MN = tl.dot(x_MK, _tile(tile_at, held_KN, EVEN), sum_MN, input_precision="ieee")
            if GATED:
                up_KN = _tile(tile_at + cols * col_stride, held_KN, EVEN)
                up_MN = tl.dot(x_MK, up_KN, up_MN, input_precision="ieee")
        if HAS_BIAS:
            bias_at = bias + expert * bias_stride + col_N
            sum_MN += tl.load(bias_at, mask=held_N, other=0.0).to(tl.float32)[None, :]
            if GATED:
                up_MN += tl.load(bias_at + cols, mask=held_N, other=0.0).to(tl.float32)[None, :]
        if GATED:
            sum_MN = sum_MN / (1.0 + tl.exp(-sum_MN)) * up_MN
        if HAS_FACTOR:
            sum_MN *= tl.load(factor + pick_M, mask=used_M, other=0.0).to(tl.float32)[:, None]
        out_at = out + pick_M.to(tl.int64)[:, None] * cols + col_N[None, :]
        tl.store(out_at, sum_MN.to(out.dtype.element_ty), mask=used_M[:, None] & held_N[None, :])


@triton.jit  # type: ignore[untyped-decorator]
def gate_pairs(  # type: ignore[no-untyped-def]
    x, out, width, ALPHA: tl.constexpr, LIMIT: tl.constexpr, BLOCK: tl.constexpr
):
    """The activation of gpt-oss on pairs (gate, up), clamped: ``(up + 1) * gate * sigmoid(ALPHA * gate)``."""
    row, col = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(x + row * 2 * width + 2 * col, mask=col < width, other=0.0).to(tl.float32)
    up = tl.load(x + row * 2 * width + 2 * col + 1, mask=col < width, other=0.0).to(tl.float32)
    gate, up = tl.minimum(gate, LIMIT), tl.minimum(tl.maximum(up, -LIMIT), LIMIT)
    gated = (up + 1.0) * gate / (1.0 + tl.exp(-ALPHA * gate))
    tl.store(out + row * width + col, gated.to(out.dtype.element_ty), mask=col < width)


@triton.jit  # type: ignore[untyped-decorator]
def sum_picks(  # type: ignore[no-untyped-def]
    parts, index, out, width, NUM_EXPERTS: tl.constexpr, TOP_K: tl.constexpr, BLOCK: tl.constexpr
):
    """The sum of a token's picks in float32. Picks of expert ids past the last one count as zero (expert parallel)."""
    token, col = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    sum_W = tl.zeros([BLOCK], tl.float32)
    for pick in range(TOP_K):
        at = (token * TOP_K + pick).to(tl.int64)
        here = (tl.load(index + at) < NUM_EXPERTS) & (col < width)
        sum_W += tl.load(parts + at * width + col, mask=here, other=0.0)
    tl.store(out + token.to(tl.int64) * width + col, sum_W.to(out.dtype.element_ty), mask=col < width)
