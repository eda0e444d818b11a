"""Experts modules of any layout behind transformers' experts interface, for the tests of kernels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers.integrations.moe import use_experts_implementation


def make_experts(
    num_experts: int,
    hidden_size: int,
    inner_size: int,
    *,
    bias: bool = False,
    transposed: bool = False,
    gate: bool = True,
    act: str = "silu",
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """Experts with random weights, scaled so that outputs stay near one."""
    draw = torch.Generator().manual_seed(0)

    def parameter(*shape: int) -> nn.Parameter:
        return nn.Parameter((torch.randn(shape, generator=draw) / max(1, shape[-1]) ** 0.5).to(dtype))

    @use_experts_implementation(has_bias=bias, is_transposed=transposed, has_gate=gate)
    class PlainExperts(nn.Module):
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.num_experts = num_experts
            first, width = "gate_up_proj" if gate else "up_proj", (2 if gate else 1) * inner_size
            sizes = (hidden_size, width) if transposed else (width, hidden_size)
            setattr(self, first, parameter(num_experts, *sizes))
            sizes = (inner_size, hidden_size) if transposed else (hidden_size, inner_size)
            self.down_proj = parameter(num_experts, *sizes)
            if bias:
                setattr(self, first + "_bias", parameter(num_experts, width))
                self.down_proj_bias = parameter(num_experts, hidden_size)
            self.act_fn = {"silu": nn.SiLU(), "gelu": nn.GELU()}[act]

        def forward(self, *_: torch.Tensor) -> torch.Tensor:
            raise AssertionError("the experts interface takes the call")

    return PlainExperts(SimpleNamespace(_experts_implementation="grouped_mm"))
