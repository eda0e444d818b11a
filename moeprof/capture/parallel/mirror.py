"""Rank 0 runs the model outside of an engine too (quality, picks of a fixed text, self-check): the others must as well.

A wrapper of the whole model, and one of each experts module, tell the other ranks to make the same call, unless they
already know what runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import torch

from moeprof.capture import compat
from moeprof.capture.models.wrap import Forward, Wrap, put_on
from moeprof.capture.parallel.group import Group


def mirror_calls(model: Any, group: Group) -> None:
    """From now on direct calls of the model, and of its experts, happen on all ranks."""
    put_on(model, "mirror", _mirrored(group, "forward", lambda: compat.attention_of(model.config)))
    for name, module in model.named_modules():
        if type(module).__name__.endswith("Experts"):
            put_on(module, "mirror", _mirrored(group, "experts", partial(str, name)))


def _mirrored(group: Group, command: str, which: Callable[[], str | None]) -> Wrap:
    def wrap(inner: Forward) -> Forward:
        @wraps(inner)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if group.is_held:
                return inner(*args, **kwargs)
            group.tell(command, which(), on_host(args), on_host(kwargs))
            with group.hold():
                return inner(*args, **kwargs)

        return forward

    return wrap


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
