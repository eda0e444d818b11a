"""Modules of a model that our kernels compute instead, only where they agree with the module's own code.

On a GPU small operations become one launch each: a decode step of one token is bound by launches, each some two
microseconds of a captured step. They are compared on random input before, and can be taken back. On a CPU, as
``engine.cpu_kernels`` asks, a module's first call runs both ways and compares; where they differ the module keeps its
own code for good.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from moeprof.capture.kernels.candidates import BLOCK, LINEAR, NORM, ROTATION
from moeprof.capture.kernels.choose_experts import use_cpu_experts
from moeprof.capture.kernels.cpu.block import StepOf
from moeprof.capture.kernels.cpu.build import why_no_kernels
from moeprof.capture.kernels.norms import is_norm
from moeprof.capture.kernels.trials import TOLERANCE, error_ratio
from moeprof.capture.kernels.triton.rotary import ROTARY, Rotary, homes
from moeprof.capture.models.moe_layers import find_moe_layers
from moeprof.capture.models.wrap import Forward, put_on
from moeprof.core.errors import UnsupportedModelError

FUSED, SWAPPED = "moeprof_fused", "moeprof_cpu_swapped"
TORCH_NORM, CPU_NORM = NORM


class Swapped:
    """A module's forward that prefers a kernel.

    Attributes:
        agrees: None before the first call that the kernel could serve, then what the comparison found.
    """

    def __init__(
        self,
        fast: Callable[..., torch.Tensor | None],
        *,
        returns_weights: bool = False,
        agrees: bool | None = None,
        tolerance: Mapping[torch.dtype, float] = TOLERANCE,
    ) -> None:
        """``fast`` returns None for calls that are not its own; ``returns_weights``: the module returns a pair."""
        self._fast, self._returns_weights = fast, returns_weights
        self._tolerance = tolerance
        self.agrees = agrees

    def around(self, plain: Forward) -> Forward:
        """In place of the module's own code."""
        self._plain = plain
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The kernel's answer where it serves, else the module's own."""
        out = None if self.agrees is False else self._fast(*args, **kwargs)
        if out is None:
            return self._plain(*args, **kwargs)
        if self.agrees is None:
            expected = self._plain(*args, **kwargs)
            own = expected[0] if self._returns_weights else expected
            self.agrees = out.shape == own.shape and error_ratio(out, own) <= self._tolerance[own.dtype]
            return expected
        return (out, None) if self._returns_weights else out


# -- one launch each on a GPU ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedCounts:
    """What was replaced.

    Attributes:
        norms: norm modules in one launch each.
        rotary: files of attention classes whose rotary positions are one launch.
        notes: what was left as it is, and why.
    """

    norms: int
    rotary: int
    notes: tuple[str, ...]


def fuse(model: nn.Module) -> FusedCounts:
    """Replace both where they agree. On a CPU launches cost little: nothing is done.

    For models that run as written; torch.compile fuses more, and cannot look into a program launched by hand.
    """
    device = next(model.parameters()).device
    if device.type != "cuda":
        return FusedCounts(norms=0, rotary=0, notes=(f"small operations stay apart: the device is {device.type}",))
    notes: list[str] = []
    norms, rotary = fuse_norms(model, notes), fuse_rotary(model, notes)
    return FusedCounts(norms=norms, rotary=rotary, notes=tuple(dict.fromkeys(notes)))


def unfuse(model: nn.Module) -> None:
    """Take all of it back."""
    for handle in model.__dict__.pop(FUSED, ()):
        handle.remove()
    for home in homes(model):
        own = getattr(home, ROTARY)
        if isinstance(own, Rotary):
            setattr(home, ROTARY, own.original)


def fuse_norms(model: nn.Module, notes: list[str]) -> int:
    """RMSNorm modules by torch's fused one; returns how many. ``notes`` takes what was left as it is, and why."""
    handles = model.__dict__.setdefault(FUSED, [])
    count = 0
    for module in model.modules():
        if not is_norm(module) or "forward" in module.__dict__:
            continue
        why_not = TORCH_NORM.why_not(module) or _why_other_norm(module)
        if why_not is None:
            handles.append(put_on(module, "kernel", Swapped(TORCH_NORM.kernel(module), agrees=True).around))
            count += 1
        else:
            notes.append(f"{type(module).__name__} stays as it is: {why_not}")
    return count


def _why_other_norm(module: Any) -> str | None:
    weight: torch.Tensor = module.weight
    draw = torch.Generator(weight.device).manual_seed(0)
    states = torch.randn(4, *weight.shape, device=weight.device, generator=draw).to(weight.dtype) * 3
    with torch.inference_mode():
        fused: Any = TORCH_NORM.kernel(module)(states)
        off = error_ratio(fused, module.forward(states))
    return None if off <= TORCH_NORM.tolerance[weight.dtype] else f"torch's norm is off by {off:.1e}"


def fuse_rotary(model: nn.Module, notes: list[str]) -> int:
    """``apply_rotary_pos_emb`` of the model's files by the program; returns in how many files. ``notes``: as above."""
    (program,) = ROTATION
    count = 0
    device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
    for home in homes(model):
        original = getattr(home, ROTARY)
        if isinstance(original, Rotary):
            continue
        why_not = program.why_not((original, device, dtype))
        if why_not is None:
            setattr(home, ROTARY, program.kernel(original))
            count += 1
        else:
            notes.append(f"{home.__name__.rpartition('.')[2]}.{ROTARY} stays as it is: {why_not}")
    return count


# -- our own kernels on a CPU ------------------------------------------------------------------------------------------


def use_cpu_kernels(model: Any, wanted: str, step_of: StepOf) -> None:
    """``experts`` or ``all``. A dense model beside an MoE has no experts to run, which is no reason to stop.

    Args:
        model: a loaded model on a CPU.
        wanted: as ``engine.cpu_kernels`` says.
        step_of: what the attention of a running decode step reads, where an engine of ours runs it.

    Raises:
        UnsupportedModelError: what was wanted cannot be had; says why.
    """
    reason = why_no_kernels()
    if reason is None and find_moe_layers(model):
        reason = use_cpu_experts(model)
    if reason is None and wanted == "all":
        reason = _swap_modules(model, step_of)
    if reason is not None:
        raise UnsupportedModelError(f"engine.cpu_kernels: {wanted} cannot be had: {reason}; set it to off")


def cpu_kernel_facts(model: Any) -> dict[str, int]:
    """For launch.json: how many swapped modules agreed with their own code, differed (and kept it), never ran."""
    found = Counter(swapped.agrees for swapped in getattr(model, SWAPPED, ()))
    return {"agreed": found[True], "differed": found[False], "unused": found[None]}


def _swap_modules(model: Any, step_of: StepOf) -> str | None:
    """Once; the reason why nothing was swapped, or None."""
    if hasattr(model, SWAPPED):
        return None
    found: list[Swapped] = []
    for module in model.modules():
        swapped = _swapped(module, step_of)
        if swapped is not None:
            put_on(module, "kernel", swapped.around)
            found.append(swapped)
    setattr(model, SWAPPED, found)
    return None if found else "no module that our kernels know"


def _swapped(module: nn.Module, step_of: StepOf) -> Swapped | None:
    (block,), (linear,) = BLOCK, LINEAR
    if block.why_not(module) is None:
        fast = block.kernel(module, step_of)
        return Swapped(fast, returns_weights=True, tolerance=block.tolerance)
    for one in (linear, CPU_NORM):
        if one.why_not(module) is None:
            return Swapped(one.kernel(module), tolerance=one.tolerance)
    return None
