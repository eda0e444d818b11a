"""Fewer launches for what stands between the matrices: a norm in one launch, rotary positions in one.

A decode step of one token is bound by launches: transformers' RMSNorm is seven or eight, its rotary positions about
ten, each some two microseconds of a captured step. Both are replaced only where the replacement agrees with the model's
own code on random input, and both can be taken back. They sum in float32 and round once where the original rounds
after each operation, so results differ by a last bit of the dtype; that is the tolerance.

Shape legend: H query heads, G key/value heads, T tokens, D head size.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MethodType, ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn.functional import rms_norm

from moeprof.capture.kernels.trials import error_ratio
from moeprof.capture.kernels.triton.attention import padded, why_no_triton
from moeprof.capture.kernels.triton.launch import launch
from moeprof.capture.models.wrap import Forward, put_on, take_off

# Some last bits of the dtype (2^-8 of bfloat16, 2^-11 of float16, 2^-24 of float32), of the largest magnitude.
TOLERANCE = {torch.bfloat16: 2**-6, torch.float16: 2**-9, torch.float32: 1e-5}
ROTARY = "apply_rotary_pos_emb"
HEADS_TOGETHER = 8
Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fused:
    """What was replaced.

    Attributes:
        norms: norm modules in one launch each.
        rotary: attention classes whose rotary positions are one launch.
        notes: what was left as it is, and why.
    """

    norms: int
    rotary: int
    notes: tuple[str, ...]


def fuse(model: nn.Module) -> Fused:
    """Replace both where they agree. On a CPU launches cost little: only norms are worth it there, and nothing is done.

    For models that run as written; torch.compile fuses more, and cannot look into a program launched by hand.
    """
    device = next(model.parameters()).device
    if device.type != "cuda":
        return Fused(norms=0, rotary=0, notes=(f"small operations stay apart: the device is {device.type}",))
    notes: list[str] = []
    return Fused(norms=fuse_norms(model, notes), rotary=fuse_rotary(model, notes), notes=tuple(dict.fromkeys(notes)))


def unfuse(model: nn.Module) -> None:
    """Take all of it back."""
    for module in model.modules():
        if _is_norm(module):
            take_off(module, "kernel")
    for home in _homes(model):
        own = getattr(home, ROTARY)
        if isinstance(own, Rotary):
            setattr(home, ROTARY, own.original)


# -- norms -------------------------------------------------------------------------------------------------------------


def fuse_norms(model: nn.Module, notes: list[str] | None = None) -> int:
    """RMSNorm modules by torch's fused one; returns how many.

    Args:
        model: a loaded model.
        notes: takes what was left as it is, and why.
    """
    agreed: dict[Any, str | None] = {}
    count = 0
    for module in model.modules():
        if not _is_norm(module) or "forward" in module.__dict__:
            continue
        weight = getattr(module, "weight", None)
        kind = (type(module), _eps(module), None if weight is None else (weight.shape, weight.dtype, weight.device))
        if kind not in agreed:
            agreed[kind] = _why_no_norm(module)
        if agreed[kind] is None:
            put_on(module, "kernel", functools.partial(_normed, module))
            count += 1
        elif notes is not None:
            notes.append(f"{type(module).__name__} stays as it is: {agreed[kind]}")
    return count


def _is_norm(module: nn.Module) -> bool:
    return type(module).__name__.endswith("RMSNorm")


def _normed(module: nn.Module, inner: Forward) -> Forward:
    return MethodType(_norm, module)  # one code object for all, so that layers that are compiled share a graph


def _norm(self: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
    weight: torch.Tensor = self.weight  # type: ignore[assignment]
    if hidden_states.dtype != weight.dtype:
        out: torch.Tensor = type(self).forward(self, hidden_states)
        return out
    return rms_norm(hidden_states, weight.shape, weight, _eps(self))


def _eps(module: nn.Module) -> float | None:
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


def _why_no_norm(module: nn.Module) -> str | None:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or hasattr(weight, "to_local") or weight.dtype not in TOLERANCE:
        return "its weight is no plain floating tensor"
    if _eps(module) is None or len(inspect.signature(type(module).forward).parameters) != 2:
        return "it takes more than hidden states"
    draw = torch.Generator(weight.device).manual_seed(0)
    states = torch.randn(4, *weight.shape, device=weight.device, generator=draw).to(weight.dtype) * 3
    with torch.inference_mode():
        off = error_ratio(_norm(module, states), type(module).forward(module, states))
    return None if off <= TOLERANCE[weight.dtype] else f"torch's norm is off by {off:.1e}"


# -- rotary positions --------------------------------------------------------------------------------------------------


class Rotary:
    """``apply_rotary_pos_emb`` of a model's file, in one launch where it can."""

    def __init__(self, original: Callable[..., Pair]) -> None:
        """``original``: the function of the model's file, for whatever the program does not cover."""
        self.original = original
        functools.update_wrapper(self, original)

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *rest: Any, **more: Any
    ) -> Pair:
        """Queries [1, H, T, D] and keys [1, G, T, D] with their positions."""
        if rest or more or not query.is_cuda or not covers(query, key, cos, sin):
            return self.original(query, key, cos, sin, *rest, **more)
        return rotate(query, key, cos, sin)


