"""The busiest expert over the mean before and after, by phase, with an interval: what its gates are judged by.

An extreme of counts has no interval that resampling covers (see metrics/routing.py), but how far it moved between two
sides of the same tokens has: both sides resample the same requests, so what biases one biases the other.
"""

from __future__ import annotations

import numpy as np

from moeprof.analysis import stats
from moeprof.analysis.metrics.routing_load import max_over_mean
from moeprof.analysis.regress.routing_change import GateFigure
from moeprof.analysis.regress.routing_pairs import LayerPair, RoutingPair
from moeprof.analysis.regress.routing_swaps import resampled_requests
from moeprof.analysis.tables import ALL, FloatArray, IntArray


def busiest_by_phase(pair: RoutingPair, *, exact: bool, seed: int = 0) -> dict[str, GateFigure]:
    """``router_load_max_over_mean``, mean over layers, of all tokens and of each phase that has some.

    Its interval is that of the rise, around the value now; None for loads alone, with fewer than ten requests, and
    where any difference is one.

    Args:
        pair: both sides.
        exact: any difference is one.
        seed: of the resampling.
    """
    drawn = None if exact or pair.no_picks is not None else resampled_requests(pair, seed)
    return {phase: _figure(pair, phase, num, drawn) for phase, num in {ALL: pair.tokens, **pair.phase_tokens}.items()}


def _figure(pair: RoutingPair, phase: str, tokens: int, drawn_NB: FloatArray | None) -> GateFigure:
    sides = [_counts(layer, phase) for layer in pair.layers]
    before, after = (
        float(np.mean([np.nan_to_num(max_over_mean(counts[side].sum(axis=0))) for counts in sides])) for side in (0, 1)
    )
    interval = None
    if drawn_NB is not None:
        rises = [max_over_mean(drawn_NB @ two) - max_over_mean(drawn_NB @ one) for one, two in sides]
        low, high = stats.percentile_interval(np.mean(np.nan_to_num(rises), axis=0))
        interval = (before + low, before + high)
    return GateFigure(
        reference=before, other=after, worse_by=after - before, interval=interval, n=f"{tokens:,} tokens"
    )  # fmt: skip


def _counts(layer: LayerPair, phase: str) -> tuple[IntArray, IntArray]:
    return layer.counts_BE if phase == ALL else layer.phases_BE[phase]
