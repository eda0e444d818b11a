"""One MoE layer's change: loads, drift, dead experts, specialisation, margins; and the rule of a collapse.

What chance alone does to the distance of two loads.

*Swapped sides* (same tokens): had nothing changed, each token's set could as well stand on the other side. Sides are
swapped for whole blocks of tokens at random, since tokens of one request are alike. *Multinomial* (other tokens): both
sides are drawn from the pooled load with as many picks each.
Legend: N draws, B blocks of tokens, E experts, C classes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from moeprof.analysis.metrics.routing.measures import Counts, entropy_ratio, max_over_mean, shares
from moeprof.analysis.metrics.routing.shift import js_divergence, total_variation
from moeprof.analysis.metrics.tables import BoolArray
from moeprof.analysis.regress.routing.change import Both, LayerChange
from moeprof.analysis.regress.routing.pairs import LayerPair, RoutingPair
from moeprof.analysis.stats.arrays import FloatArray, IntArray

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


NEARLY_DEAD_RATIO = 0.1  # of the mean load
FALSE_DEAD = 0.01  # chance of any false newly dead expert among all experts of all layers (Bonferroni)
# A layer has collapsed where an expert is newly dead beyond chance, or where its drift is beyond its null and
# the entropy ratio fell by more than this, or
ENTROPY_FALL = 0.1
# the busiest expert rose by more than this share of the way from where it was to E/k, where it would take every token.
BUSIEST_RISE = 0.5
MOST_MOVED = 6


def layer_changes(pair: RoutingPair, *, exact: bool, seed: int = 0) -> tuple[LayerChange, ...]:
    """Every layer of two sides."""
    swaps = random_swaps(len(pair.tokens_B), seed)
    loads = [tuple(side.sum(axis=0) for side in layer.counts_BE) for layer in pair.layers]
    drift = [float(np.nan_to_num(js_divergence(one, two))) for one, two in loads]
    chance = _drift_nulls(pair, swaps, exact=exact, seed=seed)
    bars = family_bars(chance) or [0.0] * len(drift)
    apart = [class_distance(layer, pair, swaps) if pair.no_picks is None else None for layer in pair.layers]
    known = [i for i, one in enumerate(apart) if one is not None]
    apart_bars = dict(zip(known, family_bars([one.null_N for one in apart if one is not None]), strict=True))
    limit = FALSE_DEAD / sum(layer.num_experts for layer in pair.layers)
    return tuple(
        _layer_change(
            layer,
            tokens=pair.tokens,
            drift_js=drift[i],
            null_N=chance[i] if chance else None,
            is_beyond_null=drift[i] > bars[i],
            apart=apart[i],
            apart_bar=apart_bars.get(i),
            dead_limit=limit,
            exact=exact,
        )
        for i, layer in enumerate(pair.layers)
    )


def _drift_nulls(pair: RoutingPair, swaps: FloatArray, *, exact: bool, seed: int) -> Sequence[FloatArray]:
    """Per layer, drift by chance; empty where loads of the same tokens have none."""
    if pair.no_picks is None:
        return [swapped_drift(layer, swaps) for layer in pair.layers]
    return [] if exact else [multinomial_drift(layer, seed + i) for i, layer in enumerate(pair.layers)]


def _layer_change(
    layer: LayerPair,
    *,
    tokens: int,
    drift_js: float,
    null_N: FloatArray | None,
    is_beyond_null: bool,
    apart: ClassDistance | None,
    apart_bar: float | None,
    dead_limit: float,
    exact: bool,
) -> LayerChange:
    before, after = (side.sum(axis=0) for side in layer.counts_BE)
    lost = _lost_experts(before, after, dead_limit, exact=exact)
    busiest, entropy = _both(max_over_mean, before, after), _both(entropy_ratio, before, after)
    share = tuple(np.nan_to_num(shares(side)) for side in (before, after))
    agreed = None if layer.agreed_B is None else float(layer.agreed_B.sum() / tokens)
    return LayerChange(
        name=layer.name,
        agreement_ratio=agreed,
        drift_js=drift_js,
        drift_null=None if null_N is None else float(np.quantile(null_N, LEVEL)),
        drift_null_mean=None if null_N is None else float(null_N.mean()),
        is_beyond_null=is_beyond_null,
        max_over_mean=busiest,
        entropy_ratio=entropy,
        dead=(int((before == 0).sum()), int((after == 0).sum())),
        newly_dead=lost.dead,
        chance_dead=lost.chance,
        nearly_dead=_num_below(before, after),
        newly_nearly_dead=lost.nearly_dead,
        moved=_moved(share[0], share[1]),
        load=(tuple(share[0].tolist()), tuple(share[1].tolist())),
        collapse=_collapse(layer, busiest, entropy, is_dead=lost.is_beyond_chance, is_beyond_null=is_beyond_null),
        specialisation=(apart.reference, apart.other) if apart else None,
        specialisation_null=apart_bar,
        margin_p05=_margins(layer, 0.05),
        margin_p50=_margins(layer, 0.5),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lost:
    """Experts without (or nearly without) tokens now, that had some; ``chance`` as LayerChange.chance_dead."""

    dead: tuple[int, ...]
    nearly_dead: tuple[int, ...]
    chance: float | None
    is_beyond_chance: bool


def _lost_experts(before_E: IntArray, after_E: IntArray, limit: float, *, exact: bool) -> _Lost:
    share = before_E.sum() / max(before_E.sum() + after_E.sum(), 1)
    gone = (before_E > 0) & (after_E == 0)
    beyond = gone & (chance_of_none(before_E, share) < limit)
    nearly = newly_below(before_E, after_E, NEARLY_DEAD_RATIO)
    if not exact:
        nearly &= chance_of_as_few(before_E, after_E, share) < limit
    counted = gone if exact else beyond
    chance = None
    if not exact and beyond.any():
        chance = product(chance_of_none(before_E[beyond], share))
    return _Lost(
        dead=_ids(counted), nearly_dead=_ids(nearly), chance=chance, is_beyond_chance=bool(beyond.any())
    )  # fmt: skip


def _ids(flags_E: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.flatnonzero(flags_E))


def _collapse(
    layer: LayerPair, busiest: Both, entropy: Both, *, is_dead: bool, is_beyond_null: bool
) -> tuple[str, ...]:
    """The rules of a collapse that this layer breaks."""
    room = layer.num_experts / layer.top_k - busiest[0]
    falls = is_beyond_null and entropy[0] - entropy[1] > ENTROPY_FALL
    rises = is_beyond_null and room > 0 and busiest[1] - busiest[0] > BUSIEST_RISE * room
    return tuple(name for name, broken in (("dead", is_dead), ("entropy", falls), ("busiest", rises)) if broken)


def _both(measure: Callable[[Counts], FloatArray], before_E: IntArray, after_E: IntArray) -> Both:
    """A measure of both loads; 0 where nothing was routed (every token went to experts that compute nothing)."""
    return float(np.nan_to_num(measure(before_E))), float(np.nan_to_num(measure(after_E)))


def _num_below(before_E: IntArray, after_E: IntArray) -> tuple[int, int]:
    counts = [int(below(side, NEARLY_DEAD_RATIO).sum()) for side in (before_E, after_E)]
    return counts[0], counts[1]


def _moved(before_E: FloatArray, after_E: FloatArray) -> tuple[tuple[int, float, float], ...]:
    order = np.argsort(-np.abs(after_E - before_E), kind="stable")[:MOST_MOVED]
    return tuple((int(e), float(before_E[e]), float(after_E[e])) for e in order if before_E[e] != after_E[e])


def _margins(layer: LayerPair, quantile: float) -> Both | None:
    if not all(len(side) for side in layer.margins):
        return None
    return float(np.quantile(layer.margins[0], quantile)), float(np.quantile(layer.margins[1], quantile))
