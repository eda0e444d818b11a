"""The attention function of paged engines, called by every attention module through transformers' interface.

It writes the step's new keys and values to their slots, then attends: captured decode steps by one kernel over the
block table; other steps by a plan: who decodes together (one kernel, on a CPU one call for keys of like length), which
prompts run, where their keys lie.
Shape legend: cache.py; B sequences that decode, W keys of each, padding included; Q queries and K keys of a prompt.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from moeprof.capture.engines.paged.cache import HUB, INDEX, Hub, KvLayer, PagedCache, StepContext, facts_of_call
from moeprof.capture.engines.paged.sequences import PAGE_TOKENS, Part
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


OFFSETS = np.arange(PAGE_TOKENS)


PADDING_TOKENS = 128  # most keys of padding per sequence; reading them costs about as much as a call saves


class Group:
    """Sequences that decode in one call on a CPU, their keys padded to the longest."""

    def __init__(self, parts: list[Part], rows: list[int]) -> None:
        """``rows``: places of their queries among the step's. Nothing is planned before the first call needs it."""
        self._parts, self._rows = parts, rows
        self._mask: torch.Tensor | None = None

    @cached_property
    def _keys_read(self) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Slots of all keys with padding [B * W], what hides the padding [B, 1, 1, W], and W."""
        pages_BP, keys = page_table(self._parts)
        slots_BW = (pages_BP[:, :, None] * PAGE_TOKENS + OFFSETS).reshape(len(keys), -1)
        padding_BW = np.arange(slots_BW.shape[1]) >= keys[:, None]
        scores = np.where(padding_BW, np.float32("-inf"), np.float32(0))[:, None, None]
        return torch.from_numpy(slots_BW.ravel()), torch.from_numpy(scores), slots_BW.shape[1]

    @cached_property
    def rows(self) -> torch.Tensor:
        """Places of their queries, [B]."""
        return torch.tensor(self._rows)

    def attend(self, layer: KvLayer, query_1HBD: torch.Tensor) -> torch.Tensor:
        """[1, B, H, V]."""
        slots, scores, width = self._keys_read
        if self._mask is None or self._mask.dtype != query_1HBD.dtype:
            self._mask = scores.to(query_1HBD.dtype)
        shape = (len(self._parts), width, layer.facts.num_groups, -1)
        key_BGWD = layer.key_SGD.index_select(0, slots).view(shape).transpose(1, 2)
        value_BGWV = layer.value_SGV.index_select(0, slots).view(shape).transpose(1, 2)
        out_BH1V = scaled_dot_product_attention(
            query_1HBD.permute(2, 1, 0, 3),
            key_BGWD,
            value_BGWV,
            attn_mask=self._mask,
            scale=layer.facts.shape.scale,
            enable_gqa=layer.facts.num_heads != layer.facts.num_groups,
        )
        return out_BH1V.permute(2, 0, 1, 3)


class Prompt:
    """A chunk of a prompt.

    Attributes:
        first: place of its first query among the step's.
        tokens: queries, Q.
        past: keys in the cache before it.
    """

    def __init__(self, part: Part, first: int, device: torch.device) -> None:
        """``first``: place of its first token in the step."""
        self.first, self.tokens, self.past = first, part.query_tokens, part.past
        self._pages, self._device = part.sequence.pages, device
        self._mask: torch.Tensor | None = None

    @cached_property
    def slots(self) -> torch.Tensor:
        """Where its keys lie, this chunk's included, [K]."""
        total = self.past + self.tokens
        pages = np.array(self._pages[: -(-total // PAGE_TOKENS)])
        slots = (pages[:, None] * PAGE_TOKENS + OFFSETS).ravel()[:total]
        return torch.from_numpy(slots).to(self._device, non_blocking=True)

    def mask(self, dtype: torch.dtype) -> torch.Tensor:
        """What to add to the scores [Q, K]: 0 where a query may look, -inf elsewhere. One for all layers."""
        if self._mask is None or self._mask.dtype != dtype:
            hidden = torch.full((self.tokens, self.past + self.tokens), float("-inf"), dtype=dtype, device=self._device)
            self._mask = hidden.triu(self.past + 1)
        return self._mask


class EagerPlan:
    """The plan of a step. Queries of sequences that decode come first.

    Attributes:
        num_decode: how many of them.
        groups: those that share a call; empty on a GPU, whose kernel takes any lengths.
        prompts: chunks of prompts.
    """

    def __init__(self, parts: list[Part], device: torch.device) -> None:
        """``parts`` in the order of the step's tokens."""
        self._decoding = decoding = [part for part in parts if not part.is_prefill]
        self.num_decode = len(decoding)
        self.groups: list[Group] = []
        if device.type == "cpu":
            keys = [part.past + 1 for part in decoding]
            self.groups = [Group([decoding[i] for i in rows], rows) for rows in alike(keys)]
        self.prompts: list[Prompt] = []
        first = self.num_decode
        for part in parts[self.num_decode :]:
            self.prompts.append(Prompt(part, first, device))
            first += part.query_tokens

    @cached_property
    def tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Pages [B, P] and number of keys [B] of the sequences that decode."""
        pages_BP, keys = page_table(self._decoding)
        return torch.from_numpy(pages_BP), torch.from_numpy(keys)


def alike(key_tokens: list[int]) -> list[list[int]]:
    """Sequences in groups whose key counts differ by at most PADDING_TOKENS; all in order where one group will do."""
    if key_tokens and max(key_tokens) - min(key_tokens) <= PADDING_TOKENS:
        return [list(range(len(key_tokens)))]
    groups: list[list[int]] = []
    for i in sorted(range(len(key_tokens)), key=lambda i: key_tokens[i], reverse=True):
        if groups and key_tokens[groups[-1][0]] - key_tokens[i] <= PADDING_TOKENS:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def page_table(parts: list[Part]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Pages [B, P] and number of keys [B] of sequences that decode; places past a sequence's pages hold page 0."""
    keys = np.array([part.past + 1 for part in parts], dtype=np.int64)
    num_pages = -(-int(keys.max()) // PAGE_TOKENS)
    pages_BP = np.zeros((len(parts), num_pages), dtype=np.int64)
    for row, part in zip(pages_BP, parts, strict=True):
        own = part.sequence.pages[:num_pages]
        row[: len(own)] = own
    return pages_BP, keys


def attend_prompt(
    prompt: Prompt,
    layer: KvLayer,
    query_1HQD: torch.Tensor,
    key_1GQD: torch.Tensor,
    value_1GQV: torch.Tensor,
    sinks_H: torch.Tensor | None,
) -> torch.Tensor:
    """[1, H, Q, V]: the queries of a chunk to all keys of its sequence so far."""
    if prompt.past:
        key_1GQD = layer.key_SGD.index_select(0, prompt.slots).transpose(0, 1)[None]
        value_1GQV = layer.value_SGV.index_select(0, prompt.slots).transpose(0, 1)[None]
    facts = layer.facts
    if query_1HQD.is_cuda or not facts.is_plain:
        return layer.prefill(query_1HQD, key_1GQD, value_1GQV, facts.shape, sinks_H)
    alone = prompt.past == 0 or prompt.tokens == 1
    return scaled_dot_product_attention(
        query_1HQD,
        key_1GQD,
        value_1GQV,
        attn_mask=None if alone else prompt.mask(query_1HQD.dtype),
        is_causal=prompt.past == 0 and prompt.tokens > 1,
        scale=facts.shape.scale,
        enable_gqa=facts.num_heads != facts.num_groups,
    )
