"""Which kernel decode attention runs with: all that can serve are tried, the fastest that agrees is taken.

Nothing is left out silently: :class:`ChosenKernel` says what was tried, what was left out, and why.

Which form of attention prompts run with, tried on the device like the kernels of decode steps (choose.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from moeprof.capture.kernels import attention as varlen_attention
from moeprof.capture.kernels import prefill
from moeprof.capture.kernels.attention import DecodeKernel, DecodeShape, torch_decode
from moeprof.capture.kernels.prefill import PrefillKernel
from moeprof.capture.kernels.trials import Case, Stopwatch, Trial, fastest, give_back, run_trial, stopwatch_of
from moeprof.capture.kernels.triton import attention as triton_attention
from moeprof.capture.kernels.triton.launch import why_own_launch
from moeprof.core.errors import UnsupportedModelError

KEYS = 1024  # of every sequence in a timed case
BATCHES = (1, 32)
CACHE_SLOTS = 1 << 16  # at most, over all sequences of a case


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeQuery:
    """One kind of attention layer.

    Attributes:
        dtype: of queries, keys and values.
        num_heads: query heads, H.
        num_groups: key/value heads, G.
        head_dim: size of queries and keys, D.
        value_dim: size of values, V.
        shape: scale, window, softcap, page size.
        has_sinks: whether it has attention sinks.
    """

    dtype: torch.dtype
    num_heads: int
    num_groups: int
    head_dim: int
    value_dim: int
    shape: DecodeShape
    has_sinks: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenKernel:
    """The kernel and how it came to be taken.

    Attributes:
        name: ``torch``, ``triton`` or ``varlen``.
        kernel: the kernel.
        reason: why this one, for the record.
        trials: all that was tried or left out.
    """

    name: str
    kernel: DecodeKernel
    reason: str
    trials: tuple[Trial, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A kernel that may be taken.

    Attributes:
        name: ``torch``, ``triton`` or ``varlen``.
        variant: what distinguishes kernels of one name, or an empty string.
        kernel: the kernel.
        why_not: the reason why it cannot serve a layer, or None; asked before it runs.
    """

    name: str
    kernel: DecodeKernel
    why_not: Callable[[DecodeQuery], str | None]
    variant: str = ""


def choose_decode_kernel(
    asked: str,
    device: torch.device,
    queries: Sequence[DecodeQuery],
    *,
    max_pages: int,
    candidates: Sequence[Candidate] | None = None,
    stopwatch: Stopwatch | None = None,
) -> ChosenKernel:
    """The kernel for these kinds of layers; one kernel serves all of them.

    Args:
        asked: ``auto``, or a name. ``auto`` on a CPU is ``torch``: there is nothing to choose from.
        device: where it will run.
        queries: the distinct kinds of attention layers of the model.
        max_pages: widest block table.
        candidates: others than the usual ones (tests).
        stopwatch: another than the device's (tests).

    Raises:
        UnsupportedModelError: ``asked`` names a kernel that cannot serve, fails or disagrees here; says why.
    """
    if asked == "torch" or (asked == "auto" and device.type == "cpu" and candidates is None):
        why = "asked for" if asked == "torch" else "a CPU has no other"
        return ChosenKernel(name="torch", kernel=torch_decode, reason=why)
    everything = candidates if candidates is not None else _candidates(device)
    wanted = [c for c in everything if asked in ("auto", c.name)]
    trials = [_try(candidate, queries, device, max_pages, stopwatch or stopwatch_of(device)) for candidate in wanted]
    give_back(device)
    best = fastest(trials)
    if best is None:
        said = "; ".join(dict.fromkeys(str(trial) for trial in trials)) or "no such kernel"
        if asked != "auto":
            raise UnsupportedModelError(f"engine.decode_attention: {asked} cannot be had: {said}; set auto or torch")
        return ChosenKernel(name="torch", kernel=torch_decode, reason=said, trials=tuple(trials))
    taken = wanted[trials.index(best)]
    others = [trial for trial in trials if trial is not best]
    reason = "fastest that agrees with the plain form: " + "; ".join(str(trial) for trial in [best, *others])
    if taken.name == "triton" and device.type == "cuda" and why_own_launch() is not None:
        reason += f"; {why_own_launch()}: programs are launched through the driver"
    return ChosenKernel(name=taken.name, kernel=taken.kernel, reason=reason, trials=tuple(trials))


