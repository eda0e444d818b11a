"""One MoE layer's change: loads, drift, dead experts, specialisation, margins; and the rule of a collapse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from moeprof.analysis.metrics.routing_load import Counts, entropy_ratio, max_over_mean, shares
from moeprof.analysis.metrics.routing_shift import js_divergence
from moeprof.analysis.regress import routing_swaps as nulls
from moeprof.analysis.regress.routing_change import Both, LayerChange
from moeprof.analysis.regress.routing_pairs import LayerPair, RoutingPair
from moeprof.analysis.tables import FloatArray, IntArray

NEARLY_DEAD_RATIO = 0.1  # of the mean load
FALSE_DEAD = 0.01  # chance of any false newly dead expert among all experts of all layers (Bonferroni)
# A layer has collapsed where an expert is newly dead beyond chance, or where its drift is beyond its null and
# the entropy ratio fell by more than this, or
ENTROPY_FALL = 0.1
# the busiest expert rose by more than this share of the way from where it was to E/k, where it would take every token.
BUSIEST_RISE = 0.5
MOST_MOVED = 6


def layer_changes(pair: RoutingPair, *, exact: bool, seed: int = 0) -> tuple[LayerChange, ...]:
    """Every layer of two sides.

    Args:
        pair: both sides.
        exact: any difference is one: every newly dead expert counts, and loads alone have no null.
        seed: of the nulls.
    """
    swaps = nulls.random_swaps(len(pair.tokens_B), seed)
    loads = [tuple(side.sum(axis=0) for side in layer.counts_BE) for layer in pair.layers]
    drift = [float(np.nan_to_num(js_divergence(one, two))) for one, two in loads]
    chance = _drift_nulls(pair, swaps, exact=exact, seed=seed)
    bars = nulls.family_bars(chance) or [0.0] * len(drift)
    apart = [nulls.class_distance(layer, pair, swaps) if pair.no_picks is None else None for layer in pair.layers]
    known = [i for i, one in enumerate(apart) if one is not None]
    apart_bars = dict(zip(known, nulls.family_bars([one.null_N for one in apart if one is not None]), strict=True))
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
        return [nulls.swapped_drift(layer, swaps) for layer in pair.layers]
    return [] if exact else [nulls.multinomial_drift(layer, seed + i) for i, layer in enumerate(pair.layers)]


def _layer_change(
    layer: LayerPair,
    *,
    tokens: int,
    drift_js: float,
    null_N: FloatArray | None,
    is_beyond_null: bool,
    apart: nulls.ClassDistance | None,
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
        drift_null=None if null_N is None else float(np.quantile(null_N, nulls.LEVEL)),
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
    beyond = gone & (nulls.chance_of_none(before_E, share) < limit)
    nearly = nulls.newly_below(before_E, after_E, NEARLY_DEAD_RATIO)
    if not exact:
        nearly &= nulls.chance_of_as_few(before_E, after_E, share) < limit
    counted = gone if exact else beyond
    chance = None
    if not exact and beyond.any():
        chance = nulls.product(nulls.chance_of_none(before_E[beyond], share))
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
    counts = [int(nulls.below(side, NEARLY_DEAD_RATIO).sum()) for side in (before_E, after_E)]
    return counts[0], counts[1]


def _moved(before_E: FloatArray, after_E: FloatArray) -> tuple[tuple[int, float, float], ...]:
    order = np.argsort(-np.abs(after_E - before_E), kind="stable")[:MOST_MOVED]
    return tuple((int(e), float(before_E[e]), float(after_E[e])) for e in order if before_E[e] != after_E[e])


def _margins(layer: LayerPair, quantile: float) -> Both | None:
    if not all(len(side) for side in layer.margins):
        return None
    return float(np.quantile(layer.margins[0], quantile)), float(np.quantile(layer.margins[1], quantile))
