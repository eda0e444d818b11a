"""Claims about work, memory and routing: counted from what ran."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from moeprof.analysis import stats
from moeprof.analysis.compare.claim_sides import Sides, exactly
from moeprof.analysis.compare.estimate import Estimate
from moeprof.analysis.metrics.routing_cells import cell
from moeprof.analysis.step_work import StepWork, step_work
from moeprof.analysis.summary import ModelSummary


def compute_saved(sides: Sides) -> Estimate:
    """1 - FLOPs of / FLOPs against, over the same requests: counted from what ran."""
    assert sides.against is not None, "a pair"
    flops = [_flops_per_token(model) for model in (sides.of, sides.against)]
    if isinstance(flops[0], str) or isinstance(flops[1], str):
        return Estimate(value=None, reason=next(f for f in flops if isinstance(f, str)))
    return exactly(1 - flops[0] / flops[1])


def _flops_per_token(model: ModelSummary) -> float | str:
    """FLOPs of the first priced pass over its tokens, or why they are unknown."""
    if model.facts is None or not model.priced:
        return f"{model.name} was not measured"
    work = step_work(model.priced[0], model.facts, model.launch.get("engine") or {})
    if not isinstance(work, StepWork):
        return work
    tokens = float(work.tokens_S.sum())
    return float(work.flops_S.sum()) / tokens if tokens else "no tokens were processed"


def weights(model: ModelSummary) -> float:
    """Bytes of all weights, as stored."""
    assert model.facts is not None, "a side has facts"
    return float(sum(model.facts.bytes_by_group.values()))


def weights_ratio(sides: Sides) -> Estimate:
    """Bytes of the weights over those of the other model."""
    assert sides.against is not None, "a pair"
    return exactly(weights(sides.of) / weights(sides.against))


def memory_over_active(sides: Sides) -> Estimate:
    """Bytes that must be resident / bytes of the parameters that one token uses."""
    facts = sides.of.facts
    assert facts is not None, "a side has facts"
    idle = sum(layer.expert_bytes * (layer.num_experts - layer.top_k) for layer in facts.moe_layers)
    return exactly(weights(sides.of) / (weights(sides.of) - idle))


def expert_share(*, over_busiest: bool) -> Callable[[Sides], Estimate]:
    """Share of a layer's picks, in the layer where one expert stands out most; jackknife over stretches of time."""

    def figure(counts_LE: stats.IntArray) -> float:
        most = counts_LE.max(axis=1)
        if over_busiest:
            return float((counts_LE.min(axis=1) / np.maximum(most, 1)).min())
        return float((most / np.maximum(counts_LE.sum(axis=1), 1)).max())

    def measure(sides: Sides) -> Estimate:
        routing = next((tables.routing for tables in sides.of.rounds if tables.routing is not None), None)
        if routing is None:
            return Estimate(value=None, reason=f"{sides.of.name}: routing was not recorded")
        counts = cell(routing)
        if not counts.counts_LE.sum():
            return Estimate(value=None, reason=f"{sides.of.name}: no token was routed")
        value = figure(counts.counts_LE)
        groups = counts.counts_GLE
        interval = stats.jackknife_interval(value, stats.leave_group_out(groups, figure), bounded=True)
        if interval is None:
            return Estimate(value=value, n=len(groups), reason="no interval: one stretch of time only")
        return Estimate(value=value, low=interval[0], high=interval[1], n=len(groups))

    return measure
