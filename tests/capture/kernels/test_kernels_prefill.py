"""Attention of prompts: every form is the same sum, whatever part of the prompt came before."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from moeprof.capture.kernels import attention, prefill
from moeprof.capture.kernels.attention import AttentionKind, DecodeShape, torch_decode

PAGE = 16


def inputs(
    heads: int, groups: int, queries: int, past: int, dims: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    keys = past + queries
    return (
        torch.randn(1, heads, queries, dims[0], generator=draw),
        torch.randn(1, groups, keys, dims[0], generator=draw),
        torch.randn(1, groups, keys, dims[1], generator=draw),
    )


def row_by_row(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, shape: DecodeShape, sinks: torch.Tensor | None
) -> torch.Tensor:
    """Every query as a decode step of its own: the contract of decode attention is the reference."""
    num_queries, num_keys = query.shape[2], key.shape[2]
    pages = -(-num_keys // PAGE)
    room = pages * PAGE - num_keys
    cache = [torch.cat([part[0].transpose(0, 1), part.new_zeros(room, *part.shape[1::2])]) for part in (key, value)]
    table = torch.arange(pages, dtype=torch.int32).expand(num_queries, -1)
    context = torch.arange(num_keys - num_queries + 1, num_keys + 1, dtype=torch.int32)
    out = torch_decode(query[0].transpose(0, 1), *cache, table, context, shape, sinks)
    return out.transpose(0, 1)[None]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    heads=st.sampled_from([(2, 2), (4, 2), (8, 1)]),
    queries=st.integers(1, 40),
    past=st.sampled_from([0, 1, 17]),
    dims=st.sampled_from([(16, 16), (24, 16), (16, 24)]),
    window=st.sampled_from([None, 1, 9, 100]),
    softcap=st.sampled_from([None, 3.0]),
    sinks=st.booleans(),
)
def test_a_prompt_is_attended_as_its_tokens_one_by_one_would_be(
    heads: tuple[int, int],
    queries: int,
    past: int,
    dims: tuple[int, int],
    window: int | None,
    softcap: float | None,
    sinks: bool,
) -> None:
    shape = DecodeShape(page_tokens=PAGE, scale=0.3, window=window, softcap=softcap)
    logits = torch.linspace(-1, 1, heads[0]) if sinks else None
    given_inputs = inputs(*heads, queries, past, dims)
    expected = row_by_row(*given_inputs, shape, logits)
    for form in (prefill.prefill_attention, prefill.plain_prefill):
        torch.testing.assert_close(form(*given_inputs, shape, logits), expected, atol=1e-5, rtol=1e-5)


def test_large_scores_are_summed_group_by_group(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = DecodeShape(page_tokens=PAGE, scale=0.3, softcap=2.0)
    given_inputs, sinks = inputs(4, 2, 9, 3, (16, 16)), torch.tensor([0.0, 1.0, 2.0, 3.0])
    at_once = prefill.plain_prefill(*given_inputs, shape, sinks)
    monkeypatch.setattr(prefill, "MOST_SCORES", 1)
    torch.testing.assert_close(prefill.plain_prefill(*given_inputs, shape, sinks), at_once)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("heads_first", [True, False], ids=["lse [H, Q]", "lse [Q, H]"])
def test_sinks_come_from_the_log_sum_exp_of_flash_attention(
    window: int | None, heads_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in with the signature of torch's varlen_attn and the mathematics of one sequence."""

    def varlen_attn(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any, window_size: Any, **kwargs: Any
    ) -> Any:
        ends_q, ends_k, max_q, max_k = rest
        assert (ends_q.tolist(), ends_k.tolist(), max_q, max_k) == ([0, 7], [0, 10], 7, 10)
        assert window_size == ((-1, 0) if window is None else (window - 1, 0))
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
        scores = torch.einsum("qhd,khd->hqk", query, key) * kwargs["scale"]
        distance = torch.arange(3, 10)[:, None] - torch.arange(10)
        hidden = (distance < 0) | ((window_size[0] >= 0) & (distance > window_size[0]))
        scores = scores.masked_fill(hidden, float("-inf"))
        lse = scores.logsumexp(-1)
        out = torch.einsum("hqk,khv->qhv", scores.softmax(-1), value)
        return out, lse if heads_first else lse.transpose(0, 1)

    fake = SimpleNamespace(varlen_attn=varlen_attn, AuxRequest=lambda lse: lse)
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", fake)
    prefill._takes_gqa.cache_clear()
    shape = DecodeShape(page_tokens=PAGE, scale=0.3, window=window)
    given_inputs, sinks = inputs(4, 2, 7, 3, (24, 16)), torch.tensor([0.0, 1.0, -1.0, 2.0])
    out = prefill.varlen_prefill(*given_inputs, shape, sinks)
    prefill._takes_gqa.cache_clear()
    torch.testing.assert_close(out, row_by_row(*given_inputs, shape, sinks), atol=1e-5, rtol=1e-5)


# -- torch's paged attention -------------------------------------------------------------------------------------------

LONG_PAGES = DecodeShape(page_tokens=256, scale=0.1)
KIND = AttentionKind(
    dtype=torch.bfloat16, num_heads=4, num_groups=2, head_dim=128, value_dim=128, shape=LONG_PAGES, has_sinks=False
)


def with_block_table(*_: Any, block_table: Any = None) -> None:
    """A torch that has it."""


def without_block_table(*_: Any) -> None:
    """A torch that has it not."""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dtype": torch.float32}, "FlashAttention has no float32"),
        ({"head_dim": 192}, "not 192/128"),
        ({"has_sinks": True}, "varlen_attn has no attention sinks"),
        ({"shape": DecodeShape(page_tokens=16, scale=0.1)}, "pages of 16 tokens"),
        ({}, None),
    ],
)
def test_why_torchs_paged_attention_cannot_serve(
    change: dict[str, Any], words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = SimpleNamespace(varlen_attn=with_block_table)
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", fake)
    why_not = attention.why_no_varlen(replace(KIND, **change))
    assert why_not is None if words is None else words in str(why_not)


def test_a_torch_without_block_tables_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(varlen_attn=without_block_table)
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", fake)
    assert attention.why_no_varlen(KIND) == f"varlen_attn of torch {torch.__version__} takes no block table"


def test_paged_attention_is_called_with_pages_and_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def varlen_attn(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any, **kwargs: Any) -> Any:
        seen.update(kwargs, key=key.shape, ends=rest[0].tolist(), longest=rest[3])
        return query

    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", SimpleNamespace(varlen_attn=varlen_attn))
    cache, table = torch.zeros(512, 2, 8), torch.zeros(3, 2, dtype=torch.int32)
    context = torch.tensor([1, 2, 3], dtype=torch.int32)
    shape = DecodeShape(page_tokens=256, scale=0.1, window=10)
    attention.varlen_decode(torch.zeros(3, 4, 8), cache, cache, table, context, shape)
    assert (seen["key"], seen["ends"], seen["longest"]) == ((2, 256, 2, 8), [0, 1, 2, 3], 512)
    assert (seen["window_size"], seen["enable_gqa"]) == ((9, 0), True)
    assert seen["seqused_k"] is context
