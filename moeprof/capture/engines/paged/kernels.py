"""Which attention kernels a paged engine runs with, chosen once per kind of model and device."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch

from moeprof.capture.engines.paged.cache import AttentionFacts
from moeprof.capture.kernels.attention import DecodeKernel, torch_decode
from moeprof.capture.kernels.choose import DecodeQuery, choose_decode_kernel, choose_prefill_kernel
from moeprof.capture.kernels.prefill import PrefillKernel, prefill_attention


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """What was chosen.

    Attributes:
        decode_name: for the record.
        decode: of sequences that decode.
        prefill: of prompts, per kind of layer.
        notes: why, for the record; empty where there was nothing to choose.
    """

    decode_name: str = "torch"
    decode: DecodeKernel = torch_decode
    prefill: dict[DecodeQuery, PrefillKernel]
    notes: tuple[str, ...] = ()

    def prefill_of(self, facts: AttentionFacts) -> PrefillKernel:
        """For one layer."""
        return self.prefill.get(query_of(facts), prefill_attention)


Chooser = Callable[[list[AttentionFacts], int], Kernels]
_chosen: dict[Hashable, Kernels] = {}


def plain_kernels(facts: list[AttentionFacts], max_pages: int) -> Kernels:
    """Torch's own, on any device."""
    return Kernels(prefill={})


def chooser(asked: str, device: torch.device) -> Chooser:
    """Tries candidates on the device; the outcome is kept for the engines to come (sweeps, lanes)."""

    def choose(facts: list[AttentionFacts], max_pages: int) -> Kernels:
        queries = tuple(dict.fromkeys(query_of(fact) for fact in facts))
        key = (asked, str(device), queries, max_pages)
        if key not in _chosen:
            _chosen[key] = _choose(asked, device, queries, max_pages)
        return _chosen[key]

    return choose


def _choose(asked: str, device: torch.device, queries: tuple[DecodeQuery, ...], max_pages: int) -> Kernels:
    decode = choose_decode_kernel(asked, device, queries, max_pages=max_pages)
    prefill = {query: choose_prefill_kernel(device, query) for query in queries}
    notes = [f"attention of decode: {decode.name}, {decode.reason}"] if decode.trials else []
    notes += [f"attention of prompts: {form.name}, {form.reason}" for form in prefill.values() if form.trials]
    return Kernels(
        decode_name=decode.name,
        decode=decode.kernel,
        prefill={query: form.kernel for query, form in prefill.items()},
        notes=tuple(dict.fromkeys(notes)),
    )


def query_of(facts: AttentionFacts) -> DecodeQuery:
    """A layer as the choice sees it."""
    return DecodeQuery(
        dtype=facts.dtype,
        num_heads=facts.num_heads,
        num_groups=facts.num_groups,
        head_dim=facts.key_dim,
        value_dim=facts.value_dim,
        shape=facts.shape,
        has_sinks=facts.has_sinks,
    )
