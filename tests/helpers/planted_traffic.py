"""Stationary traffic with planted routing: requests that differ, last many steps, and share steps with others.

Every request has its own preference among experts, drawn around one popularity; its tokens draw their experts from it.
A test (or a simulation of coverage) knows the truth: the popularity, and that nothing drifts unless it says so.
"""

from __future__ import annotations

import heapq
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moeprof.analysis.metrics.tables import PassTables
from moeprof.core.record.routing import RequestCounts, merge_requests
from tests.helpers.records import make_pass, make_requests, make_routing, make_steps

STEP_S = 0.01


def popularity(num_experts: int, slope: float) -> npt.NDArray[np.float64]:
    """Shares that fall along a line, busiest first: with ``slope`` 0 even, else from 1 + slope to 1 - slope of mean."""
    return (1 + np.linspace(slope, -slope, num_experts)) / num_experts


def planted_traffic(
    seed: int,
    *,
    num_requests: int = 64,
    in_flight: int = 8,
    output_tokens: int = 64,
    prompt_tokens: int = 16,
    slope: float = 0.0,
    alike: float = 20.0,
    num_experts: int = 16,
    num_layers: int = 2,
    class_names: tuple[str, ...] = ("all",),
    classes: npt.NDArray[np.int64] | None = None,
    moved: float = 0.0,
    by_request: bool = True,
) -> PassTables:
    """A pass of offline traffic, ``in_flight`` requests at a time, top-2 routing.

    Args:
        seed: of the draws.
        num_requests: N.
        in_flight: places.
        output_tokens: of each request, give or take a quarter.
        prompt_tokens: of each request, in the step in which it enters.
        slope: of the popularity.
        alike: Dirichlet concentration of a request's preference, per expert: 1 differs much, 100 hardly.
        num_experts: E.
        num_layers: L.
        class_names: request classes.
        classes: class of each request; drawn at random unless given.
        moved: how much of the popularity is taken from even experts for odd ones by the last request; of class 1 too.
        by_request: the record holds counts per request.
    """
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, len(class_names), num_requests) if classes is None else classes
    outputs = rng.integers(output_tokens * 3 // 4, output_tokens * 5 // 4 + 1, num_requests)
    start = _starts(outputs, in_flight)
    num_steps = int((start + outputs).max())
    counts = np.zeros((num_steps, 2, num_layers, num_experts), dtype=np.int64)
    by_class = np.zeros((len(class_names), *counts.shape), dtype=np.int64)
    own = np.zeros((num_requests, 2, num_layers, num_experts), dtype=np.int64)
    odd = np.where(np.arange(num_experts) % 2, 1.0, -1.0)
    for i in range(num_requests):
        shares = popularity(num_experts, slope) * (1 + odd * moved * i / max(num_requests - 1, 1))
        liked = rng.dirichlet(shares * alike * num_experts, num_layers)
        step = start[i] + np.concatenate([np.zeros(prompt_tokens, np.int64), np.arange(1, outputs[i])])
        phase = (np.arange(len(step)) >= prompt_tokens).astype(np.int64)
        for layer in range(num_layers):
            expert = rng.choice(num_experts, (len(step), 2), p=liked[layer])
            for k in range(2):
                np.add.at(by_class[classes[i]], (step, phase, layer, expert[:, k]), 1)
                np.add.at(own[i], (phase, layer, expert[:, k]), 1)
    counts = by_class.sum(axis=0)
    return _pass(counts, by_class, own, classes, class_names, start, outputs, by_request=by_request)


def _starts(outputs: npt.NDArray[np.int64], in_flight: int) -> npt.NDArray[np.int64]:
    free = [0] * in_flight
    start = np.zeros(len(outputs), dtype=np.int64)
    for i, tokens in enumerate(outputs):
        start[i] = heapq.heappop(free)
        heapq.heappush(free, int(start[i] + tokens))
    return start


def _pass(
    counts: npt.NDArray[np.int64],
    by_class: npt.NDArray[np.int64],
    own: npt.NDArray[np.int64],
    classes: npt.NDArray[np.int64],
    class_names: tuple[str, ...],
    start: npt.NDArray[np.int64],
    outputs: npt.NDArray[np.int64],
    *,
    by_request: bool,
) -> PassTables:
    num_steps, first = len(counts), np.arange(0, len(counts), 4)
    windows = np.add.reduceat(by_class, first, axis=1).transpose(1, 2, 0, 3, 4)
    rank = np.array([(classes[:i] == classes[i]).sum() for i in range(len(classes))])
    each = RequestCounts(
        request_counts_UPLE=own,
        request_class_U=classes,
        request_group_U=rank,
        request_first_U=np.arange(len(classes)),
        requests_per_group=1,
    )
    routing = make_routing(
        counts,
        steps_per_window=4,
        step_s=STEP_S,
        class_names=class_names,
        counts_WPCLE=windows,
        real_tokens_WPC=windows[:, :, :, 0].sum(axis=-1) // 2,
    )
    tokens = counts[:, :, 0].sum(axis=-1) // 2
    steps = make_steps(
        num_steps,
        step_s=STEP_S,
        phase=np.where(tokens[:, 0] == 0, "decode", np.where(tokens[:, 1] == 0, "prefill", "mixed")),
        prefill_tokens=tokens[:, 0],
        decode_tokens=tokens[:, 1],
    )
    requests = make_requests(
        len(classes),
        arrival_s=np.zeros(len(classes)),
        queue_s=start * STEP_S,
        ttft_s=(start + 1) * STEP_S,
        itl_s=STEP_S,
        output_tokens=outputs,
        request_class=[class_names[c] for c in classes],
    )
    return make_pass(
        requests=requests,
        steps=steps,
        routing=replace(routing, requests=merge_requests([each]) if by_request else None),
    )
