"""Figures that need every pick, not only counts: which experts go together, and what consecutive tokens share.

Picks are present only in detailed records. Legend: T tokens, L layers, k picks in the router's order, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moeprof.analysis.metrics.routing_nulls import consecutive_overlap_null, consecutive_top1_null
from moeprof.analysis.tables import BoolArray, FloatArray

Picks = npt.NDArray[np.integer[Any]]


def _pairs(picks_TK: Picks, num_experts: int) -> FloatArray:
    """N_ij of one layer, shape [E, E], N_i on the diagonal. Ids from E on stand for no expert and are not counted."""
    size = num_experts + 1
    one = np.minimum(picks_TK.astype(np.int64), num_experts)
    square = np.zeros(size * size)
    for first in range(one.shape[1]):
        for second in range(first, one.shape[1]):
            square += np.bincount(one[:, first] * size + one[:, second], minlength=size * size)
    half = square.reshape(size, size)[:num_experts, :num_experts]
    return np.asarray(half + half.T - np.diag(np.diagonal(half)), dtype=np.float64)


def coactivation_with_nulls(picks: Picks, num_experts: int, *, seed: int = 0) -> tuple[float | None, dict[str, float]]:
    """Share of an expert's tokens that its most frequent partner takes too: sum_i max_j N_ij / sum_i N_i, over layers.

    (The plain mean of N_ij / N_i over all pairs is (k-1)/(E-1) whatever the router does, so it says nothing.)

    Args:
        picks: shape [T, L, k].
        num_experts: E.
        seed: of the nulls.

    Returns:
        The share, None without picks, and what it is by chance for as many tokens: ``uniform`` router, and
        ``permutation``, picks dealt anew among the tokens so that every expert keeps its popularity.
    """
    rng = np.random.default_rng(seed)
    num_tokens, num_layers, top_k = picks.shape
    drawn = np.argpartition(rng.random((num_tokens, num_experts)), top_k - 1, axis=1)[:, :top_k]
    found = [_strongest(picks[:, layer], num_experts) for layer in range(num_layers)]
    dealt = [_strongest(_dealt_anew(picks[:, layer], rng), num_experts) for layer in range(num_layers)]
    known = [share for share in found if share is not None]
    nulls = {"uniform": _strongest(drawn, num_experts), "permutation": _mean([x for x in dealt if x is not None])}
    return _mean(known), {name: value for name, value in nulls.items() if value is not None}


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _strongest(picks_TK: Picks, num_experts: int) -> float | None:
    pairs = _pairs(picks_TK, num_experts)
    alone = float(np.trace(pairs))
    np.fill_diagonal(pairs, 0)
    return float(pairs.max(axis=1).sum()) / alone if alone else None


def _dealt_anew(picks_TK: Picks, rng: np.random.Generator) -> Picks:
    """All picks of a layer dealt to the tokens at random, no expert twice to one token (the few left over are dropped).

    Tokens with a double are dealt again together with as many others, up to fifty times.
    """
    dealt: Picks = rng.permutation(picks_TK.reshape(-1)).reshape(picks_TK.shape)
    for _ in range(50):
        double = (np.diff(np.sort(dealt, axis=1), axis=1) == 0).any(axis=1)
        if not double.any():
            return dealt
        rows = np.unique(np.concatenate([np.flatnonzero(double), rng.integers(0, len(dealt), size=int(double.sum()))]))
        dealt[rows] = rng.permutation(dealt[rows].reshape(-1)).reshape(len(rows), -1)
    proper: Picks = dealt[~(np.diff(np.sort(dealt, axis=1), axis=1) == 0).any(axis=1)]
    return proper


@dataclass(frozen=True, slots=True, kw_only=True)
class Consecutive:
    """What a token shares with the one before it in its sequence.

    Attributes:
        permuted_same_top1, permuted_overlap: per layer after shuffling all tokens (popularity kept, order destroyed).
        uniform_same_top1, uniform_overlap: 1/E and 1 - C(E-k,k)/C(E,k).
        same_top1_pairs, overlap_pairs: share of layers with the same first choice, with any common expert, of each pair
            within a sequence, in the order given; shape [pairs].
    """

    permuted_same_top1: FloatArray
    permuted_overlap: FloatArray
    uniform_same_top1: float
    uniform_overlap: float
    same_top1_pairs: FloatArray
    overlap_pairs: FloatArray


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
    same, overlap = _shared(picks, later, num_experts)
    rng = np.random.default_rng(seed)
    shuffled = [_shared(picks[rng.permutation(len(picks))], later, num_experts) for _ in range(permutations)]
    return Consecutive(
        permuted_same_top1=np.mean([one.mean(axis=0) for one, _ in shuffled], axis=0),
        permuted_overlap=np.mean([two.mean(axis=0) for _, two in shuffled], axis=0),
        uniform_same_top1=consecutive_top1_null(num_experts),
        uniform_overlap=consecutive_overlap_null(num_experts, picks.shape[2]),
        same_top1_pairs=same.mean(axis=1),
        overlap_pairs=overlap.mean(axis=1),
    )


def _shared(picks: Picks, later: npt.NDArray[np.int64], num_experts: int) -> tuple[BoolArray, BoolArray]:
    """Per pair and layer: same first choice, any common expert. Ids from E on are no experts to share."""
    now, before = picks[later], picks[later - 1]
    real = now < num_experts
    same = (now[:, :, 0] == before[:, :, 0]) & real[:, :, 0]
    overlap = np.zeros(now.shape[:2], dtype=np.bool_)
    for pick in range(picks.shape[2]):
        overlap |= (before == now[:, :, pick : pick + 1]).any(axis=2) & real[:, :, pick]
    return same, overlap
