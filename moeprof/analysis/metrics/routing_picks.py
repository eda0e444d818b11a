"""Figures that need every pick, not only counts: which experts go together, and what consecutive tokens share.

Picks are present only in detailed records. Legend: T tokens, L layers, k picks in the router's order, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moeprof.analysis.metrics.routing_nulls import consecutive_overlap_null, consecutive_top1_null
from moeprof.analysis.tables import FloatArray

Picks = npt.NDArray[np.integer[npt.NBitBase]]


def coactivation(picks: Picks, num_experts: int) -> FloatArray:
    """N_ij / N_i: of the tokens that took expert i, the share that also took j, over all pairs of a token's set.

    Args:
        picks: shape [T, L, k].
        num_experts: E.

    Returns:
        Shape [L, E, E]; 1 on the diagonal, NaN in rows of experts without a token. Uniform null: (k-1)/(E-1).
    """
    _, num_layers, top_k = picks.shape
    together = np.zeros((num_layers, num_experts * num_experts))
    for layer in range(num_layers):
        one = picks[:, layer].astype(np.int64)
        for first in range(top_k):
            for second in range(top_k):
                pair = one[:, first] * num_experts + one[:, second]
                together[layer] += np.bincount(pair, minlength=num_experts * num_experts)
    square = together.reshape(num_layers, num_experts, num_experts)
    alone = np.diagonal(square, axis1=1, axis2=2)
    return np.asarray(square / np.where(alone > 0, alone, np.nan)[:, :, None], dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Consecutive:
    """What a token shares with the one before it in its sequence, per layer, shape [L].

    Attributes:
        same_top1: share of pairs with the same first choice.
        overlap: share of pairs with any common expert.
        permuted_same_top1, permuted_overlap: the same after shuffling all tokens (popularity kept, order destroyed).
        uniform_same_top1, uniform_overlap: 1/E and 1 - C(E-k,k)/C(E,k).
        num_pairs: pairs within a sequence.
    """

    same_top1: FloatArray
    overlap: FloatArray
    permuted_same_top1: FloatArray
    permuted_overlap: FloatArray
    uniform_same_top1: float
    uniform_overlap: float
    num_pairs: int


def consecutive_overlap(
    picks: Picks, sequence_starts: npt.NDArray[np.int64], num_experts: int, *, permutations: int = 20, seed: int = 0
) -> Consecutive | None:
    """Compare each token's picks with those of the token before it in the same sequence.

    Args:
        picks: shape [T, L, k], sequences one after another.
        sequence_starts: row of each sequence's first token.
        num_experts: E.
        permutations: shuffles for the null.
        seed: of the shuffles.

    Returns:
        None when no sequence has two tokens.
    """
    follows = np.ones(len(picks), dtype=np.bool_)
    follows[sequence_starts[sequence_starts < len(picks)]] = False
    later = np.flatnonzero(follows)
    if not len(later):
        return None
    same, overlap = _shared(picks, later)
    rng = np.random.default_rng(seed)
    shuffled = [_shared(picks[rng.permutation(len(picks))], later) for _ in range(permutations)]
    return Consecutive(
        same_top1=same,
        overlap=overlap,
        permuted_same_top1=np.mean([one for one, _ in shuffled], axis=0),
        permuted_overlap=np.mean([two for _, two in shuffled], axis=0),
        uniform_same_top1=consecutive_top1_null(num_experts),
        uniform_overlap=consecutive_overlap_null(num_experts, picks.shape[2]),
        num_pairs=len(later),
    )


def _shared(picks: Picks, later: npt.NDArray[np.int64]) -> tuple[FloatArray, FloatArray]:
    now, before = picks[later], picks[later - 1]
    same = (now[:, :, 0] == before[:, :, 0]).mean(axis=0)
    overlap = np.zeros(now.shape[:2], dtype=np.bool_)
    for pick in range(picks.shape[2]):
        overlap |= (before == now[:, :, pick : pick + 1]).any(axis=2)
    return same, overlap.mean(axis=0)


def routing_agreement(first: Picks, second: Picks) -> FloatArray:
    """Mean |S & S'| / k per layer over tokens that both runs processed (teacher forced); picks [T, L, k]."""
    assert first.shape == second.shape, f"picks of different shape: {first.shape}, {second.shape}"
    common = np.zeros(first.shape[:2])
    for pick in range(first.shape[2]):
        common += (second == first[:, :, pick : pick + 1]).any(axis=2)
    return np.asarray(common.mean(axis=0) / first.shape[2], dtype=np.float64)