def covers(query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> bool:
    """Whether the program does these: one row of tokens, whole heads, angles of the heads' dtype."""
    return (
        query.ndim == 4
        and query.shape[0] == cos.shape[0] == 1
        and cos.ndim == 3
        and query.stride(3) == key.stride(3) == cos.stride(2) == sin.stride(2) == 1
        and cos.shape == sin.shape
        and cos.shape[2] in (query.shape[3], query.shape[3] // 2)
        and query.dtype == key.dtype == cos.dtype == sin.dtype
    )


def rotate(query_1HTD: torch.Tensor, key_1GTD: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Pair:
    """The program; ``covers`` holds. Angles are [1, T, D], or [1, T, D / 2] where both halves share them."""
    _, num_heads, num_tokens, head_dim = query_1HTD.shape
    num_groups, half = key_1GTD.shape[1], head_dim // 2
    query_THD = query_1HTD.new_empty(num_tokens, num_heads, head_dim)
    key_TGD = key_1GTD.new_empty(num_tokens, num_groups, head_dim)
    strides = (*query_1HTD.stride()[2:0:-1], *key_1GTD.stride()[2:0:-1], cos.stride(1), sin.stride(1))
    launch(
        _programs().rotate,
        (num_tokens, -(-(num_heads + num_groups) // HEADS_TOGETHER)),
        (query_1HTD, key_1GTD, cos, sin, query_THD, key_TGD, *strides),
        NUM_HEADS=num_heads,
        NUM_GROUPS=num_groups,
        HALF=half,
        SECOND=half if cos.shape[2] == head_dim else 0,
        R=HEADS_TOGETHER,
        C=padded(half),
    )
    return query_THD.transpose(0, 1)[None], key_TGD.transpose(0, 1)[None]


def fuse_rotary(model: nn.Module, notes: list[str] | None = None) -> int:
    """``apply_rotary_pos_emb`` of the model's files by the program; returns in how many files.

    Args:
        model: a loaded model on a GPU.
        notes: takes what was left as it is, and why.
    """
    count = 0
    device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
    for home in _homes(model):
        original = getattr(home, ROTARY)
        if isinstance(original, Rotary):
            continue
        why_not = why_no_triton() or why_no_rotary(original, device, dtype)
        if why_not is None:
            setattr(home, ROTARY, Rotary(original))
            count += 1
        elif notes is not None:
            notes.append(f"{home.__name__.rpartition('.')[2]}.{ROTARY} stays as it is: {why_not}")
    return count


def why_no_rotary(original: Callable[..., Pair], device: torch.device, dtype: torch.dtype) -> str | None:
    """The reason why the program cannot stand for this function, or None; whatever goes wrong is one."""
    draw = torch.Generator(device).manual_seed(0)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(size, device=device, generator=draw).to(dtype)

    query, key = random(1, 3, 4, 64).transpose(1, 2), random(1, 3, 2, 64).transpose(1, 2)
    worst, why_not = float("inf"), None
    for width in (64, 32):  # angles for a whole head, or one half for both
        cos, sin = random(1, 3, width), random(1, 3, width)
        try:
            with torch.inference_mode():
                plain = original(query, key, cos, sin)
                found = rotate(query, key, cos, sin)
            worst = max(error_ratio(one, other) for one, other in zip(found, plain, strict=True))
        except Exception as error:  # compiler or driver, whatever it says: the plain form stays
            why_not = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        else:
            return None if worst <= TOLERANCE.get(dtype, 0.0) else f"the program is off by {worst:.1e}"
    return why_not


def _homes(model: nn.Module) -> Iterator[ModuleType]:
    """The files of the model's attention classes that rotate by a function of the known name."""
    names = dict.fromkeys(type(module).__module__ for module in model.modules() if "Attention" in type(module).__name__)
    for name in names:
        if hasattr(sys.modules.get(name), ROTARY):
            yield sys.modules[name]


@functools.cache
def _programs() -> ModuleType:
    return importlib.import_module("moeprof.capture.kernels.triton.programs")
