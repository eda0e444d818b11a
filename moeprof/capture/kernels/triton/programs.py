"""Triton programs: paged decode attention, experts, rotary positions. Imported lazily: this file needs ``triton``.

**Paged decode attention** (attention.py).
The keys of a sequence are cut into splits of equal length; a program attends one split for all query heads of one
key/value head, and a second program joins the splits (flash-decoding, https://crfm.stanford.edu/2023/10/12/flashdecoding.html).
The grid depends on shapes alone. How long a split is, is read from the context on the device, so short and long
contexts are cut evenly and a captured launch stays right when contexts grow.

Shape legend: R query heads of a group (padded to 16 rows), D head size of keys, V of values, N keys of a block, S
splits.

**Experts of few tokens** (experts.py).
A decode step is bound by the bytes of the experts that it touches, so each touched expert's weights are read once. No
launch sorts the picks: a program owns some columns of one expert, looks for that expert among the picks itself, and
leaves at once when there is none. The grid is bounded by shapes: as many expert slots as picks, or as experts.

Shape legend: M rows (picks of the expert), N columns and K depth of a tile, P picks looked at together.

**Rotary positions** (rotary.py).

Shape legend: R heads of a program, C half a head.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def _scores(query_RD, key_DN, SCALE: tl.constexpr, SOFTCAP: tl.constexpr):  # type: ignore[no-untyped-def]
    """Scores in float32, [R, N]; SOFTCAP 0 is none. tanh(x) = 2 / (1 + exp(-2x)) - 1 holds at both ends."""
    scores_RN = tl.dot(query_RD, key_DN, input_precision="ieee") * SCALE
    if SOFTCAP > 0:
        scores_RN = SOFTCAP * (2.0 / (1.0 + tl.exp(scores_RN * (-2.0 / SOFTCAP))) - 1.0)
    return scores_RN


# Numbers that change from step to step must not make it compile anew in the middle of a pass.
@triton.jit(do_not_specialize=["table_seq_stride", "num_splits"])  # type: ignore[untyped-decorator]
def attend_split(  # type: ignore[no-untyped-def]
    query, key, value, table, context, sinks, out, peak, total,
    query_seq_stride, query_head_stride, key_slot_stride, key_group_stride,
    value_slot_stride, value_group_stride, table_seq_stride, num_splits,
    NUM_GROUPS: tl.constexpr, R: tl.constexpr, D: tl.constexpr, V: tl.constexpr,
    PADDED_R: tl.constexpr, PADDED_D: tl.constexpr, PADDED_V: tl.constexpr,
    PAGE: tl.constexpr, N: tl.constexpr, IS_SPLIT: tl.constexpr,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, HAS_SINKS: tl.constexpr,
):  # fmt: skip
    """One split of one sequence and key/value head.

    Unsplit, the output is final and in the dtype of the query; else ``out`` takes the unscaled sum, ``peak`` and
    ``total`` the maximum and the sum of the exponentials, all [B, H, S, ...] in float32.
    """
    seq, group, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    num_keys = tl.load(context + seq)
    first = tl.maximum(num_keys - WINDOW, 0) if WINDOW > 0 else 0
    length = tl.cdiv(tl.cdiv(num_keys - first, num_splits), N) * N
    begin = first + split * length
    end = tl.minimum(begin + length, num_keys)
    row, col_d, col_v = tl.arange(0, PADDED_R), tl.arange(0, PADDED_D), tl.arange(0, PADDED_V)
    head = group * R + row
    stat = (seq * NUM_GROUPS * R + head) * num_splits + split
    if begin >= num_keys:
        tl.store(peak + stat, tl.full([PADDED_R], float("-inf"), tl.float32), mask=row < R)
        return
    query_at = query + seq.to(tl.int64) * query_seq_stride + head[:, None] * query_head_stride + col_d[None, :]
    query_RD = tl.load(query_at, mask=(row < R)[:, None] & (col_d < D)[None, :], other=0.0)
    peak_R = tl.full([PADDED_R], float("-inf"), tl.float32)
    total_R = tl.zeros([PADDED_R], tl.float32)
    sum_RV = tl.zeros([PADDED_R, PADDED_V], tl.float32)
    for start in range(begin, end, N):
        place = start + tl.arange(0, N)
        seen = place < end
        page = tl.load(table + seq.to(tl.int64) * table_seq_stride + place // PAGE, mask=seen, other=0)
        slot = page.to(tl.int64) * PAGE + place % PAGE
        key_at = key + (slot * key_slot_stride + group * key_group_stride)[None, :] + col_d[:, None]
        key_DN = tl.load(key_at, mask=seen[None, :] & (col_d < D)[:, None], other=0.0)
        scores_RN = tl.where(seen[None, :], _scores(query_RD, key_DN, SCALE, SOFTCAP), float("-inf"))
        new_peak_R = tl.maximum(peak_R, tl.max(scores_RN, 1))
        weight_RN = tl.exp(scores_RN - new_peak_R[:, None])
        shrink_R = tl.exp(peak_R - new_peak_R)
        total_R = total_R * shrink_R + tl.sum(weight_RN, 1)
        value_at = value + (slot * value_slot_stride + group * value_group_stride)[:, None] + col_v[None, :]
        value_NV = tl.load(value_at, mask=seen[:, None] & (col_v < V)[None, :], other=0.0)
        part_RV = tl.dot(weight_RN.to(value_NV.dtype), value_NV, input_precision="ieee")
        sum_RV, peak_R = sum_RV * shrink_R[:, None] + part_RV, new_peak_R
    if IS_SPLIT:
        tl.store(peak + stat, peak_R, mask=row < R)
        tl.store(total + stat, total_R, mask=row < R)
    else:
        if HAS_SINKS:
            total_R += tl.exp(tl.load(sinks + head, mask=row < R, other=0.0).to(tl.float32) - peak_R)
        sum_RV = sum_RV / total_R[:, None]
    out_at = out + stat.to(tl.int64)[:, None] * V + col_v[None, :]
    tl.store(out_at, sum_RV.to(out.dtype.element_ty), mask=(row < R)[:, None] & (col_v < V)[None, :])


@triton.jit(do_not_specialize=["num_splits"])  # type: ignore[untyped-decorator]
def join_splits(  # type: ignore[no-untyped-def]
    parts, peak, total, sinks, out, num_splits,
    NUM_HEADS: tl.constexpr, V: tl.constexpr, PADDED_V: tl.constexpr,
    PADDED_S: tl.constexpr, BLOCK_S: tl.constexpr, HAS_SINKS: tl.constexpr,
):  # fmt: skip
    """Join the splits of one sequence and query head: [S, V] parts with their maxima and sums, into [V]."""
    seq, head = tl.program_id(0), tl.program_id(1)
    at = (seq * NUM_HEADS + head).to(tl.int64) * num_splits
    col_v = tl.arange(0, PADDED_V)
    every = tl.arange(0, PADDED_S)
    top = tl.max(tl.load(peak + at + every, mask=every < num_splits, other=float("-inf")), 0)
    norm = 0.0
    if HAS_SINKS:
        sink = tl.load(sinks + head).to(tl.float32)
        top = tl.maximum(top, sink)
        norm = tl.exp(sink - top)
    sum_V = tl.zeros([PADDED_V], tl.float32)
    for start in range(0, num_splits, BLOCK_S):
        split = start + tl.arange(0, BLOCK_S)
        peak_S = tl.load(peak + at + split, mask=split < num_splits, other=float("-inf"))
        kept = peak_S > float("-inf")  # splits past the context wrote nothing but their maximum
        weight_S = tl.where(kept, tl.exp(peak_S - top), 0.0)
        norm += tl.sum(weight_S * tl.load(total + at + split, mask=kept, other=0.0), 0)
        part_at = parts + (at + split)[:, None] * V + col_v[None, :]
        part_SV = tl.load(part_at, mask=kept[:, None] & (col_v < V)[None, :], other=0.0)
        sum_V += tl.sum(weight_S[:, None] * part_SV, 0)
    out_at = out + (seq * NUM_HEADS + head).to(tl.int64) * V + col_v
    tl.store(out_at, (sum_V / norm).to(out.dtype.element_ty), mask=col_v < V)


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


@triton.jit  # type: ignore[untyped-decorator]
def rotate(  # type: ignore[no-untyped-def]
    query, key, cos, sin, query_out, key_out,
    query_token_stride, query_head_stride, key_token_stride, key_head_stride, cos_token_stride, sin_token_stride,
    NUM_HEADS: tl.constexpr, NUM_GROUPS: tl.constexpr, HALF: tl.constexpr, SECOND: tl.constexpr,
    R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Rotate some heads of one token, queries first, then keys; sums in float32.

    SECOND: where the second half of a head finds its angles: HALF, or 0 where angles are stored once for both.
    """
    token, row = tl.program_id(0), tl.program_id(1) * R + tl.arange(0, R)
    col = tl.arange(0, C)
    is_query, is_key = row < NUM_HEADS, (row >= NUM_HEADS) & (row < NUM_HEADS + NUM_GROUPS)
    query_held, key_held = is_query[:, None] & (col < HALF)[None, :], is_key[:, None] & (col < HALF)[None, :]
    key_row = row - NUM_HEADS
    query_at = query + token.to(tl.int64) * query_token_stride + row[:, None] * query_head_stride + col[None, :]
    key_at = key + token.to(tl.int64) * key_token_stride + key_row[:, None] * key_head_stride + col[None, :]
    first_RC = tl.load(query_at, mask=query_held, other=0.0).to(tl.float32)
    first_RC += tl.load(key_at, mask=key_held, other=0.0).to(tl.float32)
    second_RC = tl.load(query_at + HALF, mask=query_held, other=0.0).to(tl.float32)
    second_RC += tl.load(key_at + HALF, mask=key_held, other=0.0).to(tl.float32)
    cos_at = cos + token.to(tl.int64) * cos_token_stride + col
    sin_at = sin + token.to(tl.int64) * sin_token_stride + col
    held = col < HALF
    cos_C, sin_C = tl.load(cos_at, mask=held, other=0.0), tl.load(sin_at, mask=held, other=0.0)
    out_RC = first_RC * cos_C.to(tl.float32)[None, :] - second_RC * sin_C.to(tl.float32)[None, :]
    cos_C, sin_C = tl.load(cos_at + SECOND, mask=held, other=0.0), tl.load(sin_at + SECOND, mask=held, other=0.0)
    last_RC = second_RC * cos_C.to(tl.float32)[None, :] + first_RC * sin_C.to(tl.float32)[None, :]
    query_to = query_out + (token.to(tl.int64) * NUM_HEADS + row[:, None]) * (2 * HALF) + col[None, :]
    key_to = key_out + (token.to(tl.int64) * NUM_GROUPS + key_row[:, None]) * (2 * HALF) + col[None, :]
    tl.store(query_to, out_RC.to(query_out.dtype.element_ty), mask=query_held)
    tl.store(query_to + HALF, last_RC.to(query_out.dtype.element_ty), mask=query_held)
    tl.store(key_to, out_RC.to(key_out.dtype.element_ty), mask=key_held)
    tl.store(key_to + HALF, last_RC.to(key_out.dtype.element_ty), mask=key_held)
