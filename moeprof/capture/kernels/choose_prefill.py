"""Which form of attention prompts run with, tried on the device like the kernels of decode steps (choose.py)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from moeprof.capture.kernels import prefill_attention
from moeprof.capture.kernels.choose import DecodeQuery
from moeprof.capture.kernels.prefill_attention import PrefillKernel
from moeprof.capture.kernels.trials import Case, Stopwatch, Trial, fastest, give_back, run_trial, stopwatch_of

SIZES = ((512, 0), (128, 512))  # queries, keys before them: a whole prompt, a chunk of a longer one


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenPrefill:
    """The form of attention for prompts and how it came to be taken.

    Attributes:
        name: ``sdpa``, ``varlen`` or ``plain``; ``default`` where nothing was tried.
        kernel: the form.
        reason: for the record.
        trials: all that was tried or left out.
    """

    name: str
    kernel: PrefillKernel
    reason: str
    trials: tuple[Trial, ...] = ()


def choose_prefill_kernel(
    device: torch.device,
    query: DecodeQuery,
    *,
    candidates: Mapping[str, PrefillKernel] | None = None,
    stopwatch: Stopwatch | None = None,
) -> ChosenPrefill:
    """The form for one kind of attention layer; on a CPU ``prefill_attention`` without trials.

    Args:
        device: where it will run.
        query: the kind of layer.
        candidates: others than the usual ones (tests).
        stopwatch: another than the device's (tests).
    """
    default = prefill_attention.prefill_attention
    if device.type == "cpu" and candidates is None:
        return ChosenPrefill(name="default", kernel=default, reason="a CPU has no other")
    trials: list[Trial] = []
    forms = dict(candidates if candidates is not None else _candidates(device, query, trials))
    tried = []
    with torch.inference_mode():
        for name, form in forms.items():
            made = [_case(query, *size, device, form) for size in SIZES]
            calls, cases = [call for call, _ in made], [case for _, case in made]
            tried.append(run_trial(name, calls, cases, stopwatch or stopwatch_of(device)))
    give_back(device)
    best, trials = fastest(tried), [*tried, *trials]
    reason = "; ".join(str(trial) for trial in trials)
    if best is None:
        return ChosenPrefill(name="default", kernel=default, reason=reason, trials=tuple(trials))
    return ChosenPrefill(name=best.name, kernel=forms[best.name], reason=reason, trials=tuple(trials))


def _candidates(device: torch.device, query: DecodeQuery, left_out: list[Trial]) -> dict[str, PrefillKernel]:
    """The forms that can serve; what cannot is told in ``left_out``."""
    forms: dict[str, PrefillKernel] = {"plain": prefill_attention.plain_prefill}
    if query.has_sinks or query.shape.softcap is not None:
        left_out.append(Trial(name="sdpa", why_out="has no sinks and no soft-capped scores"))
    else:
        forms["sdpa"] = prefill_attention.sdpa_prefill
    why_not = prefill_attention.why_no_varlen(device, query.dtype, query.head_dim, query.shape)
    if why_not is not None:
        left_out.append(Trial(name="varlen", why_out=why_not))
    else:
        forms["varlen"] = prefill_attention.varlen_prefill
    return forms


def _case(
    query: DecodeQuery, num_queries: int, past: int, device: torch.device, form: PrefillKernel
) -> tuple[Callable[[], torch.Tensor], Case]:
    draw = torch.Generator(device).manual_seed(past)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(size, device=device, generator=draw).to(query.dtype)

    states = random(1, query.num_heads, num_queries, query.head_dim)
    key = random(1, query.num_groups, past + num_queries, query.head_dim)
    value = random(1, query.num_groups, past + num_queries, query.value_dim)
    sinks = random(query.num_heads) if query.has_sinks else None
    call = functools.partial(form, states, key, value, query.shape, sinks)
    plain = functools.partial(prefill_attention.plain_prefill, states, key, value, query.shape, sinks)
    name = f"{num_queries} of {past + num_queries} tokens"
    return call, Case(name=name, plain=plain, change=lambda: None, dtype=query.dtype)
