"""Experts in Triton's interpreter against transformers' grouped_mm. Run by test_kernels_interpreted.py."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn
from transformers.integrations.moe import grouped_mm_experts_forward

from moeprof.capture.kernels.experts import KERNEL, TOKENS, decode_experts, is_plain_silu
from moeprof.capture.kernels.triton.experts import triton_experts, why_no_layer
from tests.helpers.plain_experts import make_experts
from tests.helpers.triton_interpreter import mend

mend()


def compare(experts: nn.Module, index: torch.Tensor, hidden_size: int, dtype: torch.dtype = torch.float32) -> None:
    draw = torch.Generator().manual_seed(1)
    hidden = torch.randn(index.shape[0], hidden_size, generator=draw).to(dtype)
    weights = torch.rand(index.shape, generator=draw).to(dtype)
    assert why_no_layer(experts, dtype) is None
    with torch.no_grad():
        expected = grouped_mm_experts_forward(experts, hidden, index, weights)
        out = triton_experts(experts, hidden, index, weights)
    close = 5e-3 if dtype == torch.float16 else 1e-5
    torch.testing.assert_close(out, expected, atol=close, rtol=close)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    num_experts=st.sampled_from([1, 2, 7, 32]),
    top_k=st.integers(1, 4),
    tokens=st.sampled_from([1, 2, 5, 19]),
    sizes=st.sampled_from([(32, 16), (40, 24), (64, 48)]),
    layout=st.sampled_from([{}, {"bias": True}, {"transposed": True}, {"bias": True, "transposed": True}]),
    act=st.sampled_from(["silu", "gelu"]),
    seed=st.integers(0, 5),
)
def test_any_layout_agrees_with_grouped_mm(
    num_experts: int, top_k: int, tokens: int, sizes: tuple[int, int], layout: dict[str, bool], act: str, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    picks = [torch.randperm(num_experts, generator=draw)[:top_k] for _ in range(tokens)]
    compare(make_experts(num_experts, *sizes, act=act, **layout), torch.stack(picks), sizes[0])


def test_all_tokens_may_pick_the_same_experts() -> None:
    """40 picks of one expert are more than the 16 rows of a tile."""
    compare(make_experts(8, 32, 16), torch.tensor([[3, 5]] * 40), 32)


def test_every_pick_may_be_another_expert() -> None:
    compare(make_experts(16, 32, 16), torch.randperm(16).reshape(4, 4), 32)


def test_more_picks_than_a_program_looks_at_together() -> None:
    compare(make_experts(4, 32, 16), torch.randint(0, 4, (150, 1)), 32)


def test_half_precision_agrees_with_grouped_mm() -> None:
    compare(make_experts(8, 64, 32, dtype=torch.float16), torch.tensor([[0, 7], [7, 2]]), 64, torch.float16)


def test_experts_without_a_gate_agree_with_grouped_mm() -> None:
    compare(make_experts(4, 32, 24, gate=False), torch.tensor([[0, 3], [1, 2], [3, 0]]), 32)


def test_an_expert_of_another_rank_counts_as_zero() -> None:
    """Expert parallel: ids of E and above live elsewhere."""
    experts, hidden = make_experts(4, 32, 16), torch.randn(2, 32)
    weights = torch.tensor([[0.5, 0.0], [1.0, 0.0]])
    with torch.no_grad():
        out = triton_experts(experts, hidden, torch.tensor([[1, 4], [2, 4]]), weights)
        alone = triton_experts(experts, hidden, torch.tensor([[1], [2]]), weights[:, :1])
    assert torch.equal(out, alone)


@pytest.mark.parametrize("spread", [0.2, 2.0])
def test_the_activation_of_gpt_oss_runs_between_the_launches(spread: float) -> None:
    """At a spread of 2 gates have a deviation of 11: past the limit of 7."""
    from transformers import GptOssConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

    config: Any = GptOssConfig(hidden_size=32, intermediate_size=32, num_local_experts=4, num_experts_per_tok=2)
    experts = GptOssExperts(config)
    for parameter in experts.parameters():
        nn.init.normal_(parameter, std=0.2)
    nn.init.normal_(experts.gate_up_proj, std=spread)
    assert not is_plain_silu(experts)
    compare(experts, torch.tensor([[0, 3], [1, 2], [3, 0]]), 32)


@pytest.mark.parametrize(("limit", "ran"), [(4, "triton"), (3, "grouped_mm")])
def test_the_number_of_tokens_decides_which_kernel_runs(limit: int, ran: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(
        "transformers.integrations.moe.grouped_mm_experts_forward",
        lambda *_: calls.append("grouped_mm") or torch.ones(1),
    )
    experts = make_experts(4, 32, 16)
    setattr(experts, TOKENS, limit)
    setattr(experts, KERNEL, lambda *_: calls.append("triton") or torch.ones(1))
    decode_experts(experts, torch.ones(4, 32), torch.zeros(4, 2, dtype=torch.int64), torch.ones(4, 2))
    assert calls == [ran]
