"""Norms and linear layers on few tokens by our CPU kernels: which modules, and what computes one of them.

A module is known by its parts, never by its model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from moeprof.capture.kernels.cpu.build import known_dtypes
from moeprof.capture.kernels.norms import epsilon, is_norm

FEW_ROWS = 64  # of a linear layer; for more, torch's product is faster
Fast = Callable[[torch.Tensor], torch.Tensor | None]


def why_no_linear(module: nn.Module) -> str | None:
    """The reason why a module is not computed as a linear layer, or None."""
    if type(module) is not nn.Linear or "bias" in dict(module.named_parameters()):
        return "not a linear layer without a bias"
    return _why_not_read(module.weight)


def linear(module: Any) -> Fast:
    """For few tokens."""
    kernel, most = torch.ops.moeprof_cpu.linear, FEW_ROWS * module.in_features

    def fast(x: torch.Tensor) -> torch.Tensor | None:
        weight = module.weight
        return kernel(x, weight) if 0 < x.numel() <= most and x.dtype == weight.dtype else None

    return fast


def why_no_norm(module: nn.Module) -> str | None:
    """The reason why a module is not computed as a norm, or None."""
    weights: dict[str, torch.Tensor] = dict(module.named_parameters())
    if not is_norm(module) or set(weights) != {"weight"} or not isinstance(epsilon(module), float):
        return "not a norm by the root of the mean square"
    return "its weight has more than one axis" if weights["weight"].ndim != 1 else _why_not_read(weights["weight"])


def norm(module: Any) -> Fast:
    """For hidden states of the weight's dtype and width."""
    kernel, eps = torch.ops.moeprof_cpu.norm, epsilon(module)

    def fast(x: torch.Tensor) -> torch.Tensor | None:
        weight = module.weight
        return kernel(x, weight, eps) if x.dtype == weight.dtype and x.shape[-1] == weight.shape[0] else None

    return fast


def _why_not_read(weight: torch.Tensor) -> str | None:
    """The kernels read plain, contiguous tensors in pairs: float32 or (with instructions for it) bfloat16."""
    if weight.device.type != "cpu" or not weight.is_contiguous() or hasattr(weight, "to_local") or weight.shape[-1] % 2:
        return "its weight is not a plain contiguous tensor of even width"
    return None if weight.dtype in known_dtypes() else "its weight is of another dtype"
