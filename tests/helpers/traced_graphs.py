"""A stand-in for CUDA graphs on a CPU: what is captured is a fixed list of operations on fixed tensors.

As in a CUDA graph, Python (hooks, counters, branches) runs once, while capturing; a replay runs only the operations and
fills the same result tensors. Reading a value on the way (a synchronisation) is found by ``reads_values``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

T = TypeVar("T")
READS = ("_local_scalar_dense", "nonzero", "unique", "equal.default")


class Tape(TorchDispatchMode):
    """Keeps every operation with its arguments and results while it is on, and runs them again."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:  # what is only written as other operations is those
            result = func.decompose(*args, **kwargs)
        if result is NotImplemented:
            result = func(*args, **kwargs)
            self.calls.append((func, args, kwargs, result))
        return result

    def play(self, wanted: Any) -> Any:
        """What now stands in place of ``wanted``; tensors that no operation made are those of the recording."""
        fresh: dict[int, Any] = {}

        def now(tensors: Any) -> Any:
            return pytree.tree_map_only(torch.Tensor, lambda tensor: fresh.get(id(tensor), tensor), tensors)

        for func, args, kwargs, result in self.calls:
            again = func(*now(args), **now(kwargs))
            for old, new in zip(pytree.tree_leaves(result), pytree.tree_leaves(again), strict=True):
                fresh[id(old)] = new
        return now(wanted)


class TracedGraphs:
    """A GraphBackend. Counts captures and replays."""

    def __init__(self) -> None:
        self.captured = self.replayed = 0
        self.operations: list[str] = []

    def capture(self, run: Callable[[], T]) -> tuple[Callable[[], None], T]:
        run()  # as on a GPU: once aside
        with Tape() as tape:
            result = run()
        self.operations += [str(func) for func, *_ in tape.calls]
        self.captured += 1

        def replay() -> None:
            self.replayed += 1
            for old, new in zip(pytree.tree_leaves(result), pytree.tree_leaves(tape.play(result)), strict=True):
                if isinstance(old, torch.Tensor):
                    old.copy_(new)

        return replay, result

    @property
    def reads_values(self) -> list[str]:
        """Operations whose result the host would have to wait for."""
        return [name for name in self.operations if any(read in name for read in READS)]
