"""Latency variance by routing: false alarms with nothing there, power at the share that a run says it could show."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from benchmarks.coverage.cells import Cell, holds
from benchmarks.coverage.worlds import SPREAD, autoregressive
from moeprof.analysis.metrics.attribution import ALPHA, Attribution, attribute
from moeprof.analysis.stats.arrays import FloatArray
from tests.helpers.records import draw_step_counts, make_pass, make_routing, make_steps

STEPS, TOKENS, LAYERS, EXPERTS = 200, 8, 2, 16
PHASES = 2
DECODE = 1
PER_EXPERT_S = 20e-6


def cells() -> Iterator[Cell]:
    """All of this file."""
    for rho in (0.0, 0.5, 0.8):
        world = f"{STEPS} decode steps, " + (f"AR {rho:g}" if rho else "independent")
        trial = partial(_alarm, rho)
        yield Cell(figure="variance by routing where there is none", world=world, kind="p-value", trial=trial)
        yield Cell(
            figure="step time per distinct expert",
            world=world,
            kind="interval",
            trial=partial(_slope, rho),
        )
        if rho < 0.8:
            trial = partial(_found, rho)
            yield Cell(figure="variance by routing of the smallest share shown", world=world, kind="power", trial=trial)


def _routing(rng: np.random.Generator) -> FloatArray:
    tokens = np.zeros((STEPS, PHASES), dtype=np.int64)
    tokens[:, DECODE] = TOKENS
    return draw_step_counts(tokens, num_layers=LAYERS, num_experts=EXPERTS, top_k=2, seed=int(rng.integers(2**31)))


def _judged(counts: FloatArray, step_s: FloatArray) -> Attribution:
    steps = make_steps(
        STEPS, step_s=step_s, phase=["decode"] * STEPS, prefill_tokens=[0] * STEPS, decode_tokens=[TOKENS] * STEPS
    )
    return attribute([make_pass(traffic="offline", steps=steps, routing=make_routing(counts))], "decode")


def _slope(rho: float, rng: np.random.Generator) -> bool | None:
    """20 us for each expert that a step touches, summed over layers."""
    counts = _routing(rng)
    distinct = (counts > 0).sum(axis=(1, 2, 3))
    found = _judged(counts, 0.01 * (1 + SPREAD * autoregressive(rng, (STEPS,), rho)) + PER_EXPERT_S * distinct)
    return holds(found.intervals.get("distinct_expert"), PER_EXPERT_S)


def _alarm(rho: float, rng: np.random.Generator) -> bool | None:
    found = _judged(_routing(rng), 0.01 * (1 + SPREAD * autoregressive(rng, (STEPS,), rho)))
    return None if found.p_value is None else found.p_value <= ALPHA


def _found(rho: float, rng: np.random.Generator) -> bool | None:
    """The share that a run without any effect calls its smallest is planted, by way of the distinct experts."""
    counts = _routing(rng)
    noise = autoregressive(rng, (STEPS,), rho)
    share = _judged(counts, 0.01 * (1 + SPREAD * noise)).min_detectable
    if share is None:
        return None
    distinct = (counts > 0).sum(axis=(1, 2, 3)).astype(np.float64)
    effect = (distinct - distinct.mean()) / distinct.std() * np.sqrt(share / (1 - share))
    found = _judged(counts, 0.01 * (1 + SPREAD * (autoregressive(rng, (STEPS,), rho) + effect)))
    return None if found.p_value is None else found.p_value <= ALPHA
