"""Norms and rotary positions in one launch: only where they agree, and they can be taken back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.qwen3_moe import modeling_qwen3_moe

from moeprof.capture.kernels.modules import fuse, fuse_norms, unfuse
from moeprof.capture.kernels.triton.rotary import ROTARY, Rotary, covers
from tests.helpers.lane_models import moe_model


def test_every_norm_of_a_model_is_replaced_and_comes_back() -> None:
    model, tokens = moe_model(), torch.arange(12)[None]
    before = model(tokens).logits
    norms = [module for module in model.modules() if type(module).__name__ == "Qwen3MoeRMSNorm"]
    notes: list[str] = []
    assert (fuse_norms(model, notes), notes) == (len(norms), [])
    assert fuse_norms(model, notes) == 0  # nothing is left to replace
    torch.testing.assert_close(model(tokens).logits, before)
    assert all("forward" in module.__dict__ for module in norms)
    unfuse(model)
    assert not any("forward" in module.__dict__ for module in norms)
    assert torch.equal(model(tokens).logits, before)


def test_a_norm_whose_weight_counts_from_zero_is_left_as_it_is() -> None:
    """Gemma multiplies by 1 + weight."""
    notes: list[str] = []
    assert fuse_norms(nn.Sequential(GemmaRMSNorm(8)), notes) == 0
    assert notes == ["GemmaRMSNorm stays as it is: torch's norm is off by 1.0e+00"]


class GatedRMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(4)), 1e-6

    def forward(self, hidden_states: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return hidden_states * gate


def test_a_norm_with_a_gate_is_left_as_it_is() -> None:
    notes: list[str] = []
    assert fuse_norms(nn.Sequential(GatedRMSNorm()), notes) == 0
    assert notes == ["GatedRMSNorm stays as it is: it takes more than hidden states"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_replaced_norm_keeps_the_dtype_and_falls_back_for_another(dtype: torch.dtype) -> None:
    norm = modeling_qwen3_moe.Qwen3MoeRMSNorm(16).to(dtype)
    states = torch.randn(3, 16)
    before = norm(states.to(dtype)), norm(states)
    assert fuse_norms(nn.Sequential(norm), []) == 1
    assert norm(states.to(dtype)).dtype == dtype
    torch.testing.assert_close(norm(states.to(dtype)), before[0], atol=0.02, rtol=0.02)
    assert torch.equal(norm(states), before[1])


def test_nothing_is_fused_on_a_cpu() -> None:
    fused = fuse(moe_model())
    assert (fused.norms, fused.rotary, fused.notes) == (0, 0, ("small operations stay apart: the device is cpu",))


def test_rotary_positions_on_a_cpu_are_the_models_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = moe_model(), torch.arange(12)[None]
    before, own = model(tokens).logits, getattr(modeling_qwen3_moe, ROTARY)
    monkeypatch.setattr(modeling_qwen3_moe, ROTARY, Rotary(own))
    assert torch.equal(model(tokens).logits, before)
    unfuse(model)
    assert getattr(modeling_qwen3_moe, ROTARY) is own


@pytest.mark.parametrize(
    ("change", "held"),
    [
        ({}, True),
        ({"cos": torch.ones(1, 3, 4), "sin": torch.ones(1, 3, 4)}, True),  # one half for both
        ({"cos": torch.ones(1, 3, 6), "sin": torch.ones(1, 3, 6)}, False),  # part of a head
        ({"query": torch.ones(2, 4, 3, 8), "cos": torch.ones(2, 3, 8), "sin": torch.ones(2, 3, 8)}, False),
        ({"cos": torch.ones(1, 3, 8).half()}, False),
        ({"query": torch.ones(1, 4, 8, 3).transpose(2, 3)}, False),
    ],
)
def test_what_the_program_of_rotary_positions_covers(change: dict[str, Any], held: bool) -> None:
    plain = {"query": torch.ones(1, 4, 3, 8), "key": torch.ones(1, 2, 3, 8)}
    plain |= {"cos": torch.ones(1, 3, 8), "sin": torch.ones(1, 3, 8)}
    assert covers(**(plain | change)) is held
