"""Modules of a model that our kernels compute instead, each only after it said the same as the module itself.

Swapped are norms by the root of the mean square, linear layers without bias on few tokens, and the attention block of
sequences that decode. A module is known by its parts, never by its model; its first call runs both ways and compares,
and where they differ the module keeps its own code for good.

Puts our kernels in force on a model, as ``engine.cpu_kernels`` asks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from moeprof.capture.engines.paged.cpu_block import attention_block
from moeprof.capture.kernels.cpu.build import known_dtypes, why_no_kernels
from moeprof.capture.kernels.cpu.modules import use_cpu_experts
from moeprof.capture.kernels.trials import TOLERANCE, error_ratio
from moeprof.capture.models.moe_layers import find_moe_layers
from moeprof.core.errors import UnsupportedModelError

FEW_ROWS = 64  # of a linear layer; for more, torch's product is faster
SWAPPED = "moeprof_cpu_swapped"
Fast = Callable[..., torch.Tensor | None]  # None: not for this call


class Swapped:
    """A module's forward that prefers a kernel.

    Attributes:
        agrees: None before the first call that the kernel could serve, then what the comparison said.
    """

    def __init__(self, plain: Callable[..., Any], fast: Fast, *, returns_weights: bool = False) -> None:
        """``fast`` returns None for calls that are not its own; ``returns_weights``: the module returns a pair."""
        self._plain, self._fast, self._returns_weights = plain, fast, returns_weights
        self.agrees: bool | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The kernel's answer where it serves, else the module's own."""
        if self.agrees is False:
            return self._plain(*args, **kwargs)
        out = self._fast(*args, **kwargs)
        if out is None:
            return self._plain(*args, **kwargs)
        if self.agrees is None:
            expected = self._plain(*args, **kwargs)
            own = expected[0] if self._returns_weights else expected
            self.agrees = out.shape == own.shape and error_ratio(out, own) <= TOLERANCE[own.dtype]
            return expected
        return (out, None) if self._returns_weights else out


def swap_modules(model: Any) -> str | None:
    """Swap what can be swapped, once; the reason why nothing was, or None."""
    reason = why_no_kernels()
    if reason is not None or hasattr(model, SWAPPED):
        return reason
    found = [swapped for module in model.modules() if (swapped := _swap(module)) is not None]
    setattr(model, SWAPPED, found)
    return None if found else "no module that our kernels know"


def swapped_counts(model: Any) -> Counter[bool | None]:
    """How many swapped modules agreed (True), did not (False), were not called yet (None)."""
    return Counter(swapped.agrees for swapped in getattr(model, SWAPPED, ()))


def _swap(module: nn.Module) -> Swapped | None:
    fast = attention_block(module)
    swapped = None if fast is None else Swapped(module.forward, fast, returns_weights=True)
    if swapped is None:
        fast = _linear(module) or _norm(module)
        swapped = None if fast is None else Swapped(module.forward, fast)
    if swapped is not None:
        object.__setattr__(module, "forward", swapped)
    return swapped


def _linear(module: Any) -> Fast | None:
    if type(module) is not nn.Linear or "bias" in dict(module.named_parameters()) or not _is_plain(module.weight):
        return None
    linear, most = torch.ops.moeprof_cpu.linear, FEW_ROWS * module.in_features

    def fast(x: torch.Tensor) -> torch.Tensor | None:
        weight = module.weight
        return linear(x, weight) if 0 < x.numel() <= most and x.dtype == weight.dtype else None

    return fast


def _norm(module: nn.Module) -> Fast | None:
    weights: dict[str, Any] = dict(module.named_parameters())
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not type(module).__name__.endswith("RMSNorm") or set(weights) != {"weight"} or not isinstance(eps, float):
        return None
    if weights["weight"].ndim != 1 or not _is_plain(weights["weight"]):
        return None
    norm = torch.ops.moeprof_cpu.norm

    def fast(x: torch.Tensor) -> torch.Tensor | None:
        weight: Any = module.weight
        return norm(x, weight, eps) if x.dtype == weight.dtype and x.shape[-1] == weight.shape[0] else None

    return fast


def _is_plain(weight: torch.Tensor) -> bool:
    """A tensor that the kernels read: on the CPU, contiguous, float32 or (with instructions for it) bfloat16."""
    if weight.device.type != "cpu" or not weight.is_contiguous() or hasattr(weight, "to_local") or weight.shape[-1] % 2:
        return False
    return weight.dtype in known_dtypes()


def use_cpu_kernels(model: Any, asked: str) -> None:
    """``experts`` or ``all``. A dense model beside an MoE has no experts to run, which is no reason to stop.

    Raises:
        UnsupportedModelError: what was asked for cannot be had; says why.
    """
    reason = why_no_kernels()
    if reason is None and find_moe_layers(model):
        reason = use_cpu_experts(model)
    if reason is None and asked == "all":
        reason = swap_modules(model)
    if reason is not None:
        raise UnsupportedModelError(f"engine.cpu_kernels: {asked} cannot be had: {reason}; set it to off")


def cpu_kernel_facts(model: Any) -> dict[str, int]:
    """For launch.json: how many swapped modules agreed with their own code, differed (and kept it), never ran."""
    found = swapped_counts(model)
    return {"agreed": found[True], "differed": found[False], "unused": found[None]}
