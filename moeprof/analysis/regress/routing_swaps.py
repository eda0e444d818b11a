"""What chance alone does to the distance of two loads.

*Swapped sides* (same tokens): had nothing changed, each token's set could as well stand on the other side. Sides are
swapped for whole blocks of tokens at random, since tokens of one request are alike. *Multinomial* (other tokens): both
sides are drawn from the pooled load with as many picks each.
Legend: N draws, B blocks of tokens, E experts, C classes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from moeprof.analysis.metrics.routing_load import shares
from moeprof.analysis.metrics.routing_shift import js_divergence, total_variation
from moeprof.analysis.regress.routing_pairs import LayerPair, RoutingPair
from moeprof.analysis.tables import BoolArray, FloatArray, IntArray

DRAWS = 200
LEVEL = 0.95
MINIMUM_REQUESTS = 10  # for an interval by resampling requests


def resampled_requests(pair: RoutingPair, seed: int) -> FloatArray | None:
    """How often each block is drawn where requests are drawn anew, shape [N, B]; None with fewer than ten requests."""
    num = int(pair.request_B.max()) + 1
    if num < MINIMUM_REQUESTS:
        return None
    drawn = np.random.default_rng(seed).multinomial(num, np.full(num, 1 / num), size=DRAWS)
    return drawn[:, pair.request_B].astype(np.float64)


def random_swaps(num_blocks: int, seed: int) -> FloatArray:
    """Which blocks change sides in each draw, shape [N, B] of 0 and 1; the same for all layers of a model."""
    return np.random.default_rng(seed).integers(0, 2, size=(DRAWS, num_blocks)).astype(np.float64)


def swapped_drift(layer: LayerPair, swaps_NB: FloatArray) -> FloatArray:
    """JS divergence (base 2) of the two loads after each draw of swaps, shape [N]."""
    first, second = layer.counts_BE
    moved = swaps_NB @ (second - first)
    return js_divergence(first.sum(axis=0) + moved, second.sum(axis=0) - moved)


def multinomial_drift(layer: LayerPair, seed: int) -> FloatArray:
    """JS divergence (base 2) of two draws from the pooled load, shape [N]."""
    first, second = (side.sum(axis=0) for side in layer.counts_BE)
    pooled = np.nan_to_num(shares(first + second))
    rng = np.random.default_rng(seed)
    sides = [rng.multinomial(int(side.sum()), pooled, size=DRAWS) for side in (first, second)]
    return js_divergence(sides[0], sides[1])


def family_bars(null_LN: Sequence[FloatArray]) -> list[float]:
    """For each layer, what chance exceeds in any layer at all one time in twenty.

    Single-step max-T of Westfall and Young 1993: each layer's draws are scaled by their own 95th percentile, and the
    95th percentile of the largest over layers is the bar for all.
    """
    if not null_LN:
        return []
    own = np.array([np.quantile(null, LEVEL) for null in null_LN])
    scaled = np.stack(list(null_LN)) / np.where(own > 0, own, 1.0)[:, None]
    bar = max(1.0, float(np.quantile(scaled.max(axis=0), LEVEL)))
    return [float(bar * scale) for scale in own]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassDistance:
    """Total variation between the loads of request classes, mean over pairs of classes.

    Attributes:
        reference, other: before and after.
        null_N: absolute change under each draw of swapped sides.
    """

    reference: float
    other: float
    null_N: FloatArray


def class_distance(layer: LayerPair, pair: RoutingPair, swaps_NB: FloatArray) -> ClassDistance | None:
    """How far apart request classes are routed, before and after; None with fewer than two classes."""
    first, second, swapped_first, swapped_second = [], [], [], []
    for number in range(int(pair.class_B.max()) + 1):
        rows = pair.class_B == number
        one, two = (side[rows] for side in layer.counts_BE)
        if not one.sum() or not two.sum():
            continue
        moved = swaps_NB[:, rows] @ (two - one)
        first.append(one.sum(axis=0))
        second.append(two.sum(axis=0))
        swapped_first.append(one.sum(axis=0) + moved)
        swapped_second.append(two.sum(axis=0) - moved)
    if len(first) < 2:
        return None
    chance = _apart(swapped_second) - _apart(swapped_first)
    return ClassDistance(
        reference=float(_apart(first)),
        other=float(_apart(second)),
        null_N=np.abs(chance),
    )


def _apart(classes: Sequence[IntArray | FloatArray]) -> FloatArray:
    distances = [total_variation(one, two) for one, two in combinations(classes, 2)]
    return np.asarray(np.mean(distances, axis=0), dtype=np.float64)


# -- single experts -------------------------------------------------------------------------------------------------


def chance_of_none(counts_E: IntArray, share: float) -> FloatArray:
    """How likely an expert's n picks of the reference, and none now, are were its share of picks unchanged, shape [E].

    Given n picks on both sides together, each lies on the reference's with probability ``share``, its share of all
    picks: share^n, 2^-n for sides of equal size (the conditional test of two Poisson rates, Przyborowski and Wilenski
    1940). Not (1 - q)^N with the share q that was measured: that takes n for the truth, and calls a run of luck dead.
    Held at the smallest number that a double holds.
    """
    return np.asarray(np.maximum(share ** counts_E.astype(np.float64), sys.float_info.min), dtype=np.float64)


def chance_of_as_few(reference_E: IntArray, other_E: IntArray, share: float) -> FloatArray:
    """How likely as few picks as now or fewer are, were the expert's share unchanged; the same test, shape [E]."""
    from scipy.special import betainc

    # P(X <= b) of X ~ Binomial(a + b, 1 - share) is the incomplete beta function I_share(a, b + 1).
    chance = betainc(np.maximum(reference_E, 1).astype(np.float64), other_E + 1.0, share)
    return np.where(reference_E > 0, chance, 1.0).astype(np.float64)


def newly_below(before_E: IntArray, after_E: IntArray, floor_ratio: float) -> BoolArray:
    """Experts at or above ``floor_ratio`` of the mean load in the reference, and below it (or without a token) now."""
    return ~below(before_E, floor_ratio) & below(after_E, floor_ratio)


def below(counts_E: IntArray, floor_ratio: float) -> BoolArray:
    """Experts with less than ``floor_ratio`` of the mean load, or without a token."""
    return np.asarray((counts_E < floor_ratio * counts_E.mean()) | (counts_E == 0), dtype=np.bool_)


def product(chances: FloatArray) -> float:
    """Of independent events, held at the smallest number that a double holds."""
    return max(math.exp(max(float(np.log(chances).sum()), -700.0)), sys.float_info.min)
