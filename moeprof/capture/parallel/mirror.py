"""Rank 0 runs the model outside of an engine too (quality, picks of a fixed text, self-check): the others must as well.

A hook on the whole model, and one around each experts module, tell the other ranks to make the same call, unless they
already know what runs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from moeprof.capture import compat
from moeprof.capture.parallel.group import Group


def mirror_calls(model: Any, group: Group) -> None:
    """From now on direct calls of the model, and of its experts' ``forward``, happen on all ranks."""
    calls: list[ExitStack] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = ExitStack()
        calls.append(call)
        if not group.is_held:
            group.tell("forward", compat.attention_of(model.config), on_host(args), on_host(kwargs))
            call.enter_context(group.hold())

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        calls.pop().close()

    model.register_forward_pre_hook(before, with_kwargs=True)
    model.register_forward_hook(after, always_call=True)
    for name, module in model.named_modules():
        if type(module).__name__.endswith("Experts"):
            module.forward = _mirrored(module.forward, name, group)


def keep_own_forwards(model: Any) -> None:
    """A rank that follows calls an experts module as the plan left it, whatever is wrapped around it later."""
    for module in model.modules():
        if type(module).__name__.endswith("Experts"):
            module.moeprof_forward = module.forward


def _mirrored(forward: Callable[..., Any], name: str, group: Group) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if group.is_held:
            return forward(*args, **kwargs)
        group.tell("experts", name, on_host(args), on_host(kwargs))
        with group.hold():
            return forward(*args, **kwargs)

    return call


@dataclass(frozen=True, slots=True, kw_only=True)
class SentTensor:
    """A tensor on its way to another rank.

    Attributes:
        data: its bytes.
        dtype: of the elements.
        shape: of the tensor.
    """

    data: bytes
    dtype: torch.dtype
    shape: tuple[int, ...]


def on_host(value: Any) -> Any:
    """The same arguments with tensors as bytes, to be sent."""

    def sent(tensor: torch.Tensor) -> SentTensor:
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        return SentTensor(data=flat.view(torch.uint8).numpy().tobytes(), dtype=tensor.dtype, shape=tuple(tensor.shape))

    return _mapped(value, torch.Tensor, sent)


def on_device(value: Any, device: torch.device) -> Any:
    """The arguments that were sent, with tensors on a rank's device."""

    def received(tensor: SentTensor) -> torch.Tensor:
        return torch.frombuffer(bytearray(tensor.data), dtype=tensor.dtype).view(tensor.shape).to(device)

    return _mapped(value, SentTensor, received)


def _mapped(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, tuple | list):
        return type(value)(_mapped(item, kind, change) for item in value)
    if isinstance(value, dict):
        return {key: _mapped(item, kind, change) for key, item in value.items()}
    return value
