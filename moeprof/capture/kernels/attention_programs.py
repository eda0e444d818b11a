"""Triton programs of paged decode attention. Imported lazily: this file needs ``triton`` (see triton_attention.py).

The keys of a sequence are cut into splits of equal length; a program attends one split for all query heads of one
key/value head, and a second program joins the splits (flash-decoding, https://crfm.stanford.edu/2023/10/12/flashdecoding.html).
The grid depends on shapes alone. How long a split is, is read from the context on the device, so short and long
contexts are cut evenly and a captured launch stays right when contexts grow.

Shape legend: R query heads of a group (padded to 16 rows), D head size of keys, V of values, N keys of a block, S
splits.
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
