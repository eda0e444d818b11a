"""What vLLM shows of its routers: ids through our operation on a CPU, vLLM's own capturer on CUDA."""

from __future__ import annotations

from typing import Any

import torch

from moeprof.capture.engines.deployment import ShownLayer, ShownRouter
from moeprof.capture.engines.vllm.inside import Inside
from moeprof.capture.engines.vllm.plugin import Kept


def shown_router(inside: Inside, device: torch.device, kept: Kept) -> tuple[ShownRouter | None, str | None]:
    """What shows the picks, or why nothing does; neither for a dense model."""
    found = _runners(inside.runner.get_model())
    if not found:
        return None, None
    if device.type == "cpu":
        unseen = [name for name, module in found if not hasattr(module.router, "moeprof_layer")]
        if unseen:
            return None, f"vLLM's {type(found[0][1].router).__name__} of {unseen[0]} is not built as the tap knows it"
        return KeptRouter(found, kept), None
    connector = getattr(inside.runner, "aux_output_connector", None)
    if connector is None:
        return None, (
            "on CUDA vLLM keeps its picks (enable_return_routed_experts) with its second model runner alone, and that "
            "is not what runs here"
        )
    return CapturedRouter(found, connector._capturer), None


def _runners(model: Any) -> list[tuple[str, Any]]:
    """MoE layers in the order of the model: path and module."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if hasattr(module, "router") and hasattr(module, "layer_id") and hasattr(module.router, "top_k")
    ]


def _layer(path: str, router: Any) -> ShownLayer:
    name = path.removesuffix(".experts")
    return ShownLayer(name=name, num_experts=int(router.global_num_experts), top_k=int(router.top_k))


class KeptRouter:
    """See ``ShownRouter``: what the operation of plugin.py keeps."""

    how = "ids pass through an operation of moeprof's in vLLM's graph, eager and compiled"

    def __init__(self, runners: list[tuple[str, Any]], kept: Kept) -> None:
        self.layers = tuple(_layer(name, module.router) for name, module in runners)
        self._places = [module.router.moeprof_layer for _, module in runners]
        self._kept = kept

    def watch(self, on: bool) -> None:
        """Keep ids from now on, or pass them on only."""
        self._kept.watched = on
        self._kept.take(0)  # what was seen until now is of another forward

    def take(self, num_tokens: int) -> list[torch.Tensor | None]:
        """Ids of the last forward."""
        taken = self._kept.take(num_tokens)
        return [taken[place] for place in self._places]

    def move(self, by: int) -> bool:
        """What is passed on is moved, what is kept is not."""
        self._kept.moved_by = by
        return True


class CapturedRouter:
    """See ``ShownRouter``: vLLM's RoutedExpertsCapturer, written inside of the graph. No GPU has run this.

    Its buffer [tokens, layers, k] holds the rows of the last forward until the next one; layers are numbered as in the
    model, dense ones included. Read after the step has ended, so that nothing is in flight.
    """

    how = "vLLM's own capturer of routed experts, read after each step (by source: no GPU has run this)"

    def __init__(self, runners: list[tuple[str, Any]], capturer: Any) -> None:
        self.layers = tuple(_layer(name, module.router) for name, module in runners)
        self._numbers = [int(module.layer_id) for _, module in runners]
        self._capturer = capturer

    def watch(self, on: bool) -> None:
        """It always does."""

    def take(self, num_tokens: int) -> list[torch.Tensor | None]:
        """Rows of the last forward; a layer with fewer experts per token than others fills the first columns."""
        rows = self._capturer.device_buffer[:num_tokens]
        return [
            rows[:, number, : layer.top_k].clone() for number, layer in zip(self._numbers, self.layers, strict=True)
        ]

    def move(self, by: int) -> bool:
        """Not from here."""
        return False
