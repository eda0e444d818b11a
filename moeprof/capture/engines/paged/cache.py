"""The paged cache and what the attention of a running forward needs to know.

Every attention layer has its own keys and values [slots, heads, width]; their shapes are seen in one tiny forward, so
that any class that calls transformers' attention interface is served, whatever its configuration calls things, and a
rank of a tensor-parallel model caches the heads that it holds.
Shape legend: S slots of the cache, G key/value heads, D width of keys, V width of values, H query heads, T tokens,
B sequences, P pages of a row of the block table.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from moeprof.capture.engines.paged.sequences import PAGE_TOKENS
from moeprof.capture.kernels.attention import DecodeKernel, DecodeShape, torch_decode
from moeprof.capture.kernels.prefill import PrefillKernel, prefill_attention
from moeprof.core.errors import UnsupportedModelError

HUB = "moeprof_paged_hub"
INDEX = "moeprof_paged_index"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionFacts:
    """One attention layer as seen in a forward.

    Attributes:
        module: the layer's attention module.
        num_heads: query heads.
        num_groups: key/value heads.
        key_dim: width of a key.
        value_dim: width of a value.
        shape: scale, window, softcap, page size.
        has_sinks: whether it has attention sinks.
        dtype: of keys and values.
    """

    module: nn.Module
    num_heads: int
    num_groups: int
    key_dim: int
    value_dim: int
    shape: DecodeShape
    has_sinks: bool
    dtype: torch.dtype

    @property
    def is_plain(self) -> bool:
        """Causal attention and nothing else."""
        return self.shape.window is None and self.shape.softcap is None and not self.has_sinks

    @property
    def bytes_per_token(self) -> int:
        """Of keys and values."""
        return self.num_groups * (self.key_dim + self.value_dim) * self.dtype.itemsize


@dataclass(slots=True, kw_only=True)
class KvLayer:
    """Keys and values of one layer, and how its prompts attend."""

    facts: AttentionFacts
    key_SGD: torch.Tensor
    value_SGV: torch.Tensor
    prefill: PrefillKernel = prefill_attention


@dataclass(slots=True)
class StepContext:
    """What the running forward's attention needs; set before the forward, read by every layer.

    Attributes:
        slots_T: where each token's key and value go.
        table_BP: pages of the sequences that decode (int32), or None.
        context_B: keys of each of them, the new one included (int32), or None.
        eager: the plan of a step that is not captured, or None inside captured ones.
    """

    slots_T: torch.Tensor
    table_BP: torch.Tensor | None = None
    context_B: torch.Tensor | None = None
    eager: Any = None


@dataclass(slots=True, kw_only=True)
class PagedCache:
    """The cache of one engine.

    Attributes:
        layers: per attention layer.
        num_pages: pages, the spare one included.
        decode: kernel of decode steps.
        step: the running forward.
    """

    layers: list[KvLayer]
    num_pages: int
    decode: DecodeKernel = torch_decode
    step: StepContext | None = None

    @property
    def num_bytes(self) -> int:
        """Allocated for keys and values."""
        return sum(part.numel() * part.element_size() for x in self.layers for part in (x.key_SGD, x.value_SGV))


@dataclass(slots=True)
class Hub:
    """Tells the attention modules of a model which engine's cache is in use; two engines may share a model."""

    active: PagedCache | None = None
    seen: list[AttentionFacts] | None = None
    caches: list[PagedCache] = field(default_factory=list)
    before: str | None = "sdpa"


def make_cache(facts: list[AttentionFacts], *, num_pages: int, device: torch.device) -> PagedCache:
    """Allocate. Zeroed, because keys past a sequence's end are read and masked: they must be finite."""
    slots = num_pages * PAGE_TOKENS
    layers = [
        KvLayer(
            facts=fact,
            key_SGD=torch.zeros(slots, fact.num_groups, fact.key_dim, dtype=fact.dtype, device=device),
            value_SGV=torch.zeros(slots, fact.num_groups, fact.value_dim, dtype=fact.dtype, device=device),
        )
        for fact in facts
    ]
    return PagedCache(layers=layers, num_pages=num_pages)


def facts_of_call(
    module: nn.Module,
    query_1HTD: torch.Tensor,
    key_1GTD: torch.Tensor,
    value_1GTV: torch.Tensor,
    scaling: float | None,
    extra: dict[str, Any],
) -> AttentionFacts:
    """What a call of the attention interface says about its layer."""
    window = extra.get("sliding_window")
    return AttentionFacts(
        module=module,
        num_heads=query_1HTD.shape[1],
        num_groups=key_1GTD.shape[1],
        key_dim=key_1GTD.shape[3],
        value_dim=value_1GTV.shape[3],
        shape=DecodeShape(
            page_tokens=PAGE_TOKENS,
            scale=scaling if scaling is not None else key_1GTD.shape[3] ** -0.5,
            window=int(window) if window else None,
            softcap=extra.get("softcap"),
        ),
        has_sinks=extra.get("s_aux") is not None,
        dtype=key_1GTD.dtype,
    )


def hub_of(model: Any) -> Hub:
    """The model's hub, made on first use."""
    hub = getattr(model, HUB, None)
    if hub is None:
        hub = Hub()
        setattr(model, HUB, hub)
        for module in model.modules():
            object.__setattr__(module, HUB, hub)
    return hub


def check_layers(facts: list[AttentionFacts], model: Any) -> None:
    """One attention call per layer, or something else in the model remembers.

    Raises:
        UnsupportedModelError: calls and layers do not match.
    """
    config = model.config.get_text_config(decoder=True)
    layers = config.num_hidden_layers
    if len(facts) != layers or len({id(fact.module) for fact in facts}) != layers:
        raise UnsupportedModelError(
            f"{type(model).__name__}: {len(facts)} calls of the attention interface in {layers} layers; "
            "set engine.batching: static"
        )
