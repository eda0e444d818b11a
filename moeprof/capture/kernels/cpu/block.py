"""The attention block of a decode step as one kernel: projections, norms of heads, rotation, cache, attention, output.

Only for steps in which every sequence decodes from a paged cache; the engine that owns the cache hands in what reads
its running step. Which modules: those with the projections, norms and call of the Llama family.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from moeprof.capture.kernels.attention import DecodeShape
from moeprof.capture.kernels.cpu.build import known_dtypes

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
NORMS = ("q_norm", "k_norm")


class BlockStep(NamedTuple):
    """One layer of the cache in a step in which every sequence decodes.

    Attributes:
        key_SGD: the layer's keys.
        value_SGV: the layer's values.
        slots_T: where each sequence's new key and value go.
        pages: of each sequence, [B, P].
        keys: of each sequence, the new one included, [B].
        shape: page size and scale; causal attention and nothing else.
    """

    key_SGD: torch.Tensor
    value_SGV: torch.Tensor
    slots_T: torch.Tensor
    pages: torch.Tensor
    keys: torch.Tensor
    shape: DecodeShape


StepOf = Callable[[nn.Module, int], BlockStep | None]  # of an attention module and the tokens of its call


def why_not(module: nn.Module) -> str | None:
    """The reason why an attention module is not computed as one kernel, or None."""
    parts: dict[str, Any] = dict(module.named_children())
    norms = [parts[name] for name in NORMS if name in parts]
    if set(parts) - {*PROJECTIONS, *NORMS} or not set(PROJECTIONS) <= set(parts) or len(norms) == 1:
        return "not the parts of an attention of the Llama family"
    linears = [parts[name] for name in PROJECTIONS]
    if any(type(one) is not nn.Linear or one.bias is not None for one in linears):
        return "its projections are not linear layers without a bias"
    if not all(type(one).__name__.endswith("RMSNorm") and hasattr(one, "variance_epsilon") for one in norms):
        return "its norms are not by the root of the mean square"
    weights: list[Any] = [one.weight for one in (*linears, *norms)]
    if not all(
        one.dtype in known_dtypes() and one.dtype == weights[0].dtype and one.is_contiguous() for one in weights
    ):
        return "its weights are not contiguous, or not of one dtype that the kernels know"
    return None


def attention_block(module: nn.Module, step_of: StepOf) -> Callable[..., torch.Tensor | None]:
    """What computes this module in decode steps."""
    parts: dict[str, Any] = dict(module.named_children())
    linears, norms = [parts[name] for name in PROJECTIONS], [parts[name] for name in NORMS if name in parts]
    eps = float(norms[0].variance_epsilon) if norms else 0.0
    none = linears[0].weight.new_empty(0)
    kernel = torch.ops.moeprof_cpu.decode_block

    def fast(
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: Any = None,
        past_key_values: Any = None,
        **_: Any,
    ) -> torch.Tensor | None:
        if position_embeddings is None or past_key_values is not None or hidden_states.shape[0] != 1:
            return None
        step = step_of(module, hidden_states.shape[1])
        if step is None:
            return None
        (cos, sin), key_dim = position_embeddings, step.key_SGD.shape[2]
        if norms and norms[0].weight.numel() != key_dim:
            return None  # a norm over all heads
        if cos.shape[-1] != key_dim or cos.dtype != hidden_states.dtype:
            return None
        own = (*(one.weight for one in linears), *([one.weight for one in norms] or (none, none)))
        out: torch.Tensor = kernel(
            *(hidden_states[0], *own, eps, cos[0], sin[0], step.key_SGD, step.value_SGV),
            *(step.slots_T, step.pages, step.keys, step.shape.scale, step.shape.page_tokens),
        )
        return out[None]

    return fast
