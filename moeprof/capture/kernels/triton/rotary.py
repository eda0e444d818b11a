"""Rotary positions of queries and keys in one launch, where transformers' take about ten.

The program sums in float32 and rounds once where the original rounds after each operation: a last bit differs.

Shape legend: H query heads, G key/value heads, T tokens, D head size.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import nn

from moeprof.capture.kernels.trials import LAST_BITS, error_ratio, one_line
from moeprof.capture.kernels.triton.launch import launch, padded, programs, why_no_triton

ROTARY = "apply_rotary_pos_emb"
HEADS_TOGETHER = 8
Pair = tuple[torch.Tensor, torch.Tensor]
Rotation = tuple[Callable[..., Pair], torch.device, torch.dtype]  # the function of a model's file, and what it runs on


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
        programs().rotate,
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


def why_not(rotation: Rotation) -> str | None:
    """The reason why the program cannot stand for this function, or None."""
    return why_no_triton() or why_other(*rotation)


def why_other(original: Callable[..., Pair], device: torch.device, dtype: torch.dtype) -> str | None:
    """The reason why the program does not agree with this function, or None; whatever goes wrong is one."""
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
            why_not = one_line(error)
        else:
            return None if worst <= LAST_BITS.get(dtype, 0.0) else f"the program is off by {worst:.1e}"
    return why_not


def homes(model: nn.Module) -> Iterator[ModuleType]:
    """The files of the model's attention classes that rotate by a function of the known name."""
    names = dict.fromkeys(type(module).__module__ for module in model.modules() if "Attention" in type(module).__name__)
    for name in names:
        if hasattr(sys.modules.get(name), ROTARY):
            yield sys.modules[name]
