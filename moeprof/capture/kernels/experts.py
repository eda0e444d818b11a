"""Experts behind transformers' experts interface: which modules they are, the plain form, steps that a kernel takes.

Shape legend: T tokens, k picks of a token, d hidden size.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn
from transformers.integrations import moe

NAME = "moeprof_decode"
TOKENS = "moeprof_decode_tokens"  # attribute of an experts module: steps of up to so many tokens take its kernel
KERNEL = "moeprof_decode_kernel"
MAX_PICKS = 1024  # every program of our Triton kernel looks through all picks


class ExpertsKernel(Protocol):
    """The experts of a module on tokens."""

    def __call__(
        self, module: Any, hidden_Td: torch.Tensor, top_k_index_Tk: torch.Tensor, top_k_weights_Tk: torch.Tensor, /
    ) -> torch.Tensor:
        """[T, d] in the dtype of the tokens; ids past the experts are of another rank and count as zero."""


def grouped_mm(
    module: Any, hidden_Td: torch.Tensor, top_k_index_Tk: torch.Tensor, top_k_weights_Tk: torch.Tensor
) -> torch.Tensor:
    """The plain form, by transformers."""
    out: torch.Tensor = moe.grouped_mm_experts_forward(module, hidden_Td, top_k_index_Tk, top_k_weights_Tk)
    return out


def is_experts(module: nn.Module) -> bool:
    """True for modules behind transformers' experts interface (``use_experts_implementation``)."""
    return hasattr(module, "is_transposed") and hasattr(module, "has_gate") and hasattr(module, "down_proj")


def is_plain_silu(module: nn.Module) -> bool:
    """True where the module computes ``silu(first half) * second half``, which our kernels do by themselves."""
    gate = getattr(type(module), "_apply_gate", None)
    act = getattr(module, "act_fn", None)
    plain = isinstance(act, nn.SiLU) or type(act).__name__ == "SiLUActivation" or act is nn.functional.silu
    return bool(module.has_gate and gate is not None and gate is getattr(moe, "_default_apply_gate", None) and plain)


def decode_experts(
    self: nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """The call of transformers' experts interface: the module's kernel in steps of few tokens, else ``grouped_mm``."""
    few = hidden_states.shape[0] <= getattr(self, TOKENS, 0) and top_k_index.numel() <= MAX_PICKS
    kernel: ExpertsKernel = getattr(self, KERNEL) if few else grouped_mm
    return kernel(self, hidden_states, top_k_index, top_k_weights)


def run_by(model: Any, name: str, forward: ExpertsKernel) -> None:
    """Make an implementation known to transformers, and the model run by it."""
    moe.ALL_EXPERTS_FUNCTIONS.register(name, forward)
    model.set_experts_implementation(name)
