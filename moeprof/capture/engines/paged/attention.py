"""The attention function of paged engines, called by every attention module through transformers' interface.

It writes the step's new keys and values to their slots, then attends: captured decode steps by one kernel over the
block table; other steps by the kernel for sequences that decode and one call per prompt.
Shape legend: cache.py; B sequences that decode, W keys of each, padding included.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from moeprof.capture.engines.paged.cache import HUB, INDEX, Hub, KvLayer, PagedCache, StepContext, facts_of_call
from moeprof.capture.engines.paged.eager import EagerPlan, attend_prompt
from moeprof.core.errors import EngineError

NAME = "moeprof_paged"


@torch.compiler.disable  # type: ignore[untyped-decorator]
def paged_attention(
    module: nn.Module,
    query_1HTD: torch.Tensor,
    key_1GTD: torch.Tensor,
    value_1GTV: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a step, each sequence to its own keys. Returns [1, T, H, V].

    Not traced by torch.compile: its plan changes with every step.
    """
    hub: Hub = getattr(module, HUB)
    if hub.seen is not None:
        hub.seen.append(facts_of_call(module, query_1HTD, key_1GTD, value_1GTV, scaling, kwargs))
        out = scaled_dot_product_attention(
            query_1HTD, key_1GTD, value_1GTV, is_causal=True, scale=scaling, enable_gqa=True
        )
        return out.transpose(1, 2), None
    cache = hub.active
    if cache is None or cache.step is None:
        raise EngineError("attention was called outside of an engine's step")
    layer = cache.layers[getattr(module, INDEX)]
    layer.key_SGD.index_copy_(0, cache.step.slots_T, key_1GTD[0].transpose(0, 1))
    layer.value_SGV.index_copy_(0, cache.step.slots_T, value_1GTV[0].transpose(0, 1))
    sinks = kwargs.get("s_aux")
    plan: EagerPlan | None = cache.step.eager
    if plan is None:
        return _decode(cache, cache.step, layer, query_1HTD, sinks), None
    if plan.num_decode == query_1HTD.shape[2]:
        return _decode_eagerly(cache, plan, layer, query_1HTD, sinks), None
    out_1THV = query_1HTD.new_empty(1, query_1HTD.shape[2], layer.facts.num_heads, layer.facts.value_dim)
    if plan.num_decode:
        out_1THV[:, : plan.num_decode] = _decode_eagerly(cache, plan, layer, query_1HTD[:, :, : plan.num_decode], sinks)
    for prompt in plan.prompts:
        rows = slice(prompt.first, prompt.first + prompt.tokens)
        own = (query_1HTD[:, :, rows], key_1GTD[:, :, rows], value_1GTV[:, :, rows])
        out_1THV[:, rows] = attend_prompt(prompt, layer, *own, sinks).transpose(1, 2)
    return out_1THV, None


def _decode(
    cache: PagedCache, step: StepContext, layer: KvLayer, query_1HBD: torch.Tensor, sinks_H: torch.Tensor | None
) -> torch.Tensor:
    """[1, B, H, V] by the kernel."""
    assert step.table_BP is not None and step.context_B is not None
    query_BHD = query_1HBD[0].transpose(0, 1)
    shape = layer.facts.shape
    out = cache.decode(query_BHD, layer.key_SGD, layer.value_SGV, step.table_BP, step.context_B, shape, sinks_H)
    return out[None]


def _decode_eagerly(
    cache: PagedCache, plan: EagerPlan, layer: KvLayer, query_1HBD: torch.Tensor, sinks_H: torch.Tensor | None
) -> torch.Tensor:
    """[1, B, H, V]; on a CPU sequences of like length share one call of torch's own attention."""
    assert cache.step is not None
    if not plan.groups or not layer.facts.is_plain:
        return _decode(cache, cache.step, layer, query_1HBD, sinks_H)
    if len(plan.groups) == 1:
        return plan.groups[0].attend(layer, query_1HBD)
    out_1BHV = query_1HBD.new_empty(1, query_1HBD.shape[2], layer.facts.num_heads, layer.facts.value_dim)
    for group in plan.groups:
        out_1BHV.index_copy_(1, group.rows, group.attend(layer, query_1HBD.index_select(2, group.rows)))
    return out_1BHV


def register() -> None:
    """Make the attention known to transformers; calling it twice does no harm."""
    AttentionInterface.register(NAME, paged_attention)
