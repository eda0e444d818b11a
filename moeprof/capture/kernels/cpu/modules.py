"""Experts on a CPU by our own kernel, behind transformers' experts interface.

``grouped_mm`` on a CPU calls a general product for every expert, which costs more than the product itself where few
tokens meet an expert. The kernel reads the weights of the experts that are picked, once per step, and no others.
Shape legend: T tokens, k picks of a token, d hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from moeprof.capture.kernels.cpu.build import known_dtypes, why_no_kernels
from moeprof.capture.kernels.triton.experts import is_experts, is_plain_silu

NAME = "moeprof_cpu"
EVEN = 2  # bfloat16 is read in pairs


def why_not(module: nn.Module) -> str | None:
    """The reason why these experts keep transformers' kernel, or None."""
    if not is_experts(module) or not is_plain_silu(module):
        return "experts are not silu(gate) * up behind transformers' experts interface"
    if module.is_transposed or getattr(module, "has_bias", False) or getattr(module, "has_post_expert_norm", False):
        return "experts with transposed weights, biases or a norm"
    weights = (module.gate_up_proj, module.down_proj)
    for weight in weights:
        if not isinstance(weight, torch.Tensor) or hasattr(weight, "to_local") or weight.device.type != "cpu":
            return "experts' weights are not plain tensors on the CPU"
        if (
            weight.ndim != 3
            or weight.dtype not in known_dtypes()
            or weight.shape[2] % EVEN
            or not weight.is_contiguous()
        ):
            return f"experts' weights are {str(weight.dtype).removeprefix('torch.')} {tuple(weight.shape)}"
    return why_no_kernels()


def cpu_experts(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """The call of transformers' experts interface: [T, d], picks and weights [T, k]; ids past the experts count 0."""
    out: torch.Tensor = torch.ops.moeprof_cpu.experts(
        hidden_states, top_k_index, top_k_weights, self.gate_up_proj, self.down_proj
    )
    return out


def use_cpu_experts(model: Any) -> str | None:
    """Switch all experts of the model to the kernel; the reason why they stay as they are, or None."""
    found = [module for module in model.modules() if type(module).__name__.endswith("Experts")]
    if not found:
        return "no routed experts"
    reason = next((reason for reason in map(why_not, found) if reason is not None), None)
    if reason is None:
        ALL_EXPERTS_FUNCTIONS.register(NAME, cpu_experts)
        model.set_experts_implementation(NAME)
    return reason
