"""What a router that does not care would show: expectations to stand beside measured values (docs/metrics.md#nulls).

*Uniform*: every token takes k of E experts at random. *Marginal*: tokens take experts with the measured popularity,
independently of each other; measured minus marginal is correlation between the tokens of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import cast

import numpy as np

from moeprof.analysis.metrics.routing.measures import Counts
from moeprof.analysis.stats.arrays import FloatArray, IntArray

_DRAWS = 200
_EXACT_MEAN = 20  # tokens per expert above which a normal law stands in for exact draws
_GRID = 12


def uniform_distinct(num_experts: int, top_k: int, tokens: FloatArray | IntArray | float) -> FloatArray:
    """E[U] = E * (1 - (1 - k/E)^T): distinct experts that T tokens touch."""
    share = 1 - top_k / num_experts
    return num_experts * (1 - share ** np.asarray(tokens, dtype=np.float64))


def uniform_dead(num_experts: int, top_k: int, tokens: float) -> float:
    """E * (1 - k/E)^T: experts that T tokens leave without work."""
    return float(num_experts * (1 - top_k / num_experts) ** tokens)


def uniform_cv(num_experts: int, top_k: int, tokens: float) -> float:
    """sqrt(E[CV^2]) = sqrt((E/k) * (1 - k/E) / T)."""
    return math.sqrt(num_experts / top_k * (1 - top_k / num_experts) / tokens) if tokens > 0 else math.nan


def marginal_distinct(tokens_E: Counts, num_tokens: int, tokens: FloatArray | IntArray) -> FloatArray:
    """E[U] = sum_e 1 - C(N - n_e, T) / C(N, T): T tokens drawn without replacement from the N measured ones.

    The plug-in 1 - (1 - n_e/N)^T is biased when the window is short.

    Args:
        tokens_E: tokens n_e that took each expert, shape [E].
        num_tokens: N.
        tokens: batch sizes T, shape [B]; T above N has no expectation (NaN).

    Returns:
        Shape [B].
    """
    from scipy.special import gammaln

    wanted = np.asarray(tokens, dtype=np.float64)[:, None]
    left = num_tokens - np.asarray(tokens_E, dtype=np.float64)[None, :]
    possible = left >= wanted
    safe = np.where(possible, left, wanted)
    log_share = gammaln(safe + 1) - gammaln(safe - wanted + 1)
    legal = np.minimum(wanted, num_tokens)
    log_share -= gammaln(num_tokens + 1) - gammaln(num_tokens - legal + 1)
    distinct = np.where(possible, 1 - np.exp(log_share), 1.0).sum(axis=1)
    return np.where(wanted[:, 0] <= num_tokens, distinct, np.nan)


@lru_cache(maxsize=512)
def uniform_counts(num_experts: int, top_k: int, tokens: int, draws: int = _DRAWS, seed: int = 0) -> FloatArray:
    """Monte Carlo counts of T tokens under the uniform null, shape [draws, E].

    Exact draws without replacement while experts have few tokens; above 20 per expert the normal law with the exact
    mean T*k/E, variance T*(k/E)*(1-k/E), and fixed sum, rounded to whole tokens.
    """
    rng = np.random.default_rng(seed)
    share = top_k / num_experts
    if tokens * share > _EXACT_MEAN:
        noise = rng.normal(size=(draws, num_experts))
        noise = (noise - noise.mean(axis=1, keepdims=True)) * math.sqrt(num_experts / max(num_experts - 1, 1))
        spread = math.sqrt(tokens * share * (1 - share))
        return cast(FloatArray, np.maximum(np.rint(tokens * share + spread * noise), 0))
    counts = np.empty((draws, num_experts))
    for draw in range(draws):
        picks = np.argpartition(rng.random((tokens, num_experts)), top_k - 1, axis=1)[:, :top_k]
        counts[draw] = np.bincount(picks.reshape(-1), minlength=num_experts)
    return counts


def uniform_expectation(measure: Callable[[Counts], FloatArray], num_experts: int, top_k: int, tokens: int) -> float:
    """Monte Carlo expectation of a load measure for T tokens under the uniform null; NaN without tokens."""
    if tokens <= 0:
        return math.nan
    return float(np.nanmean(measure(uniform_counts(num_experts, top_k, tokens))))


def uniform_worst(measure: Callable[[Counts], FloatArray], num_experts: int, top_ks: list[int], tokens: int) -> float:
    """Expectation of the largest of several layers' measures under the uniform null, layers independent.

    From the Monte Carlo distribution F_k of one layer's measure: P(largest <= x) = product over layers of F_k(x).
    """
    if tokens <= 0:
        return math.nan
    one_layer = {k: np.sort(measure(uniform_counts(num_experts, k, tokens))) for k in set(top_ks)}
    grid = np.unique(np.concatenate(list(one_layer.values())))
    reach = {k: np.searchsorted(values, grid, side="right") / len(values) for k, values in one_layer.items()}
    below = np.prod([reach[k] for k in top_ks], axis=0)
    return float(grid @ np.diff(below, prepend=0.0))


def over_batch_sizes(expected: Callable[[IntArray], FloatArray], tokens_S: IntArray, grid: int = _GRID) -> FloatArray:
    """An expectation for every step's T, computed at ``grid`` sizes and interpolated in log T between them."""
    sizes, step = np.unique(tokens_S, return_inverse=True)
    if len(sizes) <= grid:
        return expected(sizes)[step]
    asked = np.unique(np.rint(np.geomspace(max(sizes[0], 1), sizes[-1], grid)).astype(np.int64))
    return np.interp(np.log(sizes), np.log(asked), expected(asked))[step]


def consecutive_top1_null(num_experts: int) -> float:
    """1 / E: chance that two tokens have the same first choice."""
    return 1 / num_experts


def consecutive_overlap_null(num_experts: int, top_k: int) -> float:
    """1 - C(E-k, k) / C(E, k): chance that two tokens share any expert."""
    return 1 - math.comb(num_experts - top_k, top_k) / math.comb(num_experts, top_k)
