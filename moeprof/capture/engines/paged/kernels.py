"""Which attention kernels a paged engine runs with, chosen once per kind of model and device; what they read of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from moeprof.capture.engines.paged.cache import HUB, INDEX, AttentionFacts
from moeprof.capture.kernels.attention import AttentionKind, DecodeKernel, torch_decode
from moeprof.capture.kernels.candidates import DECODE, PREFILL
from moeprof.capture.kernels.cases import decode_cases, prefill_cases
from moeprof.capture.kernels.choose import Candidate, Choice, choose
from moeprof.capture.kernels.cpu.block import BlockStep
from moeprof.capture.kernels.prefill import PrefillKernel, prefill_attention
from moeprof.core.errors import UnsupportedModelError


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
    prefill: dict[AttentionKind, PrefillKernel]
    notes: tuple[str, ...] = ()

    def prefill_of(self, facts: AttentionFacts) -> PrefillKernel:
        """For one layer."""
        return self.prefill.get(kind_of(facts), prefill_attention)


Chooser = Callable[[list[AttentionFacts], int], Kernels]
_chosen: dict[Hashable, Kernels] = {}


def plain_kernels(facts: list[AttentionFacts], max_pages: int) -> Kernels:
    """Torch's own, on any device."""
    return Kernels(prefill={})


def chooser(asked: str, device: torch.device) -> Chooser:
    """Tries candidates on the device; the outcome is kept for the engines to come (sweeps, lanes)."""

    def of_layers(facts: list[AttentionFacts], max_pages: int) -> Kernels:
        kinds = tuple(dict.fromkeys(map(kind_of, facts)))
        key = (asked, str(device), kinds, max_pages)
        if key not in _chosen:
            _chosen[key] = _choose(asked, device, kinds, max_pages)
        return _chosen[key]

    return of_layers


def _choose(asked: str, device: torch.device, kinds: tuple[AttentionKind, ...], max_pages: int) -> Kernels:
    if device.type == "cpu" and asked in ("auto", "torch"):
        return Kernels(prefill={})  # of the forms that a CPU has, torch's own need no trial
    decode = choose_decode(asked, device, kinds, max_pages)
    prefill = {kind: _choose_prefill(device, kind) for kind in kinds}
    notes = [f"attention of decode: {decode.name}, {decode.reason}"] if decode.trials else []
    notes += [f"attention of prompts: {form.name}, {form.reason}" for form in prefill.values() if form.trials]
    return Kernels(
        decode_name=decode.name,
        decode=decode.kernel,
        prefill={kind: form.kernel for kind, form in prefill.items()},
        notes=tuple(dict.fromkeys(notes)),
    )


def choose_decode(
    asked: str, device: torch.device, kinds: tuple[AttentionKind, ...], max_pages: int
) -> Choice[DecodeKernel]:
    """One kernel for all kinds of layers.

    Raises:
        UnsupportedModelError: ``asked`` names a kernel that cannot serve, fails or disagrees here; says why.
    """
    wanted = [one for one in DECODE if asked in ("auto", one.name)]
    cases = partial(decode_cases, device=device, max_pages=max_pages)
    chosen = choose(wanted, kinds, cases, device, default=DECODE[0])
    if asked not in ("auto", chosen.name):
        said = chosen.reason
        raise UnsupportedModelError(f"engine.decode_attention: {asked} cannot be had: {said}; set auto or torch")
    return chosen


def _choose_prefill(device: torch.device, kind: AttentionKind) -> Choice[PrefillKernel]:
    default: Candidate[AttentionKind, PrefillKernel] = Candidate(name="default", kernel=prefill_attention)
    return choose(PREFILL, [kind], partial(prefill_cases, device=device), device, default=default)


def kind_of(facts: AttentionFacts) -> AttentionKind:
    """A layer as the choice sees it."""
    return AttentionKind(
        dtype=facts.dtype,
        num_heads=facts.num_heads,
        num_groups=facts.num_groups,
        head_dim=facts.key_dim,
        value_dim=facts.value_dim,
        shape=facts.shape,
        has_sinks=facts.has_sinks,
    )


def block_step(module: nn.Module, num_tokens: int) -> BlockStep | None:
    """What the attention of the running step reads, or None where not every one of its sequences decodes."""
    cache: Any = getattr(getattr(module, HUB, None), "active", None)
    step: Any = None if cache is None else cache.step
    plan = None if step is None else step.eager
    if plan is None or plan.num_decode != num_tokens or not plan.groups:
        return None
    layer = cache.layers[getattr(module, INDEX)]
    if not layer.facts.is_plain:
        return None
    pages, keys = plan.tables
    return BlockStep(layer.key_SGD, layer.value_SGV, step.slots_T, pages, keys, layer.facts.shape)
