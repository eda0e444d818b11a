"""A stand-in for a CUDA graph on the CPU: Python runs once, replays run the same operations on the same memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

T = TypeVar("T")


class Recorder(TorchDispatchMode):
    """Keeps every operation with the tensors it read and wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("a captured step must not wait for the device")
        out = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, out))
        return out


def capture(run: Callable[[], T]) -> tuple[Callable[[], None], T]:
    """How to replay, and the static result; ``run`` is called once more before, as engines do."""
    run()
    with Recorder() as recorder:
        result = run()

    def replay() -> None:
        for func, args, kwargs, out in recorder.operations:
            _again(func, args, kwargs, out)

    return replay, result


def _again(func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Run one operation on the same inputs; what it made lands where it landed before."""
    new = func(*args, **kwargs)
    inputs = {_address(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
    for old_leaf, new_leaf in zip(tree_leaves(out), tree_leaves(new), strict=True):
        if isinstance(old_leaf, torch.Tensor) and _address(new_leaf) not in inputs:  # no view, not in place
            old_leaf.copy_(new_leaf)


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
