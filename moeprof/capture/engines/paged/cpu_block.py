"""The attention block of a decode step as one kernel: projections, norms of heads, rotation, cache, attention, output.

Only for the paged engine, whose attention modules know their cache (``Hub``), and only in steps in which every sequence
decodes. Which modules: those with the projections, norms and call of the Llama family.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from moeprof.capture.engines.paged.cache import HUB, INDEX
from moeprof.capture.engines.paged.sequences import PAGE_TOKENS
from moeprof.capture.kernels.cpu.build import known_dtypes

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
NORMS = ("q_norm", "k_norm")


def attention_block(module: nn.Module) -> Callable[..., torch.Tensor | None] | None:
    """What computes this attention module in decode steps, or None where it is not of the known form."""
    parts: dict[str, Any] = dict(module.named_children())
    norms = [parts[name] for name in NORMS if name in parts]
    if set(parts) - {*PROJECTIONS, *NORMS} or not set(PROJECTIONS) <= set(parts) or len(norms) == 1:
        return None
    linears = [parts[name] for name in PROJECTIONS]
    if any(type(one) is not nn.Linear or one.bias is not None for one in linears) or not _heads_are_normed(norms):
        return None
    weights: list[Any] = [one.weight for one in (*linears, *norms)]
    if any(
        weight.dtype not in known_dtypes() or weight.dtype != weights[0].dtype or not weight.is_contiguous()
        for weight in weights
    ):
        return None
    eps = float(getattr(norms[0], "variance_epsilon", 0.0)) if norms else 0.0
    none = weights[0].new_empty(0)
    kernel = torch.ops.moeprof_cpu.decode_block

    def fast(
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: Any = None,
        past_key_values: Any = None,
        **_: Any,
    ) -> torch.Tensor | None:
        cache: Any = getattr(getattr(module, HUB, None), "active", None)
        step = None if cache is None else cache.step
        if step is None or position_embeddings is None or past_key_values is not None:
            return None
        plan, num_tokens = step.eager, hidden_states.shape[1]
        if plan is None or plan.num_decode != num_tokens or not plan.groups or hidden_states.shape[0] != 1:
            return None
        layer = cache.layers[getattr(module, INDEX)]
        cos, sin = position_embeddings
        if norms and norms[0].weight.numel() != layer.facts.key_dim:
            return None  # a norm over all heads
        if not layer.facts.is_plain or cos.shape[-1] != layer.facts.key_dim or cos.dtype != hidden_states.dtype:
            return None
        own = (*(one.weight for one in linears), *([one.weight for one in norms] or (none, none)))
        pages, keys = plan.tables
        out: torch.Tensor = kernel(
            *(hidden_states[0], *own, eps, cos[0], sin[0], layer.key_SGD, layer.value_SGV),
            *(step.slots_T, pages, keys, layer.facts.shape.scale, PAGE_TOKENS),
        )
        return out[None]

    return fast


def _heads_are_normed(norms: list[nn.Module]) -> bool:
    """No norms, or norms by the root of the mean square."""
    return all(type(one).__name__.endswith("RMSNorm") and hasattr(one, "variance_epsilon") for one in norms)
