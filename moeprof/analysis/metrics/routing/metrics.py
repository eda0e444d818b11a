"""The router: load, distinct experts, drift, specialisation, by phase, layer and request class.

Rounds replay the same tokens, so they add nothing to what is known about the router: figures come from the first round
that has routing counts. Intervals speak of more requests like these: groups of requests are left out one at a time
(jackknife; see :mod:`moeprof.analysis.metrics.routing.units`), and n is the number of groups. Few requests look less
even than their router is, so the jackknife's estimate of that bias is taken off the middle of the interval; the value
stays what these requests did, and the interval is widened to hold it. Extremes have none.
Legend: W windows, P phases, C classes, G units, L layers, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from moeprof.analysis.metrics.context import Context
from moeprof.analysis.metrics.routing.measures import MEASURES, hot_set_experts, max_over_mean
from moeprof.analysis.metrics.routing.nulls import uniform_cv, uniform_dead, uniform_expectation, uniform_worst
from moeprof.analysis.metrics.routing.picks import PICK_NAMES, pick_metrics
from moeprof.analysis.metrics.routing.shift import SHIFT_CARDS, first_with_routing, shift_metrics
from moeprof.analysis.metrics.routing.steps import (
    SHARE_CARDS,
    SHARE_NAMES,
    STEP_CARDS,
    STEP_NAMES,
    layer_step_metrics,
    routed_steps,
    share_metrics,
    step_metrics,
)
from moeprof.analysis.metrics.routing.units import Cell, Units, cell, exchangeable_units
from moeprof.analysis.metrics.tables import ALL, PassTables
from moeprof.analysis.stats.arrays import FloatArray, IntArray
from moeprof.analysis.stats.intervals import Interval, corrected_jackknife_interval
from moeprof.core.metric import Card, MetricValue, Place, estimated, missing
from moeprof.core.model_facts import ModelFacts
from moeprof.core.record.layout import PHASES
from moeprof.core.record.picks import Picks, load_picks
from moeprof.core.record.routing import Routing

LAYER_MEASURES = ("router_load_max_over_mean", "router_load_cv", "router_entropy_ratio", "dead_experts")
WORST = "router_load_max_over_mean_worst"
# Intervals by resampling do not cover these: a balanced router's true maximum (1) lies below every resampled one (the
# jackknife covers it in 5 % of simulated runs, the basic bootstrap in 60 %), and no request left out revives an expert.
# The share of the busiest tenth is one too: its interval covers an even router's share in 45 % of runs.
EXTREMES = ("router_load_max_over_mean", WORST, "dead_experts", "top_decile_load_ratio")
NO_EXTREME = "no interval: no resampling covers an extreme of counts; compare with the uniform expectation"
OTHER_RUNS = {
    "routing_agreement_ratio": "compares two runs on the same tokens, with every pick recorded (--save-detailed)",
}
COUNTED = ("realised_drop_ratio", "identity_pick_ratio", "hot_set_experts_90", "hot_set_experts_99")
SHIFT = ("router_drift_js", "router_drift_js_p")
NAMES = (*MEASURES, WORST, *STEP_NAMES, *SHARE_NAMES, *COUNTED, *SHIFT, *PICK_NAMES, *OTHER_RUNS)

_card = partial(Card, section="routing", source="docs/metrics.md#router", kind="routing", from_routing=True)
_LOAD: tuple[Card, ...] = (
    _card("router_load_max_over_mean", "Busiest expert over mean", "ratio", "lower",
          "max n_e / mu over the window, mean over layers; at most E/k", source="MaxVio + 1 (arXiv 2408.15664)",
          screen=(Place(100, "router load in decode, max / mean", phase="decode"),),
          gates=(Place(130, "+0.2", phase="prefill"), Place(140, "+0.2", phase="decode")),
          baseline=(Place(130, phase="decode"),)),
    _card("router_load_max_over_mean_worst", "Busiest expert over mean, worst layer", "ratio", "lower",
          "max n_e / mu over the window, largest of the layers; null: the largest of as many uniform layers",
          source="MaxVio + 1 (arXiv 2408.15664)"),
    _card("router_load_cv", "Load CV", "ratio", "lower", "population std(n) / mu, mean over layers",
          source="Shazeer et al. 2017"),
    _card("router_entropy_ratio", "Load entropy", "ratio", "higher", "-sum q ln q / ln E, mean over layers",
          source="Shannon 1948, over its largest value", bounded=True,
          screen=(Place(150, "router entropy in decode", phase="decode"),)),
    _card("router_gini", "Load Gini", "ratio", "lower", "Gini coefficient of n, mean over layers", source="Gini 1912",
          bounded=True),
    _card("router_jain", "Load fairness", "ratio", "higher", "1 / (1 + CV^2), mean over layers",
          source="Jain et al. 1984", bounded=True),
    _card("effective_experts", "Effective experts", "experts", "higher", "exp(-sum q ln q), mean over layers",
          source="Hill number of order 1"),
    _card("dead_experts", "Dead experts", "experts", "lower",
          "experts with n_e = 0, mean over layers; by chance E*(1-k/E)^T", gates=(Place(120, "0"),),
          baseline=(Place(140, phase="decode"),)),
    _card("top_decile_load_ratio", "Load of the busiest tenth", "ratio", "lower",
          "share of assignments of the busiest ceil(E/10) experts", bounded=True),
)  # fmt: skip
_COUNTED: tuple[Card, ...] = (
    _card("realised_drop_ratio", "Dropped picks", "ratio", "lower", "picks routed but not executed / all picks"),
    _card("identity_pick_ratio", "Identity picks", "ratio", "neither", "picks of zero-computation experts / all picks"),
    _card("hot_set_experts_90", "Experts that serve 90 %", "experts", "neither",
          "fewest experts of all layers that take 90 % of assignments; fewer where experts die, so neither is better"),
    _card("hot_set_experts_99", "Experts that serve 99 %", "experts", "neither",
          "fewest experts of all layers that take 99 % of assignments"),
)  # fmt: skip
CARDS: tuple[Card, ...] = (*_LOAD, *STEP_CARDS, *SHARE_CARDS, *_COUNTED, *SHIFT_CARDS)


def compute(context: Context) -> list[MetricValue]:
    """Router figures of the rounds of a launch; those of single picks from the first round that kept them."""
    picks = next(
        (found for found in (load_picks(r.path) for r in context.launches[0].rounds) if found is not None), None
    )
    return routing_metrics(context.passes, context.facts, picks)


def routing_metrics(rounds: Sequence[PassTables], facts: ModelFacts, picks: Picks | None = None) -> list[MetricValue]:
    """All router figures of a model.

    Args:
        rounds: passes of one launch with the same traffic.
        facts: what the model is; a dense model gives nulls with that reason.
        picks: every pick of one of the passes, where they were kept.
    """
    found, reason = first_with_routing(rounds), _why_none(facts)
    labels = {"traffic": rounds[0].traffic, "window": "total"} if rounds else {}
    if found is None or reason is not None:
        return [missing(name, reason or "no routing was recorded", **labels, phase=ALL) for name in NAMES]
    tables, routing = found
    values: list[MetricValue] = []
    for phase in (ALL, *PHASES):
        values += _phase_metrics(tables, routing, phase, {**labels, "phase": phase})
    values += _class_metrics(tables, routing, labels) + shift_metrics(tables, routing, labels)
    values += pick_metrics(picks, facts, {**labels, "phase": ALL})
    values += [missing(name, why, **labels, phase=ALL) for name, why in OTHER_RUNS.items()]
    notes = _notes(facts)
    return [replace(v, reasons=(*v.reasons, *notes)) for v in values] if notes else values


def _why_none(facts: ModelFacts) -> str | None:
    if not facts.is_moe:
        return "a dense model has no router"
    if len({layer.num_experts for layer in facts.moe_layers}) > 1:
        return "layers have different numbers of experts; their loads are not comparable"
    return None


def _notes(facts: ModelFacts) -> tuple[str, ...]:
    notes = []
    if facts.routing_policy != "native":
        notes.append(f"routing is not the model's own: {facts.routing_policy}")
    if any(layer.executes_all_experts for layer in facts.moe_layers):
        notes.append("the code runs every expert on every token: chosen is not executed")
    return tuple(notes)


def _phase_metrics(tables: PassTables, routing: Routing, phase: str, labels: dict[str, str]) -> list[MetricValue]:
    own = cell(routing, phase)
    steps = routed_steps(tables, routing, phase)
    if not own.tokens:
        names = (*MEASURES, WORST, *STEP_NAMES, *COUNTED, *(() if phase == ALL else SHARE_NAMES))
        return [missing(name, f"no {phase} tokens were routed", **labels) for name in names]
    units = exchangeable_units(tables, routing, phase)
    values = _load_values(own, units, routing.top_k_L, labels, tuple(MEASURES))
    worst = float(max_over_mean(own.counts_LE).max())
    null = {"uniform": uniform_worst(max_over_mean, routing.num_experts, routing.top_k_L.tolist(), own.tokens)}
    values.append(_jackknifed(WORST, worst, np.empty(0), units, labels, null))
    values += step_metrics(steps, own.counts_LE, own.tokens, steps.kept_counts(routing), labels)
    values += _counted(routing, own, phase, labels)
    if phase != ALL:
        values += share_metrics(steps, labels)
        values += _layer_metrics(routing, own, units, labels)
        values += layer_step_metrics(steps, own.counts_LE, own.tokens, routing.layer_names, labels)
    return values


def _load_values(
    own: Cell, units: Units, top_k_L: IntArray, labels: dict[str, str], names: tuple[str, ...]
) -> list[MetricValue]:
    """Load measures, mean over layers, each with its uniform expectation and jackknife interval."""
    values = []
    rest = units.counts_GLE.sum(axis=0) - units.counts_GLE
    for name in names:
        measure = MEASURES[name]
        value, left = float(measure(own.counts_LE).mean()), measure(rest).mean(axis=-1)
        values.append(_jackknifed(name, value, left, units, labels, _load_null(name, own, top_k_L)))
    return values


def _layer_metrics(routing: Routing, own: Cell, units: Units, labels: dict[str, str]) -> list[MetricValue]:
    values = []
    rest = units.counts_GLE.sum(axis=0) - units.counts_GLE
    for name in LAYER_MEASURES:
        per_layer, left = MEASURES[name](own.counts_LE), MEASURES[name](rest)
        for layer, layer_name in enumerate(routing.layer_names):
            null = _load_null(name, own, routing.top_k_L[layer : layer + 1])
            where = {**labels, "layer": layer_name}
            values.append(_jackknifed(name, float(per_layer[layer]), left[:, layer], units, where, null))
    return values


def _class_metrics(tables: PassTables, routing: Routing, labels: dict[str, str]) -> list[MetricValue]:
    values: list[MetricValue] = []
    if len(routing.class_names) < 2:
        return values
    for phase in PHASES:
        for name in routing.class_names:
            own = cell(routing, phase, name)
            if own.tokens:
                where = {**labels, "phase": phase, "request_class": name}
                units = exchangeable_units(tables, routing, phase, name)
                values += _load_values(own, units, routing.top_k_L, where, (*LAYER_MEASURES, "effective_experts"))
    return values


def _load_null(name: str, own: Cell, top_k_L: IntArray) -> dict[str, float]:
    num_experts, found = own.counts_LE.shape[-1], []
    for top_k in top_k_L.tolist():
        if name == "router_load_cv":
            found.append(uniform_cv(num_experts, top_k, own.tokens))
        elif name == "dead_experts":
            found.append(uniform_dead(num_experts, top_k, own.tokens))
        else:
            found.append(uniform_expectation(MEASURES[name], num_experts, top_k, own.tokens))
    return {"uniform": float(np.mean(found))}


def _jackknifed(
    name: str, value: float, left: FloatArray, units: Units, labels: dict[str, str], null: dict[str, float]
) -> MetricValue:
    if not np.isfinite(value):
        return missing(name, "a layer routed nothing", **labels)
    otherwise = (
        NO_EXTREME if name in EXTREMES else f"no interval: {units.why_not or 'a layer routed nothing elsewhere'}"
    )
    interval = None if name in EXTREMES or units.why_not else load_interval(name, value, left, units)
    return estimated(name, value, interval, otherwise, n=units.num, labels=labels, null=null)


def load_interval(name: str, value: float, left: FloatArray, units: Units) -> Interval | None:
    """Of a load measure of these requests, for more requests like them; ``left``: without each unit."""
    experts = units.counts_GLE.shape[-1]
    most = {"effective_experts": float(experts), "router_load_cv": math.inf}.get(name, 1.0)
    power = 2 if name in ("router_load_cv", "router_gini") else 1  # their squares are smooth at an even load
    return corrected_jackknife_interval(value, left, low=0.0, high=most, power=power)


def _counted(routing: Routing, own: Cell, phase: str, labels: dict[str, str]) -> list[MetricValue]:
    """Figures that are counts: drops, identity picks, the hot set."""
    rows = slice(None) if phase == ALL else slice(PHASES.index(phase), PHASES.index(phase) + 1)
    executed = int(own.counts_LE.sum())
    values = []
    for name, lost in (
        ("realised_drop_ratio", int(routing.dropped_PL[rows].sum())),
        ("identity_pick_ratio", int(routing.identity_PL[rows].sum())),
    ):
        values.append(MetricValue(name=name, value=lost / max(executed + lost, 1), exact=True, labels=labels))
    for percent in (90, 99):
        hot = int(hot_set_experts(own.counts_LE, percent / 100).sum())
        values.append(MetricValue(name=f"hot_set_experts_{percent}", value=hot, exact=True, labels=labels))
    return values