def _candidates(device: torch.device) -> list[Candidate]:
    def why_no_triton(query: DecodeQuery) -> str | None:
        if device.type != "cuda":
            return f"needs a CUDA device, this is {device.type}"
        return triton_attention.why_not(query.dtype, query.head_dim, query.value_dim)

    def why_no_varlen(query: DecodeQuery) -> str | None:
        return varlen_attention.why_not(
            device, query.dtype, query.head_dim, query.value_dim, query.shape, query.has_sinks
        )

    return [
        Candidate(name="torch", kernel=torch_decode, why_not=lambda _: None),
        Candidate(name="varlen", kernel=varlen_attention.varlen_decode, why_not=why_no_varlen),
        *(
            Candidate(
                name="triton",
                variant=f" {tiling.block_keys}x{tiling.programs_per_processor}x{tiling.num_stages}",
                kernel=functools.partial(triton_attention.triton_decode, tiling=tiling),
                why_not=why_no_triton,
            )
            for tiling in triton_attention.TILINGS
        ),
    ]


def _try(
    candidate: Candidate, queries: Sequence[DecodeQuery], device: torch.device, max_pages: int, stopwatch: Stopwatch
) -> Trial:
    name = candidate.name + candidate.variant
    for query in queries:
        why_not = candidate.why_not(query)
        if why_not is not None:
            return Trial(name=name, why_out=why_not)
    with torch.inference_mode():
        made = [_case(query, batch, device, max_pages, candidate.kernel) for query in queries for batch in BATCHES]
        return run_trial(name, [call for call, _ in made], [case for _, case in made], stopwatch)


def _case(
    query: DecodeQuery, num_seqs: int, device: torch.device, max_pages: int, kernel: DecodeKernel
) -> tuple[Callable[[], torch.Tensor], Case]:
    """A batch with shuffled pages; one context is as short as can be."""
    page = query.shape.page_tokens
    num_pages = max(1, min(max_pages, CACHE_SLOTS // (num_seqs * page), -(-KEYS // page)))
    draw = torch.Generator(device).manual_seed(0)
    slots = num_seqs * num_pages * page

    def random(*size: int) -> torch.Tensor:
        return torch.randn(size, dtype=torch.float32, device=device, generator=draw).to(query.dtype)

    key, value = random(slots, query.num_groups, query.head_dim), random(slots, query.num_groups, query.value_dim)
    states = random(num_seqs, query.num_heads, query.head_dim) * 2  # a softmax with a few large weights
    sinks = random(query.num_heads) if query.has_sinks else None
    table = torch.randperm(num_seqs * num_pages, device=device, generator=draw).view(num_seqs, -1).int()
    context = torch.full((num_seqs,), num_pages * page, dtype=torch.int32, device=device)
    after = context - min(3, num_pages * page - 1)
    after[1:2], after[2:3] = 1, min(17, num_pages * page)

    def change() -> None:
        context.copy_(after)
        states.neg_()
        table.copy_(table.flip(0))

    arguments = (states, key, value, table, context, query.shape, sinks)
    window = "" if query.shape.window is None else f" window {query.shape.window}"
    name = f"batch {num_seqs}{window}"
    return lambda: kernel(*arguments), Case(
        name=name, plain=lambda: torch_decode(*arguments), change=change, dtype=query.dtype
    )


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
    default = prefill.prefill_attention
    if device.type == "cpu" and candidates is None:
        return ChosenPrefill(name="default", kernel=default, reason="a CPU has no other")
    trials: list[Trial] = []
    forms = dict(candidates if candidates is not None else _prefill_candidates(device, query, trials))
    tried = []
    with torch.inference_mode():
        for name, form in forms.items():
            made = [_prefill_case(query, *size, device, form) for size in SIZES]
            calls, cases = [call for call, _ in made], [case for _, case in made]
            tried.append(run_trial(name, calls, cases, stopwatch or stopwatch_of(device)))
    give_back(device)
    best, trials = fastest(tried), [*tried, *trials]
    reason = "; ".join(str(trial) for trial in trials)
    if best is None:
        return ChosenPrefill(name="default", kernel=default, reason=reason, trials=tuple(trials))
    return ChosenPrefill(name=best.name, kernel=forms[best.name], reason=reason, trials=tuple(trials))


def _prefill_candidates(device: torch.device, query: DecodeQuery, left_out: list[Trial]) -> dict[str, PrefillKernel]:
    """The forms that can serve; what cannot is told in ``left_out``."""
    forms: dict[str, PrefillKernel] = {"plain": prefill.plain_prefill}
    if query.has_sinks or query.shape.softcap is not None:
        left_out.append(Trial(name="sdpa", why_out="has no sinks and no soft-capped scores"))
    else:
        forms["sdpa"] = prefill.sdpa_prefill
    why_not = prefill.why_no_varlen(device, query.dtype, query.head_dim, query.shape)
    if why_not is not None:
        left_out.append(Trial(name="varlen", why_out=why_not))
    else:
        forms["varlen"] = prefill.varlen_prefill
    return forms


def _prefill_case(
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
    plain = functools.partial(prefill.plain_prefill, states, key, value, query.shape, sinks)
    name = f"{num_queries} of {past + num_queries} tokens"
    return call, Case(name=name, plain=plain, change=lambda: None, dtype=query.dtype)
