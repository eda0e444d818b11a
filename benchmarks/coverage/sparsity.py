"""Figures of dense against sparse: realised share, dense-equivalent size, crossover, taxes of the ladder."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from benchmarks.coverage.cells import Cell, holds
from moeprof.analysis.sparsity.realised import equivalent_of_rounds, realised_of_rounds
from moeprof.analysis.stats.arrays import FloatArray

SIZES = (15, 30, 60, 120, 240)  # million parameters of the dense ladder; cost grows with size to the power 0.9
POWER = 0.9
MOE_SIZE = 55.0
ROUNDS = 5


def cells() -> Iterator[Cell]:
    """All of this file."""
    for spread in (0.02, 0.05):
        world = f"{ROUNDS} rounds that differ by {100 * spread:g} %"
        for figure, trial in (("realised share of the twins' saving", _realised), ("dense-equivalent size", _equal)):
            yield Cell(figure=figure, world=world, kind="interval", trial=partial(trial, spread))
    yield Cell(
        figure="realised share of the twins' saving",
        world="rounds drift together by 5 %",
        kind="interval",
        trial=partial(_realised, 0.02, together=0.05),
        note="rounds of different models are taken as independent, the safe side where they drift together",
    )


def _rounds(rng: np.random.Generator, cost: float, spread: float, together: FloatArray | float = 0.0) -> list[float]:
    factors = np.exp(spread * rng.standard_normal(ROUNDS) - spread**2 / 2 + together)
    return [float(one) for one in cost * factors]


def _realised(spread: float, rng: np.random.Generator, *, together: float = 0.0) -> bool | None:
    """Total-matched 4, MoE 1.6, active-matched 1: 2.4 of 3 are realised."""
    drift = together * rng.standard_normal(ROUNDS)
    found = realised_of_rounds(*(_rounds(rng, cost, spread, drift) for cost in (4.0, 1.6, 1.0)))
    return holds((found.low, found.high), 0.8)


def _equal(spread: float, rng: np.random.Generator) -> bool | None:
    sizes = [(int(size * 1e6), _rounds(rng, size**POWER, spread)) for size in SIZES]
    found = equivalent_of_rounds(sizes, _rounds(rng, MOE_SIZE**POWER, spread)).params
    return holds((found.low, found.high), MOE_SIZE * 1e6)
