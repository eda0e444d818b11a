"""Decode attention in Triton's interpreter against the plain form. Run by test_kernels_interpreted.py."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from moeprof.capture.kernels.attention import DecodeShape, torch_decode
from moeprof.capture.kernels.triton.attention import Tiling, count_splits, triton_decode
from tests.helpers.triton_interpreter import mend

mend()
PAGE = 16
SMALL = Tiling(block_keys=16)


def compare(
    contexts: list[int],
    heads: int = 4,
    groups: int = 2,
    head_dim: int = 32,
    value_dim: int = 32,
    window: int | None = None,
    softcap: float | None = None,
    sinks: bool = False,
    processors: int = 8,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Random keys on shuffled pages; pages past a context hold NaN, so reading them would show."""
    draw = torch.Generator().manual_seed(seed)
    num_seqs, pages = len(contexts), -(-max(contexts) // PAGE) + 1
    key = torch.randn(num_seqs * pages * PAGE, groups, head_dim, generator=draw).to(dtype)
    value = torch.randn(num_seqs * pages * PAGE, groups, value_dim, generator=draw).to(dtype)
    query = torch.randn(num_seqs, heads, head_dim, generator=draw).to(dtype)
    table = torch.randperm(num_seqs * pages, generator=draw).reshape(num_seqs, pages).int()
    context = torch.tensor(contexts, dtype=torch.int32)
    logits = torch.randn(heads, generator=draw).to(dtype) if sinks else None
    shape = DecodeShape(page_tokens=PAGE, scale=head_dim**-0.5, window=window, softcap=softcap)
    expected = torch_decode(query, key, value, table, context, shape, logits)
    for seq, keys in enumerate(contexts):
        past = torch.arange(pages * PAGE)[keys:]
        slots = table[seq].long()[past // PAGE] * PAGE + past % PAGE
        key[slots], value[slots] = float("nan"), float("nan")
    out = triton_decode(query, key, value, table, context, shape, logits, tiling=SMALL, num_processors=processors)
    assert out.dtype == dtype
    close = 2e-3 if dtype == torch.float16 else 1e-5
    torch.testing.assert_close(out, expected, atol=close, rtol=close)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    contexts=st.lists(st.integers(1, 70), min_size=1, max_size=3),
    repeats=st.sampled_from([1, 4, 8]),
    groups=st.sampled_from([1, 2]),
    dims=st.sampled_from([(16, 16), (32, 32), (80, 80), (96, 96), (192, 128), (8, 24)]),
    window=st.sampled_from([None, 1, 20, 64]),
    softcap=st.sampled_from([None, 5.0]),
    sinks=st.booleans(),
    processors=st.sampled_from([1, 40]),
    seed=st.integers(0, 5),
)
def test_any_shape_agrees_with_the_plain_form(
    contexts: list[int],
    repeats: int,
    groups: int,
    dims: tuple[int, int],
    window: int | None,
    softcap: float | None,
    sinks: bool,
    processors: int,
    seed: int,
) -> None:
    compare(contexts, repeats * groups, groups, *dims, window, softcap, sinks, processors, seed)


@pytest.mark.parametrize("processors", [1, 40])
def test_half_precision_agrees_with_the_plain_form(processors: int) -> None:
    compare([1, 33, 70], processors=processors, dtype=torch.float16)


def test_an_unused_table_entry_is_never_followed() -> None:
    shape = DecodeShape(page_tokens=PAGE, scale=1.0)
    table = torch.tensor([[0, 2_000_000_000]], dtype=torch.int32)
    cache = torch.ones(PAGE, 1, 16)
    out = triton_decode(torch.ones(1, 1, 16), cache, cache, table, torch.tensor([16], dtype=torch.int32), shape)
    assert torch.equal(out, torch.ones(1, 1, 16))


def test_layers_of_one_cache_are_read_in_place() -> None:
    """A cache [slots, layers, G, D] seen per layer has other strides than a tensor of its own."""
    cache = torch.randn(64, 3, 2, 2, 32)
    table = torch.tensor([[1, 3, 0, 2]], dtype=torch.int32)
    shape = DecodeShape(page_tokens=PAGE, scale=0.2)
    arguments = torch.randn(1, 4, 32), cache[:, 1, 0], cache[:, 1, 1], table, torch.tensor([50], dtype=torch.int32)
    out = triton_decode(*arguments, shape, tiling=SMALL)
    torch.testing.assert_close(out, torch_decode(*arguments, shape), atol=1e-5, rtol=1e-5)


def test_splits_come_from_shapes_alone() -> None:
    tiling = Tiling(block_keys=64, programs_per_processor=2)
    # 2 * 132 programs wanted, 8 groups: 33 splits; a table of 1,024 tokens holds 16 blocks of 64
    assert count_splits(1, 8, 1 << 20, tiling, 132) == 33
    assert count_splits(1, 8, 1024, tiling, 132) == 16
    assert count_splits(64, 8, 1024, tiling, 132) == 1
