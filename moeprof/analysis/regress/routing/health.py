"""Did the router stay healthy? Two sides on the same tokens: what changed, and whether it is collapse or noise.

The busiest expert over the mean before and after, by phase, with an interval: what its gates are judged by.

An extreme of counts has no interval that resampling covers (see metrics/routing/metrics.py), but how far it moved
between two sides of the same tokens has: both sides resample the same requests, so what biases one biases the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from moeprof.analysis.metrics.routing.measures import max_over_mean
from moeprof.analysis.metrics.tables import ALL
from moeprof.analysis.regress.routing.change import GateFigure, LayerChange, RoutingChange
from moeprof.analysis.regress.routing.layers import MINIMUM_REQUESTS, layer_changes, resampled_requests
from moeprof.analysis.regress.routing.pairs import LayerPair, RoutingPair, pair_routing
from moeprof.analysis.regress.routing.sentences import change_sentences
from moeprof.analysis.stats import intervals
from moeprof.analysis.stats.arrays import FloatArray, IntArray
from moeprof.core.baseline.baseline import BaselineModel
from moeprof.core.metric import MetricValue, missing


def busiest_by_phase(pair: RoutingPair, *, exact: bool, seed: int = 0) -> dict[str, GateFigure]:
    """``router_load_max_over_mean``, mean over layers, of all tokens and of each phase that has some.

    Its interval is that of the rise, around the value now; None for loads alone, with fewer than ten requests, and
    where any difference is one.
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
        low, high = intervals.percentile_interval(np.mean(np.nan_to_num(rises), axis=0))
        interval = (before + low, before + high)
    return GateFigure(
        reference=before, other=after, worse_by=after - before, interval=interval, n=f"{tokens:,} tokens"
    )  # fmt: skip


def _counts(layer: LayerPair, phase: str) -> tuple[IntArray, IntArray]:
    return layer.counts_BE if phase == ALL else layer.phases_BE[phase]


# Differences are called noise where at least this share of the picks is the same (where picks are known), and
NOISE_AGREEMENT = 0.99
# no layer drifted beyond its null and sent more than this share of its load elsewhere. Rounding flips tokens whose
# k-th and next score are nearly equal; what flips one way and what flips back leave the loads where they were.
NOISE_MOVED = 0.01
NO_EXTREME = "no interval: an extreme of layers"
NO_INTERVAL = "no interval: judged against its null"


def routing_change(
    reference: BaselineModel, other: BaselineModel, *, exact: bool, seed: int = 0
) -> RoutingChange | None:
    """How routing changed from one side to the other.

    Token by token where both sides have picks of the same forced tokens; else by the loads of all layers alone, then
    agreement, specialisation and margins are not known. Verdicts:

    - ``unchanged``: every token has the same set (without picks: every expert the same count).
    - ``collapsed``: a layer broke a rule of :mod:`moeprof.analysis.regress.routing.layers`.
    - ``noise``: as small as rounding or the sample explains; see NOISE_AGREEMENT and NOISE_MOVED.
    - ``changed``: anything else.

    Args:
        reference: of the baseline.
        other: of the run that is judged.
        exact: both sides have the same weights, kernels, dtype and device, and routed the same tokens: any difference
            is one, so every expert that lost its last token is newly dead. The verdict still says how large it is.
        seed: of nulls and intervals.

    Returns:
        None where the two share no routed layer: dense models, or nothing was recorded.
    """
    pair = pair_routing(reference, other)
    if pair is None:
        return None
    layers = layer_changes(pair, exact=exact, seed=seed)
    is_same = all(layer.is_identical for layer in pair.layers)
    verdict = routing_verdict(layers, is_same=is_same)
    metrics = _metrics(pair, layers, is_same=is_same, exact=exact, seed=seed)
    return RoutingChange(
        model=other.name,
        tokens=pair.tokens,
        same_tokens=exact or pair.no_picks is None,
        exact=exact,
        layers=layers,
        metrics=metrics,
        sentences=change_sentences(layers, metrics[0], verdict, exact=exact),
        verdict=verdict,
        busiest=busiest_by_phase(pair, exact=exact, seed=seed),
    )


def routing_verdict(layers: Sequence[LayerChange], *, is_same: bool) -> str:
    """``unchanged``, ``collapsed``, ``noise`` or ``changed``; the rules stand at :func:`routing_change`."""
    if is_same:
        return "unchanged"
    if any(layer.collapse for layer in layers):
        return "collapsed"
    known = [layer.agreement_ratio for layer in layers if layer.agreement_ratio is not None]
    agrees = not known or sum(known) / len(known) >= NOISE_AGREEMENT
    moved = any(layer.is_beyond_null and layer.moved_ratio > NOISE_MOVED for layer in layers)
    return "noise" if agrees and not moved else "changed"


