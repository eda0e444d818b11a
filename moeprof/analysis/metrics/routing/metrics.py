"""The router: load, distinct experts, drift, specialisation, by phase, layer and request class.

Rounds replay the same tokens, so they add nothing to what is known about the router: figures come from the first round
that has routing counts. The record holds counts per step and window, not per request; intervals leave out one stretch
of time (neighbouring steps or windows) at a time (jackknife), and n is the number of stretches. Extremes have none.
Legend: W windows, P phases, C classes, G stretches, L layers, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from moeprof.analysis.metrics.cards import card_for
from moeprof.analysis.metrics.context import Context
from moeprof.analysis.metrics.routing.measures import MEASURES, hot_set_experts, max_over_mean
from moeprof.analysis.metrics.routing.nulls import uniform_cv, uniform_dead, uniform_expectation, uniform_worst
from moeprof.analysis.metrics.routing.picks import PICK_NAMES, pick_metrics
from moeprof.analysis.metrics.routing.shift import SHIFT_CARDS, Cell, cell, first_with_routing, shift_metrics
from moeprof.analysis.metrics.routing.steps import (
    STEP_CARDS,
    STEP_NAMES,
    layer_step_metrics,
    routed_steps,
    step_metrics,
)
from moeprof.analysis.metrics.tables import ALL, PassTables
from moeprof.analysis.stats import intervals
from moeprof.analysis.stats.arrays import FloatArray, IntArray
from moeprof.core.metric import Card, MetricValue, Place, estimated, missing
from moeprof.core.model_facts import ModelFacts
from moeprof.core.record.layout import PHASES
from moeprof.core.record.picks import Picks, load_picks
from moeprof.core.record.routing import Routing

MINIMUM_GROUPS = 5
LAYER_MEASURES = ("router_load_max_over_mean", "router_load_cv", "router_entropy_ratio", "dead_experts")
WORST = "router_load_max_over_mean_worst"
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

_card = partial(Card, section="routing", source="docs/metrics.md#router", kind="routing", from_routing=True)
_LOAD: tuple[Card, ...] = (
    _card("router_load_max_over_mean", "Busiest expert over mean", "ratio", "lower",
          "max n_e / mu over the window, mean over layers; at most E/k", source="MaxVio + 1 (arXiv 2408.15664)",
          screen=(Place(110, "router load in decode, max / mean", phase="decode"),),
          gates=(Place(130, "+0.2", phase="prefill"), Place(140, "+0.2", phase="decode")),
          baseline=(Place(130, phase="decode"),)),
    _card("router_load_max_over_mean_worst", "Busiest expert over mean, worst layer", "ratio", "lower",
          "max n_e / mu over the window, largest of the layers; null: the largest of as many uniform layers",
          source="MaxVio + 1 (arXiv 2408.15664)"),
    _card("router_load_cv", "Load CV", "ratio", "lower", "population std(n) / mu, mean over layers",
          source="Shazeer et al. 2017"),
    _card("router_entropy_ratio", "Load entropy", "ratio", "higher", "-sum q ln q / ln E, mean over layers",
          source="Shannon 1948, over its largest value", bounded=True,
          screen=(Place(130, "router entropy in decode", phase="decode"),)),
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
    _card("hot_set_experts_90", "Experts that serve 90 %", "experts", "lower",
          "fewest experts of all layers that take 90 % of assignments"),
    _card("hot_set_experts_99", "Experts that serve 99 %", "experts", "lower",
          "fewest experts of all layers that take 99 % of assignments"),
)  # fmt: skip
CARDS: tuple[Card, ...] = (*_LOAD, *STEP_CARDS, *_COUNTED, *SHIFT_CARDS)


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
    interval = (
        None if name in EXTREMES or few else intervals.jackknife_interval(value, left, bounded=card_for(name).bounded)
    )
    why = f"no interval: {len(own.counts_GLE)} stretches of time, {MINIMUM_GROUPS} are needed"
    otherwise = NO_INTERVAL if name in EXTREMES else why
    return estimated(name, value, interval, otherwise, n=len(own.counts_GLE), labels=labels, null=null)


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
