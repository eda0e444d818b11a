"""Drift and specialisation as metrics, and the load shares that a heat map draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moeprof.analysis.metrics.routing_cells import cell, first_with_routing, time_groups
from moeprof.analysis.metrics.routing_load import max_over_mean, shares
from moeprof.analysis.metrics.routing_nulls import uniform_expectation
from moeprof.analysis.metrics.routing_shift import (
    MINIMUM_GROUPS,
    Drift,
    Specialisation,
    drift,
    group_windows,
    specialisation,
)
from moeprof.analysis.tables import ALL, FloatArray, IntArray, PassTables, column
from moeprof.core.metric import MetricValue, missing
from moeprof.core.record import PHASES
from moeprof.core.routing_counts import Routing

NO_INTERVAL = "no interval: judged against its nulls, see its p"
CANNOT_JUDGE = f"cannot tell: fewer than {MINIMUM_GROUPS} stretches of time to shuffle"


def drift_by_phase(tables: PassTables, routing: Routing, seed: int = 0) -> tuple[Drift, ...]:
    """Drift of all tokens, of prefill, and of decode."""
    starts, found = column(tables.steps, "start_s"), []
    for phase in (ALL, *PHASES):
        groups, first_step = time_groups(routing, phase)
        known = first_step < len(starts)  # a killed pass may have lost its last steps
        found.append(drift(phase, groups[known], starts[first_step[known]], seed))
    return tuple(found)


def specialisation_by_phase(routing: Routing, seed: int = 0) -> tuple[Specialisation, ...]:
    """Specialisation in prefill and in decode, where at least two classes have tokens."""
    found = []
    for row, phase in enumerate(PHASES):
        groups, _ = group_windows(routing.counts_WPCLE[:, row])
        result = specialisation(phase, routing.class_names, groups, seed)
        if result is not None:
            found.append(result)
    return tuple(found)


def shift_metrics(tables: PassTables, routing: Routing, labels: dict[str, str], seed: int = 0) -> list[MetricValue]:
    """``router_drift_js``, ``domain_specialisation`` and ``domain_total_variation``, each with its p."""
    values: list[MetricValue] = []
    for moved in drift_by_phase(tables, routing, seed):
        where, num = {**labels, "phase": moved.phase}, len(moved.window_js)
        if moved.halves_js is None:
            names = ("router_drift_js", "router_drift_js_p")
            values += [
                missing(name, f"{num} stretches of time with tokens; drift needs two", **where) for name in names
            ]
            continue
        values += _pair("router_drift_js", moved.halves_js, moved.p_value, moved.null_js, num, where)
    for found in specialisation_by_phase(routing, seed):
        where = {**labels, "phase": found.phase}
        for i, name in enumerate(found.class_names):
            null = {key: float(chance[i]) for key, chance in found.null_against_pool_C.items()}
            value = float(found.against_pool_C[i])
            p_value = None if found.p_against_pool_C is None else float(found.p_against_pool_C[i])
            values += _pair("domain_specialisation", value, p_value, null, None, {**where, "request_class": name})
        pairs = np.triu_indices(len(found.class_names), k=1)
        null = {key: float(chance[pairs].mean()) for key, chance in found.null_between_CC.items()}
        mean = float(found.between_CC[pairs].mean())
        values += _pair("domain_total_variation", mean, found.p_between, null, None, where)
    return values


def _pair(
    name: str, value: float, p_value: float | None, null: dict[str, float], n: int | None, labels: dict[str, str]
) -> list[MetricValue]:
    """A distance and its p; without a p the distance stands, and says that nothing can be claimed from it."""
    if p_value is None:
        alone = MetricValue(name=name, value=value, n=n, labels=labels, null=null, reasons=(CANNOT_JUDGE,))
        return [alone, missing(f"{name}_p", CANNOT_JUDGE, **labels)]
    return [
        MetricValue(name=name, value=value, n=n, labels=labels, null=null, reasons=(NO_INTERVAL,)),
        MetricValue(name=f"{name}_p", value=p_value, n=n, exact=True, labels=labels),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadShares:
    """One heat map: the share of each layer's assignments that each expert took.

    Attributes:
        phase: ``all``, ``prefill`` or ``decode``.
        request_class: ``all`` or one class.
        layer_names: rows.
        counts_LE: assignments.
        shares_LE: counts over the layer's sum; NaN in a layer without any.
        tokens: tokens behind them.
        uniform_share: 1/E.
        uniform_max_over_mean_L: max/mean of each layer by chance, for as many tokens.
    """

    phase: str
    request_class: str
    layer_names: tuple[str, ...]
    counts_LE: IntArray
    shares_LE: FloatArray
    tokens: int
    uniform_share: float
    uniform_max_over_mean_L: FloatArray


def load_shares(rounds: Sequence[PassTables]) -> tuple[LoadShares, ...]:
    """Heat maps of the first round with routing: each phase with all classes, then each phase and class."""
    found = first_with_routing(rounds)
    if found is None:
        return ()
    routing = found[1]
    classes = (ALL, *routing.class_names) if len(routing.class_names) > 1 else (ALL,)
    maps = []
    for request_class in classes:
        for phase in (ALL, *PHASES):
            own = cell(routing, phase, request_class)
            if own.tokens:
                maps.append(_heat_map(routing, phase, request_class, own.counts_LE, own.tokens))
    return tuple(maps)


def _heat_map(routing: Routing, phase: str, request_class: str, counts_LE: IntArray, tokens: int) -> LoadShares:
    experts = routing.num_experts
    chance = [uniform_expectation(max_over_mean, experts, k, tokens) for k in routing.top_k_L.tolist()]
    return LoadShares(
        phase=phase,
        request_class=request_class,
        layer_names=routing.layer_names,
        counts_LE=counts_LE,
        shares_LE=shares(counts_LE),
        tokens=tokens,
        uniform_share=1 / experts,
        uniform_max_over_mean_L=np.array(chance),
    )
