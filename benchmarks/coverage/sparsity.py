"""Figures of dense against sparse: realised share, dense-equivalent size, crossover, taxes of the ladder."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import numpy as np

from benchmarks.coverage.cells import Cell, holds
from benchmarks.coverage.worlds import SPREAD, autoregressive
from moeprof.analysis.compare.lanes import LaneTimes, lane_offset, lanes_estimate
from moeprof.analysis.metrics.sweep.points import log_ratio_estimate
from moeprof.analysis.sparsity.crossover import crossover_point, find_crossover, pooled_spread
from moeprof.analysis.sparsity.realised import equivalent_of_rounds, realised_of_rounds
from moeprof.analysis.stats.arrays import FloatArray
from moeprof.core.record.lanes import LaneHeader

SIZES = (15, 30, 60, 120, 240)  # million parameters of the dense ladder; cost grows with size to the power 0.9
POWER = 0.9
MOE_SIZE = 55.0
ROUNDS = 5
RUNGS = ("concentrated", "balanced", "recorded")


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
    for spread in (0.02, 0.05):
        yield Cell(
            figure="load at which the MoE stops being cheaper",
            world=f"5 loads, 3 paired rounds that differ by {100 * spread:g} %",
            kind="interval",
            trial=partial(_crossing, spread),
        )
    for offset_sd in (0.0, 0.005, 0.01):
        for num, memory in ((120, 0.0), (18, 0.5)):
            noise = f"AR {memory:g}" if memory else "independent"
            yield Cell(
                figure="tax of a rung of the ladder",
                world=f"lanes off by {100 * offset_sd:g} %, {num} turns, {noise}",
                kind="interval",
                trial=partial(_tax, offset_sd, num, memory),
                note="the noise of turns is counted twice, in the turns and in the offset of lanes",
            )


def _crossing(spread: float, rng: np.random.Generator) -> bool | None:
    """Half the price at 1, twice at 36: on a line of logarithms equal at 6."""
    loads = (1.0, 2.0, 8.0, 16.0, 36.0)
    ratios = [
        np.exp(math.log(load / 6) * math.log(2) / math.log(6) + spread * rng.standard_normal(3)).tolist()
        for load in loads
    ]
    known = pooled_spread(ratios)
    points = [crossover_point(load, log_ratio_estimate(logs, known)) for load, logs in zip(loads, ratios, strict=True)]
    found = find_crossover(points, "concurrency")[1]
    return holds((found.low, found.high), 6.0)


def _ladder(rng: np.random.Generator, offsets: FloatArray, lanes: tuple[str, ...], tokens: float, num: int,
            memory: float) -> LaneTimes:  # fmt: skip
    """Turns of lanes of 10 ms (the last 20): each lane is off by a share of its own, 5 % of noise is its own too."""
    shared = 0.03 * autoregressive(rng, (num,), memory)[:, None]
    own = SPREAD * autoregressive(rng, (len(lanes), num), memory).T
    seconds = np.array([0.010, 0.017, 0.020])[: len(lanes)] if tokens > 1 else np.full(len(lanes), 0.010)
    times = seconds * offsets * np.exp(shared + own)
    return LaneTimes(
        launch=0,
        concurrency=int(tokens),
        lanes=lanes,
        info=tuple(LaneHeader(name=name, rung=name) for name in lanes),
        step_S=np.arange(num) % (num // 3),
        phase_S=np.full(num, "decode"),
        tokens_S=np.full(num, tokens),
        time_SL=times,
        cpu_SL=times,
        queued_SL=np.zeros_like(times),
        distinct_SL=np.full_like(times, tokens),
        set_aside=0,
        taken_SL=np.zeros_like(times, dtype=np.bool_),
    )


def _tax(offset_sd: float, num: int, memory: float, rng: np.random.Generator) -> bool | None:
    """Expert coverage takes 7 of 20 ms; the offset is estimated from the same lanes at one token a step."""
    offsets = 1 + offset_sd * rng.standard_normal(len(RUNGS))
    offset = lane_offset([_ladder(rng, offsets, RUNGS, 1.0, 240, memory)])
    loaded = _ladder(rng, offsets, RUNGS, 8.0, num, memory)
    found = lanes_estimate(
        [loaded.draws("decode")],
        lambda seconds: (seconds["balanced"] - seconds["concentrated"]) / seconds["recorded"],
        offset,
        signed=True,
    )
    return holds((found.low, found.high), 7 / 20)


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
