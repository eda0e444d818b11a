"""Measures of how evenly a router spreads tokens: functions of counts over experts (docs/metrics.md#router).

Every measure takes counts ``n`` of shape [..., E] and works along the last axis; NaN where nothing was routed.
N = sum n, mu = N / E, q = n / N.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import numpy as np
import numpy.typing as npt

from moeprof.analysis.stats.arrays import FloatArray, IntArray

Counts = npt.NDArray[np.int64] | FloatArray


def shares(counts: Counts) -> FloatArray:
    """Q = n / N; NaN where N = 0."""
    total = counts.sum(axis=-1, keepdims=True, dtype=np.float64)
    return counts / np.where(total > 0, total, np.nan)


def max_over_mean(counts: Counts) -> FloatArray:
    """Max n / mu, at most E/k. MaxVio of the loss-free balancing paper (arXiv 2408.15664) is this minus 1."""
    return cast(FloatArray, shares(counts).max(axis=-1) * counts.shape[-1])


def load_cv(counts: Counts) -> FloatArray:
    """Population standard deviation over mean (Shazeer et al. 2017 square it for their loss)."""
    return cast(FloatArray, shares(counts).std(axis=-1) * counts.shape[-1])


def _entropy(counts: Counts) -> FloatArray:
    share = shares(counts)
    return cast(FloatArray, -(share * np.log(np.where(share > 0, share, 1.0))).sum(axis=-1))


def entropy_ratio(counts: Counts) -> FloatArray:
    """-sum q ln q / ln E: 1 = uniform, 0 = one expert."""
    return _entropy(counts) / math.log(max(counts.shape[-1], 2))


def effective_experts(counts: Counts) -> FloatArray:
    """exp(-sum q ln q): the number of equally loaded experts with this entropy."""
    return cast(FloatArray, np.exp(_entropy(counts)))


def gini(counts: Counts) -> FloatArray:
    """Gini coefficient: 0 = equal, 1 - 1/E = one expert."""
    num = counts.shape[-1]
    rank = 2 * np.arange(1, num + 1) - num - 1
    return cast(FloatArray, (np.sort(shares(counts), axis=-1) * rank).sum(axis=-1) / num)


def jain(counts: Counts) -> FloatArray:
    """Jain's fairness index, 1 / (1 + CV^2)."""
    return 1 / (1 + load_cv(counts) ** 2)


def dead_experts(counts: Counts) -> FloatArray:
    """Experts without a token; NaN where nothing was routed."""
    routed = counts.sum(axis=-1) > 0
    return np.where(routed, (counts == 0).sum(axis=-1), np.nan).astype(np.float64)


def top_decile_load_ratio(counts: Counts) -> FloatArray:
    """Share of assignments taken by the busiest ceil(E/10) experts."""
    num = math.ceil(counts.shape[-1] / 10)
    return cast(FloatArray, np.sort(shares(counts), axis=-1)[..., -num:].sum(axis=-1))


MEASURES: dict[str, Callable[[Counts], FloatArray]] = {
    "router_load_max_over_mean": max_over_mean,
    "router_load_cv": load_cv,
    "router_entropy_ratio": entropy_ratio,
    "router_gini": gini,
    "router_jain": jain,
    "effective_experts": effective_experts,
    "dead_experts": dead_experts,
    "top_decile_load_ratio": top_decile_load_ratio,
}


def hot_set_experts(counts_LE: Counts, share: float) -> IntArray:
    """How many experts of each layer belong to the smallest set that serves ``share`` of all assignments.

    The busiest experts of all layers together are taken first (experts of one model have equal bytes); times the
    layer's expert bytes this is the least memory that must stay near.

    Args:
        counts_LE: assignments per layer and expert.
        share: for example 0.90.

    Returns:
        Experts per layer, shape [L]; their sum is the size of the set.
    """
    flat = counts_LE.reshape(-1)
    order = np.argsort(-flat, kind="stable")
    reach = np.cumsum(flat[order])
    if not len(reach) or reach[-1] == 0:
        return np.zeros(counts_LE.shape[0], dtype=np.int64)
    num = int(np.searchsorted(reach, share * reach[-1] * (1 - 1e-12))) + 1
    return np.bincount(order[:num] // counts_LE.shape[1], minlength=counts_LE.shape[0]).astype(np.int64)


def _histogram(counts_SLE: IntArray) -> IntArray:
    """How often each count occurs; layer by layer, because ``bincount`` makes a copy of eight bytes a number."""
    length = int(counts_SLE.max(initial=0)) + 1
    by_layer = (np.bincount(counts_SLE[:, i].reshape(-1), minlength=length) for i in range(counts_SLE.shape[1]))
    return sum(by_layer, np.zeros(length, dtype=np.int64))


def capacity_factor(step_counts: IntArray, tokens_S: IntArray, top_k: int, drop_share: float = 0.01) -> float | None:
    """The smallest capacity factor c that drops at most ``drop_share`` of assignments, step by step.

    A router with capacity drops what exceeds ``ceil(c * T * k / E)`` of one expert in one step; summed over steps,
    layers and experts. c is exact: drops change only where c*T*k/E is whole, and only those c are tried.

    Args:
        step_counts: tokens per step, layer and expert, shape [S, L, E].
        tokens_S: tokens T of each step.
        top_k: k.
        drop_share: allowed share of drops.
    """
    sizes, group = np.unique(tokens_S, return_inverse=True)
    means = sizes * top_k / step_counts.shape[-1]
    histograms = [_histogram(step_counts[group == i]) for i in range(len(sizes))]
    total = sum(int(np.arange(len(h)) @ h) for h in histograms)
    if total == 0:
        return None
    steps = zip(means, histograms, strict=True)
    tried = np.unique(np.concatenate([np.arange(1, len(h)) / mean for mean, h in steps if mean > 0 and len(h) > 1]))

    def drops(factor: float) -> int:
        lost = 0
        for mean, histogram in zip(means, histograms, strict=True):
            over = np.arange(len(histogram)) - math.ceil(factor * mean - 1e-9)
            lost += int(np.maximum(over, 0) @ histogram)
        return lost

    low, high = -1, len(tried) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if drops(float(tried[middle])) <= drop_share * total else (middle, high)
    return float(tried[high])
