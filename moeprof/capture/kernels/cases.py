"""Random data on which the kernels of an operation are tried, shaped as the engine will shape it.

Shape legend: attention.py; T tokens, k picks of a token, d hidden size.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from moeprof.capture.kernels.attention import AttentionKind, DecodeKernel, torch_decode
from moeprof.capture.kernels.experts import ExpertsKernel, grouped_mm
from moeprof.capture.kernels.prefill import PrefillKernel, plain_prefill
from moeprof.capture.kernels.trials import Case

KEYS = 1024  # of every sequence that decodes
BATCHES = (1, 32)
CACHE_SLOTS = 1 << 16  # at most, over all sequences of a case
LAYERS = 4  # whose experts are taken in turn
PROMPTS = ((512, 0), (128, 512))  # queries, keys before them: a whole prompt, a chunk of a longer one


def _random(device: torch.device, dtype: torch.dtype, seed: int = 0) -> tuple[torch.Generator, Callable[..., Any]]:
    draw = torch.Generator(device).manual_seed(seed)
    return draw, lambda *size: torch.randn(size, dtype=torch.float32, device=device, generator=draw).to(dtype)


def decode_cases(kind: AttentionKind, kernel: DecodeKernel, *, device: torch.device, max_pages: int) -> list[Case]:
    """Batches with shuffled pages, tables of up to ``max_pages``; one context is as short as can be."""
    return [_decode_case(kind, kernel, num_seqs, device, max_pages) for num_seqs in BATCHES]


def _decode_case(
    kind: AttentionKind, kernel: DecodeKernel, num_seqs: int, device: torch.device, max_pages: int
) -> Case:
    page = kind.shape.page_tokens
    num_pages = max(1, min(max_pages, CACHE_SLOTS // (num_seqs * page), -(-KEYS // page)))
    draw, random = _random(device, kind.dtype)
    slots = num_seqs * num_pages * page
    key, value = random(slots, kind.num_groups, kind.head_dim), random(slots, kind.num_groups, kind.value_dim)
    states = random(num_seqs, kind.num_heads, kind.head_dim) * 2  # a softmax with a few large weights
    sinks = random(kind.num_heads) if kind.has_sinks else None
    table = torch.randperm(num_seqs * num_pages, device=device, generator=draw).view(num_seqs, -1).int()
    context = torch.full((num_seqs,), num_pages * page, dtype=torch.int32, device=device)
    after = context - min(3, num_pages * page - 1)
    after[1:2], after[2:3] = 1, min(17, num_pages * page)

    def change() -> None:
        context.copy_(after)
        states.neg_()
        table.copy_(table.flip(0))

    arguments = (states, key, value, table, context, kind.shape, sinks)
    window = "" if kind.shape.window is None else f" window {kind.shape.window}"
    return Case(
        name=f"batch {num_seqs}{window}",
        call=functools.partial(kernel, *arguments),
        plain=functools.partial(torch_decode, *arguments),
        change=change,
        dtype=kind.dtype,
    )


def prefill_cases(kind: AttentionKind, kernel: PrefillKernel, *, device: torch.device) -> list[Case]:
    """A whole prompt, and a chunk of a longer one."""
    made = []
    for num_queries, past in PROMPTS:
        _, random = _random(device, kind.dtype, seed=past)
        arguments = (
            random(1, kind.num_heads, num_queries, kind.head_dim),
            random(1, kind.num_groups, past + num_queries, kind.head_dim),
            random(1, kind.num_groups, past + num_queries, kind.value_dim),
            kind.shape,
            random(kind.num_heads) if kind.has_sinks else None,
        )
        made.append(
            Case(
                name=f"{num_queries} of {past + num_queries} tokens",
                call=functools.partial(kernel, *arguments),
                plain=functools.partial(plain_prefill, *arguments),
                change=lambda: None,
                dtype=kind.dtype,
            )
        )
    return made


def experts_cases(
    layers: Sequence[nn.Module],
    kernel: ExpertsKernel,
    *,
    size: int,
    top_k: int,
    is_timed: bool = True,
) -> list[Case]:
    """Random tokens with distinct picks on the model's own experts.

    Every call takes the next layer, so that weights come from memory as in a decode step and not from the cache of the
    layer before; the plain form takes the last one taken.
    """
    down: torch.Tensor = layers[0].down_proj  # type: ignore[assignment]
    hidden_size = down.shape[2] if layers[0].is_transposed else down.shape[1]
    draw, random = _random(down.device, down.dtype, seed=size)
    hidden_Td = random(size, hidden_size)

    def picks() -> torch.Tensor:
        return torch.rand(size, down.shape[0], device=down.device, generator=draw).topk(top_k).indices

    index_Tk = picks()
    weights_Tk = torch.rand(size, top_k, device=down.device, generator=draw).softmax(-1).to(down.dtype)
    turn, taken = itertools.cycle(layers[:LAYERS]), [layers[0]]

    def call() -> torch.Tensor:
        taken[0] = next(turn)
        return kernel(taken[0], hidden_Td, index_Tk, weights_Tk)

    def change() -> None:
        index_Tk.copy_(picks())
        hidden_Td.neg_()

    return [
        Case(
            name=f"{size} token{'s' * (size > 1)}",
            call=call,
            plain=lambda: grouped_mm(taken[0], hidden_Td, index_Tk, weights_Tk),
            change=change,
            dtype=down.dtype,
            is_timed=is_timed,
        )
    ]
