"""Figures of the router: drift and specialisation where nothing moves, load intervals against the planted popularity.

Requests differ in which experts they like, and last as long as many windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from benchmarks.coverage.cells import Cell, holds
from moeprof.analysis.metrics.routing.measures import MEASURES
from moeprof.analysis.metrics.routing.metrics import load_interval
from moeprof.analysis.metrics.routing.shift import drift_by_phase, specialisation_by_phase
from moeprof.analysis.metrics.routing.units import exchangeable_units
from tests.helpers.planted_traffic import planted_traffic, popularity

EXPERTS, ALPHA = 16, 0.05
SLOPE = 0.5  # of the popularity: the busiest expert has three times the share of the last
WORLDS = {"requests differ much": 3.0, "requests differ little": 100.0}
FIGURES = ("router_load_cv", "router_entropy_ratio", "router_gini", "effective_experts")


def cells() -> Iterator[Cell]:
    """All of this file."""
    for name, alike in WORLDS.items():
        world = f"64 requests of about 64 tokens, {name}"
        for figure, trial in (("drift of the router, p", _drift), ("distance between request classes, p", _classes)):
            yield Cell(figure=figure, world=f"nothing moves, {world}", kind="p-value", trial=partial(trial, alike))
    for name, alike in WORLDS.items():
        for figure in FIGURES:
            world = f"48 requests of about 24 tokens, {name}"
            yield Cell(figure=figure, world=world, kind="interval", trial=partial(_load, figure, alike, SLOPE))


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


def _drift(alike: float, rng: np.random.Generator) -> bool | None:
    tables = planted_traffic(_seed(rng), alike=alike)
    assert tables.routing is not None, "it was planted"
    found = drift_by_phase(tables, tables.routing)[-1][0].p_value
    return None if found is None else found <= ALPHA


def _classes(alike: float, rng: np.random.Generator) -> bool | None:
    tables = planted_traffic(_seed(rng), alike=alike, class_names=("a", "b"))
    assert tables.routing is not None, "it was planted"
    found = specialisation_by_phase(tables, tables.routing)[-1][0].p_between
    return None if found is None else found <= ALPHA


def _load(figure: str, alike: float, slope: float, rng: np.random.Generator) -> bool | None:
    """The truth is that of the popularity around which requests were drawn."""
    tables = planted_traffic(_seed(rng), slope=slope, alike=alike, num_requests=48, output_tokens=24)
    assert tables.routing is not None, "it was planted"
    units, measure = exchangeable_units(tables, tables.routing, "decode"), MEASURES[figure]
    whole = units.counts_GLE.sum(axis=0)
    left = measure(whole - units.counts_GLE).mean(axis=-1)
    found = load_interval(figure, float(measure(whole).mean()), left, units)
    return holds(found, float(measure(1e9 * popularity(EXPERTS, slope))))