def _metrics(
    pair: RoutingPair, layers: tuple[LayerChange, ...], *, is_same: bool, exact: bool, seed: int
) -> tuple[MetricValue, ...]:
    """Figures of the change; agreement first."""
    drift = [layer.drift_js for layer in layers]
    null = [layer.drift_null_mean for layer in layers if layer.drift_null_mean is not None]
    nulls = {"multinomial" if pair.no_picks else "permutation": float(np.mean(null))} if null else {}
    return (
        *_agreement(pair, layers, is_same=is_same, exact=exact, seed=seed),
        _value("router_drift_js", float(np.mean(drift)), pair, exact=exact, why=NO_INTERVAL, null=nulls),
        _value("router_drift_js_worst", max(drift), pair, exact=exact, why=NO_EXTREME),
        _count("dead_experts_gained", sum(len(layer.newly_dead) for layer in layers), pair),
        _count("nearly_dead_experts_gained", sum(len(layer.newly_nearly_dead) for layer in layers), pair),
        _value(
            "router_load_max_over_mean_rise",
            max(layer.max_over_mean[1] - layer.max_over_mean[0] for layer in layers),
            pair, exact=exact, why=NO_EXTREME,
        ),
        _value(
            "router_entropy_ratio_fall",
            max(layer.entropy_ratio[0] - layer.entropy_ratio[1] for layer in layers),
            pair, exact=exact, why=NO_EXTREME,
        ),
        _fall("domain_total_variation_fall", lambda layer: layer.specialisation, layers, pair, exact=exact),
        _fall("router_margin_p05_fall", lambda layer: layer.margin_p05, layers, pair, exact=exact),
    )  # fmt: skip


def _agreement(
    pair: RoutingPair, layers: tuple[LayerChange, ...], *, is_same: bool, exact: bool, seed: int
) -> list[MetricValue]:
    names = ("routing_agreement_ratio", "routing_agreement_ratio_worst")
    known = [layer.agreement_ratio for layer in layers if layer.agreement_ratio is not None]
    if pair.no_picks is not None or not known:
        return [missing(name, pair.no_picks or "no picks") for name in names]
    mean, worst = (1.0, 1.0) if is_same else (float(np.mean(known)), min(known))
    sums = [layer.agreed_B for layer in pair.layers if layer.agreed_B is not None]
    interval = None if exact else _by_request(pair, np.sum(sums, axis=0) / len(sums), seed)
    low, high = interval or (None, None)
    few = f"no interval: {int(pair.request_B.max()) + 1} requests, {MINIMUM_REQUESTS} are needed"
    reasons = () if exact or interval else (few,)
    return [
        MetricValue(
            name=names[0], value=mean, n=pair.tokens, ci_low=low, ci_high=high, exact=exact, reasons=reasons
        ),
        _value(names[1], worst, pair, exact=exact, why=NO_EXTREME),
    ]  # fmt: skip


def _by_request(pair: RoutingPair, agreed_B: FloatArray, seed: int) -> intervals.Interval | None:
    """Interval of the mean agreement by resampling whole requests; None with too few of them."""
    if int(pair.request_B.max()) + 1 < MINIMUM_REQUESTS:
        return None
    sample = intervals.BlockSample(
        values=agreed_B / pair.tokens_B, weights=pair.tokens_B.astype(np.float64), blocks=pair.request_B
    )
    return intervals.bootstrap_mean(sample, seed)


def _value(
    name: str, value: float, pair: RoutingPair, *, exact: bool, why: str, null: dict[str, float] | None = None
) -> MetricValue:
    reasons = () if exact else (why,)
    return MetricValue(name=name, value=value, n=pair.tokens, exact=exact, reasons=reasons, null=null or {})


def _count(name: str, value: int, pair: RoutingPair) -> MetricValue:
    return MetricValue(name=name, value=value, n=pair.tokens, exact=True)


def _fall(
    name: str,
    of: Callable[[LayerChange], tuple[float, float] | None],
    layers: tuple[LayerChange, ...],
    pair: RoutingPair,
    *,
    exact: bool,
) -> MetricValue:
    """How far a figure fell, mean over layers that have it."""
    known = [both for layer in layers if (both := of(layer)) is not None]
    if not known:
        default = "fewer than two request classes" if name.startswith("domain") else "margins were not recorded"
        return missing(name, pair.no_picks or default)
    return _value(name, float(np.mean([b - a for b, a in known])), pair, exact=exact, why=NO_INTERVAL)
