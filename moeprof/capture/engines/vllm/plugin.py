"""The routing tap inside vLLM's CPU build, eager and compiled: ids of experts go through an operation of ours.

vLLM traces its MoE layers through on a CPU, so a Python callback set later is never called in a compiled model. An
operation that torch knows (with a fake implementation, functional: its result is what the experts are given) stays in
the graph. It copies the ids of its layer into a buffer that is read between two steps, so it costs two small copies
per layer and no synchronisation. vLLM loads :func:`register` as a plugin in each of its processes before a model is
built; it does nothing where TAP is not set. On CUDA vLLM's own capturer takes this place (see open.py).
"""

from __future__ import annotations

import os
from typing import Any

import torch

TAP = "MOEPROF_VLLM_TAP"
OPERATION = "moeprof::expert_ids"
FEWEST_ROWS = 256


class Kept:
    """What the operation saw last, by layer (in the order in which vLLM built the routers).

    Attributes:
        num_layers: routers built so far.
        watched: False passes ids on and keeps nothing.
        moved_by: added to every id that is passed on: a check that what is passed on is executed.
        calls: by layer, since the last :meth:`take`.
    """

    def __init__(self) -> None:
        self.num_layers, self.watched, self.moved_by = 0, False, 0
        self.calls: list[int] = []
        self._num_experts: list[int] = []
        self._rows: list[torch.Tensor] = []
        self._num_rows: list[int] = []

    def add_layer(self, top_k: int, num_experts: int) -> int:
        """One more router; its number."""
        self._rows.append(torch.empty((FEWEST_ROWS, top_k), dtype=torch.int32))
        self._num_rows.append(0)
        self._num_experts.append(num_experts)
        self.calls.append(0)
        self.num_layers += 1
        return self.num_layers - 1

    def see(self, ids: torch.Tensor, layer: int) -> torch.Tensor:
        """The operation itself: ids [tokens, k] of a layer."""
        if self.watched:
            num, rows = ids.shape[0], self._rows[layer]
            if num > len(rows):
                rows = self._rows[layer] = torch.empty((2 * num, rows.shape[1]), dtype=torch.int32)
            rows[:num] = ids
            self._num_rows[layer] = num
            self.calls[layer] += 1
        if self.moved_by:
            return ((ids + self.moved_by) % self._num_experts[layer]).to(ids.dtype)
        return ids.clone()

    def take(self, num: int) -> list[torch.Tensor | None]:
        """Ids [num, k] of each layer in the forward since the last call; None where it did not see just that."""
        taken = [
            rows[:num].clone() if calls == 1 and kept == num else None
            for rows, kept, calls in zip(self._rows, self._num_rows, self.calls, strict=True)
        ]
        self.calls = [0] * self.num_layers
        return taken


KEPT = Kept()
_library: Any = None


def register() -> None:
    """Wrap vLLM's routers, once in a process; vLLM calls it as a plugin."""
    global _library
    if _library is not None or os.environ.get(TAP) != "1":
        return
    from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter

    _library = define(KEPT)
    wrap(BaseRouter, KEPT)


def define(kept: Kept, name: str = OPERATION) -> Any:
    """Tell torch of the operation; it lives as long as what is returned."""
    namespace, _, operation = name.partition("::")
    library: Any = torch.library.Library(namespace, "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define(f"{operation}(Tensor ids, int layer) -> Tensor")
    library.impl(operation, kept.see, "CPU")
    torch.library.register_fake(name, lambda ids, layer: torch.empty_like(ids), lib=library)
    return library


def wrap(router: Any, kept: Kept, name: str = OPERATION) -> None:
    """Every router of this class numbers itself, and passes the ids that it chose through the operation."""
    namespace, _, operation = name.partition("::")
    keep = getattr(getattr(torch.ops, namespace), operation)
    plain_init, plain_select = router.__init__, router._select_experts

    def build(self: Any, *args: Any, **kwargs: Any) -> None:
        plain_init(self, *args, **kwargs)
        self.moeprof_layer = kept.add_layer(self.top_k, self.global_num_experts)

    def select(self: Any, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        weights, ids = plain_select(self, *args, **kwargs)
        return weights, keep(ids, self.moeprof_layer)

    router.__init__, router._select_experts = build, select
