"""Experts on a CPU by our own kernel, behind transformers' experts interface.

``grouped_mm`` on a CPU calls a general product for every expert, which costs more than the product itself where few
tokens meet an expert. The kernel reads the weights of the experts that are picked, once per step, and no others.
Shape legend: T tokens, k picks of a token, d hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from moeprof.capture.kernels.cpu.build import known_dtypes, why_no_kernels
from moeprof.capture.kernels.experts import is_experts, is_plain_silu

NAME = "moeprof_cpu"
EVEN = 2  # bfloat16 is read in pairs


def why_not(layers: Sequence[nn.Module]) -> str | None:
    """The reason why the experts of these layers keep transformers' kernel, or None."""
    return next(filter(None, map(why_no_layer, layers)), None) or why_no_kernels()


def why_no_layer(module: nn.Module) -> str | None:
    """The reason why the kernel does not do these experts, or None."""
    if not is_experts(module) or not is_plain_silu(module):
        return "experts are not silu(gate) * up behind transformers' experts interface"
    if module.is_transposed or getattr(module, "has_bias", False) or getattr(module, "has_post_expert_norm", False):
        return "experts with transposed weights, biases or a norm"
    for weight in (module.gate_up_proj, module.down_proj):
        if not isinstance(weight, torch.Tensor) or hasattr(weight, "to_local") or weight.device.type != "cpu":
            return "experts' weights are not plain tensors on the CPU"
        if (
            weight.ndim != 3
            or weight.dtype not in known_dtypes()
            or weight.shape[2] % EVEN
            or not weight.is_contiguous()
        ):
            return f"experts' weights are {str(weight.dtype).removeprefix('torch.')} {tuple(weight.shape)}"
    return None


def cpu_experts(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """The call of transformers' experts interface: [T, d], picks and weights [T, k]; ids past the experts count 0."""
    out: torch.Tensor = torch.ops.moeprof_cpu.experts(
        hidden_states, top_k_index, top_k_weights, self.gate_up_proj, self.down_proj
    )
    return out
