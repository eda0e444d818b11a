"""The Triton program of rotary positions. Imported lazily: this file needs ``triton`` (see fuse.py).

Shape legend: R heads of a program, C half a head.
"""

from __future__ import annotations

import triton
import triton.language as tl


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
