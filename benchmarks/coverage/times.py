"""Figures of time: rounds of a launch, lanes stepped in turn, launches, trends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pandas as pd

from benchmarks.coverage.cells import Cell, holds
from benchmarks.coverage.worlds import HEAVY, IID, INTERRUPTED, MEMORY, ROUNDS, SPREAD, World, autoregressive
from moeprof.analysis.compare.lanes import LaneTimes, pair_median
from moeprof.analysis.metrics.load.interruptions import undisturbed_rounds
from moeprof.analysis.metrics.overhead import overhead_metrics
from moeprof.analysis.metrics.samples import Samples, step_samples, summarise
from moeprof.analysis.metrics.sweep.objectives import goodput
from moeprof.analysis.stats import bootstrap, change_points, intervals
from moeprof.analysis.stats.arrays import FloatArray
from moeprof.analysis.stats.bootstrap import Draws, draw_means
from moeprof.analysis.stats.estimate import Estimate
from moeprof.analysis.stats.trend import TREND_ALPHA, mann_kendall, thin
from moeprof.core.workload.workload import Slo
from tests.helpers.records import make_pass, make_requests, make_steps

STEPS = 300
LANES = ("base", "new")
CHANCES = np.tile([0.99, 0.99, 0.95, 0.9, 0.6, 0.1], 12)


def cells() -> Iterator[Cell]:
    """All of this file."""
    yield from _intervals()
    yield from _tests()


def _intervals() -> Iterator[Cell]:
    for rounds in (3, 5):
        for world in (IID, *ROUNDS, MEMORY):
            trial = partial(_mean_of_rounds, world, rounds)
            yield Cell(figure=f"mean over {rounds} rounds", world=world.name, kind="interval", trial=trial)
    for percentile, requests, rounds in ((50, 72, 3), (50, 72, 5), (99, 700, 5)):
        for world in (IID, *ROUNDS, MEMORY):
            yield Cell(
                figure=f"p{percentile} of {requests} requests, {rounds} rounds",
                world=world.name,
                kind="interval",
                trial=partial(_percentile, world, rounds, percentile, requests),
                note="the interval holds two: of rounds, and of requests" if world is IID else "",
            )
    for world in (IID, MEMORY, HEAVY):
        for figure, statistic in (("ratio of summed steps", _ratio), ("median of step ratios", _median)):
            trial = partial(_lanes, world, statistic)
            yield Cell(figure=f"{figure}, in turn, one launch", world=world.name, kind="interval", trial=trial)
    for rounds in (3, 5):
        yield Cell(
            figure=f"share of {len(CHANCES)} requests within an objective, {rounds} rounds",
            world="requests differ: some nearly always meet it, some hardly ever",
            kind="interval",
            trial=partial(_share, rounds),
            note="some requests nearly always meet it: less is left to chance than a binomial allows",
        )
    yield Cell(
        figure="mean over 5 rounds, disturbed ones set aside",
        world=INTERRUPTED.name,
        kind="interval",
        trial=partial(_interrupted, 5),
    )
    for world in (IID, MEMORY):
        yield Cell(
            figure="what the instruments cost, 300 pairs of steps",
            world=world.name,
            kind="interval",
            trial=partial(_overhead, world),
        )
    for between in (0.005, 0.02):
        yield Cell(
            figure="ratio of summed steps, in turn, 6 launches",
            world=f"launches differ by {100 * between:g} %",
            kind="interval",
            trial=partial(_launches, between),
        )


def _tests() -> Iterator[Cell]:
    for num in (12, 24):
        for rho in (0.0, 0.5):
            yield Cell(
                figure="change points where nothing changed",
                world=f"{num} values, {_memory(rho)}",
                kind="p-value",
                trial=partial(_change_point, num, rho),
                note="a series that remembers moves by itself; the text says so" if rho else "",
                is_claimed=not rho,
                error=change_points.ALPHA,
            )
    for rho in (0.0, 0.5, 0.9):
        yield Cell(
            figure="trend of step time (no steady state)",
            world=f"{STEPS} steps, {_memory(rho)}",
            kind="p-value",
            trial=partial(_trend, rho),
            note="a steady window is refused too often, never granted" if rho == 0.9 else "",
        )


def _memory(rho: float) -> str:
    return f"AR {rho:g}" if rho else "independent"


def _mean_of_rounds(world: World, rounds: int, rng: np.random.Generator) -> bool | None:
    wall, _ = world.factors(rng, rounds, STEPS)
    return holds(intervals.mean_interval(wall.mean(axis=1)), world.mean)


def _percentile(world: World, rounds: int, percentile: float, requests: int, rng: np.random.Generator) -> bool | None:
    """Rounds replay the same requests; each round times them anew."""
    wall, _ = world.factors(rng, rounds, requests)
    units = np.arange(requests, dtype=np.int64)
    samples = [Samples(values=own, weights=np.ones(requests), units=units) for own in wall]
    (found,) = summarise("ttft", samples, {}, missing_reason="", percentiles=(percentile,))[1:]
    return holds((found.ci_low, found.ci_high), world.percentile(percentile))


def _share(rounds: int, rng: np.random.Generator) -> bool | None:
    """Of all requests that might be sent: each has a chance of its own to meet the objective."""
    chances = rng.choice(CHANCES, size=len(CHANCES))
    passes = [
        make_pass(requests=make_requests(len(chances), ttft_s=np.where(rng.random(len(chances)) < chances, 0.1, 0.9)))
        for _ in range(rounds)
    ]
    found = goodput(passes, Slo(ttft_s=0.5), {})
    return holds((found.ci_low, found.ci_high), float(np.mean(CHANCES)))


def _interrupted(rounds: int, rng: np.random.Generator) -> bool | None:
    wall, cpu = INTERRUPTED.factors(rng, rounds, STEPS)
    passes = [
        make_pass(steps=make_steps(STEPS, step_s=0.01 * w, cpu_s=0.01 * c)) for w, c in zip(wall, cpu, strict=True)
    ]
    kept, _ = undisturbed_rounds(passes)
    samples = [step_samples(tables, None, "decode") for tables in kept]
    found = summarise("step", samples, {}, missing_reason="", percentiles=(50.0,))[0]
    return holds((found.ci_low, found.ci_high), 0.01 * INTERRUPTED.mean)


def _overhead(world: World, rng: np.random.Generator) -> bool | None:
    """Instruments that cost nothing."""
    (bare, watched), _ = world.factors(rng, 2, STEPS)
    table = pd.DataFrame(
        {
            "phase": "decode",
            "bare_s": bare,
            "instrumented_s": watched,
            "bare_cpu_s": bare,
            "instrumented_cpu_s": watched,
        }
    )
    found = overhead_metrics([table])[0]
    return holds((found.ci_low, found.ci_high), 1.0)


def _lanes(world: World, statistic: Callable[[FloatArray], Estimate], rng: np.random.Generator) -> bool | None:
    """Two lanes of equal work, stepped in turn: the truth is 1."""
    times, _ = world.factors(rng, 2, STEPS)
    return _holds(statistic(times.T), 1.0)


def _drawn(times_SL: FloatArray) -> Draws:
    return draw_means(LANES, times_SL, np.arange(len(times_SL)))


def _ratio(times_SL: FloatArray) -> Estimate:
    return bootstrap.estimate_of([_drawn(times_SL)], lambda seconds: seconds["new"] / seconds["base"])


def _median(times_SL: FloatArray) -> Estimate:
    return pair_median([_lane_times(times_SL)], "new", "base", None)


def _lane_times(times_SL: FloatArray) -> LaneTimes:
    num = len(times_SL)
    nothing = np.full_like(times_SL, np.nan)
    return LaneTimes(
        launch=0,
        concurrency=None,
        lanes=LANES,
        info=(),
        step_S=np.arange(num, dtype=np.int64),
        phase_S=np.full(num, "decode", dtype=np.str_),
        tokens_S=np.ones(num),
        time_SL=times_SL,
        cpu_SL=times_SL,
        queued_SL=nothing,
        distinct_SL=nothing,
        set_aside=0,
        taken_SL=np.zeros(times_SL.shape, dtype=np.bool_),
    )


def _launches(between: float, rng: np.random.Generator) -> bool | None:
    """Six launches of two lanes of equal work; each lane of each launch has a factor of its own."""
    parts = []
    for _ in range(6):
        times, _ = IID.factors(rng, 2, 60)
        parts.append(_drawn((times * np.exp(between * rng.standard_normal((2, 1)))).T))
    return _holds(bootstrap.estimate_of(parts, lambda seconds: seconds["new"] / seconds["base"]), 1.0)


def _holds(found: Estimate, truth: float) -> bool | None:
    return holds((found.low, found.high), truth)


def _change_point(num: int, rho: float, rng: np.random.Generator) -> bool:
    return bool(change_points.change_points(np.exp(SPREAD * autoregressive(rng, (num,), rho)).tolist()))


def _trend(rho: float, rng: np.random.Generator) -> bool:
    return mann_kendall(thin(1 + SPREAD * autoregressive(rng, (STEPS,), rho))).p_value <= TREND_ALPHA
