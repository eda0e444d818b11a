"""A stand-in for CUDA graphs on a CPU: what is captured is a fixed list of operations on fixed tensors.

As in a CUDA graph, Python (hooks, counters, branches) runs once, while capturing; a replay runs only the operations and
fills the same result tensors. Reading a value on the way (a synchronisation) is found by ``reads_values``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

T = TypeVar("T")
READS = ("_local_scalar_dense", "nonzero", "unique", "equal.default")


class TracedGraphs:
    """A GraphBackend. Counts captures and replays."""

    def __init__(self) -> None:
        self.captured = self.replayed = 0
        self.operations: list[str] = []

    def capture(self, run: Callable[[], T]) -> tuple[Callable[[], None], T]:
        run()  # as on a GPU: once aside
        traced: Any = make_fx(run, tracing_mode="real", _allow_non_fake_inputs=True)()
        self.operations += [str(node.target) for node in traced.graph.nodes if node.op == "call_function"]
        result = traced()
        self.captured += 1

        def replay() -> None:
            self.replayed += 1
            fresh = traced()
            for old, new in zip(pytree.tree_leaves(result), pytree.tree_leaves(fresh), strict=True):
                if isinstance(old, torch.Tensor):
                    old.copy_(new)

        return replay, result

    @property
    def reads_values(self) -> list[str]:
        """Operations whose result the host would have to wait for."""
        return [name for name in self.operations if any(read in name for read in READS)]
