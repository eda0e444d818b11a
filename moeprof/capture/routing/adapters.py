"""How the executed picks are read off a module, and which architectures are refused and why.

Three kinds of watcher cover all that is measured: the picks stand in the arguments of the experts module (nearly all),
in the scores that a router returns (llama4), or in the sort order that a gating module returns (jetmoe). A watcher
only keeps a reference to a tensor: no device work, no synchronisation. Suffix legend: T tokens, E experts, K top-k.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from moeprof.capture.models.wrap import Forward, Wrap, WrapHandle, put_on

if TYPE_CHECKING:
    from moeprof.capture.models.moe_layers import MoeLayer

Cell = list[torch.Tensor | None]  # of one element


def attach(layer: MoeLayer, cell: Cell, dropped_id: int) -> WrapHandle:
    """Watch one layer, so that each forward puts its picks [T, K] into the cell.

    Args:
        layer: the layer.
        cell: a list of one element. One per layer and no index, so that layers that are compiled share a graph.
        dropped_id: the id to give to picks that stand for "no expert".
    """
    if layer.hook == "router_scores":
        wrap = _watching_output(cell, lambda output: _of_scores(output, layer.top_k))
    elif layer.hook == "gating_output":
        wrap = _watching_output(cell, lambda output: _of_order(output, layer.top_k, layer.num_experts))
    else:
        wrap = _skipping_wrap(cell, dropped_id) if layer.skips_zero_weight else _arguments_wrap(cell)
    return put_on(layer.tapped, "watch", wrap)


def _arguments_wrap(cell: Cell) -> Wrap:
    def wrap(inner: Forward) -> Forward:
        @functools.wraps(inner)
        def forward(*args: Any, **kwargs: Any) -> Any:
            # Picks passed by keyword are not seen: nothing is stored, and the self-check says so.
            if len(args) > 1:
                cell[0] = args[1]
            return inner(*args, **kwargs)

        return forward

    return wrap


def _skipping_wrap(cell: Cell, dropped_id: int) -> Wrap:
    def wrap(inner: Forward) -> Forward:
        @functools.wraps(inner)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if len(args) > 2:
                cell[0] = args[1].masked_fill(args[2] == 0, dropped_id)
            return inner(*args, **kwargs)

        return forward

    return wrap


def _watching_output(cell: Cell, picks_of: Callable[[Any], torch.Tensor]) -> Wrap:
    def wrap(inner: Forward) -> Forward:
        @functools.wraps(inner)
        def forward(*args: Any, **kwargs: Any) -> Any:
            output = inner(*args, **kwargs)
            cell[0] = picks_of(output)
            return output

        return forward

    return wrap


def _of_scores(output: Any, top_k: int) -> torch.Tensor:
    """Scores are 0 for all but the k chosen experts."""
    picks: torch.Tensor = output[0].topk(top_k, dim=-1).indices
    return picks


def _of_order(output: Any, top_k: int, num_experts: int) -> torch.Tensor:
    """Position i of the experts' sorted input is pick order[i] of the flattened [T * K] picks."""
    order, expert_size = output[0], output[3]
    sizes = torch.tensor(expert_size, device=order.device)
    experts = torch.arange(num_experts, device=order.device).repeat_interleave(sizes, output_size=order.numel())
    return torch.empty_like(order).scatter_(0, order, experts).view(-1, top_k)
