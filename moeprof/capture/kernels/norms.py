"""Norms by the root of the mean square: which modules they are, and torch's own in one launch.

transformers' RMSNorm is seven or eight launches. torch's sums in float32 and rounds once, so a last bit differs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import rms_norm

from moeprof.capture.kernels.trials import LAST_BITS


def is_norm(module: nn.Module) -> bool:
    """By the name of its class, which is all that transformers' norms have in common."""
    return type(module).__name__.endswith("RMSNorm")


def epsilon(module: nn.Module) -> float | None:
    """What is added to the mean square."""
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


def why_no_torch(module: nn.Module) -> str | None:
    """The reason why torch's norm cannot stand for this one, or None; whether it agrees is another question."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or hasattr(weight, "to_local") or weight.dtype not in LAST_BITS:
        return "its weight is no plain floating tensor"
    if epsilon(module) is None or len(inspect.signature(type(module).forward).parameters) != 2:
        return "it takes more than hidden states"
    return None


def torch_norm(module: Any) -> Callable[[torch.Tensor], torch.Tensor | None]:
    """For hidden states of the weight's dtype."""
    eps = epsilon(module)

    def fast(hidden_states: torch.Tensor) -> torch.Tensor | None:
        weight = module.weight
        return rms_norm(hidden_states, weight.shape, weight, eps) if hidden_states.dtype == weight.dtype else None

    return fast
