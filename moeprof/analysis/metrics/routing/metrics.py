"""The router: load, distinct experts, drift, specialisation, by phase, layer and request class (METRICS section 3).

Rounds replay the same tokens, so they add nothing to what is known about the router: figures come from the first round
that has routing counts. The record holds counts per step and window, not per request; intervals leave out one stretch
of time (neighbouring steps or windows) at a time (jackknife), and n is the number of stretches. Extremes have none.
Legend: W windows, P phases, C classes, G stretches, L layers, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from moeprof.analysis.metrics.routing.measures import MEASURES, hot_set_experts, max_over_mean
from moeprof.analysis.metrics.routing.nulls import uniform_cv, uniform_dead, uniform_expectation, uniform_worst
from moeprof.analysis.metrics.routing.picks import PICK_NAMES, pick_metrics
from moeprof.analysis.metrics.routing.shift import Cell, cell, first_with_routing, shift_metrics
from moeprof.analysis.metrics.routing.steps import STEP_NAMES, layer_step_metrics, routed_steps, step_metrics
from moeprof.analysis.metrics.tables import ALL, PassTables
from moeprof.analysis.stats import intervals
from moeprof.analysis.stats.arrays import FloatArray, IntArray
from moeprof.core.metric import MetricValue, missing
from moeprof.core.model_facts import ModelFacts
from moeprof.core.record.layout import PHASES
from moeprof.core.record.picks import Picks
from moeprof.core.record.routing import Routing

MINIMUM_GROUPS = 5
LAYER_MEASURES = ("router_load_max_over_mean", "router_load_cv", "router_entropy_ratio", "dead_experts")
WORST = "router_load_max_over_mean_worst"
# Shares, which cannot leave [0, 1].
BOUNDED = ("router_entropy_ratio", "router_gini", "router_jain", "top_decile_load_ratio")
# Intervals by resampling do not cover these: a balanced router's true maximum (1) lies below every resampled one (the
# jackknife covers it in 5 % of simulated runs, the basic bootstrap in 60 %), and no stretch left out revives an expert.
EXTREMES = ("router_load_max_over_mean", WORST, "dead_experts")
NO_INTERVAL = "no interval: no resampling covers an extreme of counts; compare with the uniform expectation"
OTHER_RUNS = {
    "routing_agreement_ratio": "compares two runs on the same tokens, with every pick recorded (--save-detailed)",
}
COUNTED = ("realised_drop_ratio", "identity_pick_ratio", "hot_set_experts_90", "hot_set_experts_99")
SHIFT = ("router_drift_js", "router_drift_js_p")
NAMES = (*MEASURES, WORST, *STEP_NAMES, *COUNTED, *SHIFT, *PICK_NAMES, *OTHER_RUNS)


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
    values += _class_metrics(routing, labels) + shift_metrics(tables, routing, labels)
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
        names = (*MEASURES, WORST, *STEP_NAMES, *COUNTED)
        return [missing(name, f"no {phase} tokens were routed", **labels) for name in names]
    values = load_values(own, routing.top_k_L, labels, tuple(MEASURES))
    worst = float(max_over_mean(own.counts_LE).max())
    null = {"uniform": uniform_worst(max_over_mean, routing.num_experts, routing.top_k_L.tolist(), own.tokens)}
    values.append(_jackknifed(WORST, worst, np.empty(0), own, labels, null))
    values += step_metrics(steps, own.counts_LE, own.tokens, _kept(routing, steps.rows), labels)
    values += _counted(routing, own, phase, labels)
    if phase != ALL:
        values += _layer_metrics(routing, own, labels)
        values += layer_step_metrics(steps, own.counts_LE, own.tokens, routing.layer_names, labels)
    return values


def _kept(routing: Routing, rows: IntArray) -> IntArray | None:
    """Kept per-step counts of these steps, both phases together, shape [S', L, E]."""
    if routing.step_counts_SPLE is None:
        return None
    rows = rows[rows < len(routing.step_counts_SPLE)]
    kept: IntArray = routing.step_counts_SPLE[rows].sum(axis=1, dtype=np.int64)
    return kept


def load_values(own: Cell, top_k_L: IntArray, labels: dict[str, str], names: tuple[str, ...]) -> list[MetricValue]:
    """Load measures, mean over layers, each with its uniform expectation and jackknife interval."""
    values = []
    rest = own.counts_LE - own.counts_GLE
    for name in names:
        measure = MEASURES[name]
        value, left = float(measure(own.counts_LE).mean()), measure(rest).mean(axis=-1)
        values.append(_jackknifed(name, value, left, own, labels, _load_null(name, own, top_k_L)))
    return values


def _layer_metrics(routing: Routing, own: Cell, labels: dict[str, str]) -> list[MetricValue]:
    values = []
    rest = own.counts_LE - own.counts_GLE
    for name in LAYER_MEASURES:
        per_layer, left = MEASURES[name](own.counts_LE), MEASURES[name](rest)
        for layer, layer_name in enumerate(routing.layer_names):
            null = _load_null(name, own, routing.top_k_L[layer : layer + 1])
            where = {**labels, "layer": layer_name}
            values.append(_jackknifed(name, float(per_layer[layer]), left[:, layer], own, where, null))
    return values


def _class_metrics(routing: Routing, labels: dict[str, str]) -> list[MetricValue]:
    values: list[MetricValue] = []
    if len(routing.class_names) < 2:
        return values
    for phase in PHASES:
        for name in routing.class_names:
            own = cell(routing, phase, name)
            if own.tokens:
                where = {**labels, "phase": phase, "request_class": name}
                values += load_values(own, routing.top_k_L, where, (*LAYER_MEASURES, "effective_experts"))
    return values


def _load_null(name: str, own: Cell, top_k_L: IntArray) -> dict[str, float]:
    num_experts, found = own.counts_GLE.shape[-1], []
    for top_k in top_k_L.tolist():
        if name == "router_load_cv":
            found.append(uniform_cv(num_experts, top_k, own.tokens))
        elif name == "dead_experts":
            found.append(uniform_dead(num_experts, top_k, own.tokens))
        else:
            found.append(uniform_expectation(MEASURES[name], num_experts, top_k, own.tokens))
    return {"uniform": float(np.mean(found))}


def _jackknifed(
    name: str, value: float, left: FloatArray, own: Cell, labels: dict[str, str], null: dict[str, float]
) -> MetricValue:
    if not np.isfinite(value):
        return missing(name, "a layer routed nothing", **labels)
    few = len(left) < MINIMUM_GROUPS
    interval = None if name in EXTREMES or few else intervals.jackknife_interval(value, left, bounded=name in BOUNDED)
    low, high = interval or (None, None)
    why = f"no interval: {len(own.counts_GLE)} stretches of time, {MINIMUM_GROUPS} are needed"
    reasons = () if interval else (NO_INTERVAL if name in EXTREMES else why,)
    return MetricValue(
        name=name,
        value=value,
        n=len(own.counts_GLE),
        ci_low=low,
        ci_high=high,
        labels=labels,
        null=null,
        reasons=reasons,
    )


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
