"""Verdicts of `moeprof regress`: wrong ones where nothing changed, and changes that are found."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from benchmarks.coverage.cells import Cell
from benchmarks.coverage.worlds import autoregressive
from moeprof.analysis.regress.verdict import judge_gates
from moeprof.analysis.stats import power
from moeprof.analysis.stats.arrays import FloatArray
from moeprof.analysis.stats.verdicts import LOCKSTEP_FLOOR_RATIO, Sample

STORED_FLOOR_RATIO = 0.10
MOST_PAIRS = 40


def cells() -> Iterator[Cell]:
    """All of this file."""
    for spread in (0.01, 0.05):
        for tails in ("normal", "t3"):
            world = f"nothing changed, {tails}, pairs differ by {100 * spread:g} %"
            trial = partial(_alarm, spread, tails)
            yield Cell(figure="two gates, 6 launch pairs: false worse", world=world, kind="verdict", trial=trial)
    yield Cell(
        figure="two gates, 6 launch pairs: false worse",
        world="nothing changed, pairs remember (AR 0.5), differ by 3 %",
        kind="verdict",
        trial=partial(_alarm, 0.03, "AR"),
        is_claimed=False,
        note="the page doubts pairs whose lag-1 correlation is above 0.5",
    )
    for between in (0.0, 0.02):
        world = "nothing changed, launches differ by 3 %" + (
            f", the two days by {100 * between:g} %" if between else ""
        )
        yield Cell(
            figure="stored run, 6 against 6 launches: false worse",
            world=world,
            kind="verdict",
            trial=partial(_stored, between),
        )
    yield Cell(
        figure="6 launch pairs: no difference shown, and there is one",
        world="a change of exactly the floor (1.5 %), pairs differ by 1 %",
        kind="verdict",
        trial=partial(_missed, 0.01),
    )
    yield Cell(
        figure="--until-precise: no difference shown, and there is one",
        world="a change of exactly the floor (1.5 %), pairs differ by 1 %",
        kind="verdict",
        trial=partial(_missed_until_precise, 0.01),
    )
    for change, spread in ((0.03, 0.005), (0.03, 0.01)):
        world = f"{100 * change:g} % slower, pairs differ by {100 * spread:g} %"
        trial = partial(_found, change, spread)
        yield Cell(figure="6 launch pairs: a slowdown is found", world=world, kind="power", trial=trial)


def _sample(logs: FloatArray) -> Sample:
    return Sample(logs=tuple(logs.tolist()), floor_ratio=LOCKSTEP_FLOOR_RATIO, n=f"{len(logs)} pairs")


def _noise(rng: np.random.Generator, num: int, spread: float, tails: str) -> FloatArray:
    if tails == "t3":
        return np.asarray(spread * rng.standard_t(3, num) / np.sqrt(3), dtype=np.float64)
    return spread * autoregressive(rng, (num,), 0.5 if tails == "AR" else 0.0)


def _alarm(spread: float, tails: str, rng: np.random.Generator) -> bool:
    gates = {i: _sample(_noise(rng, 6, spread, tails)) for i in range(2)}
    return any(ratio.verdict == "worse" for ratio in judge_gates(gates).values())


def _stored(between: float, rng: np.random.Generator) -> bool:
    sides = [0.03 * rng.standard_normal(6) + between * rng.standard_normal() for _ in range(2)]
    sample = Sample(
        logs=tuple(sides[0].tolist()), against=tuple(sides[1].tolist()), floor_ratio=STORED_FLOOR_RATIO, n="6 launches"
    )
    return judge_gates({0: sample})[0].verdict == "worse"


def _missed(spread: float, rng: np.random.Generator) -> bool:
    logs = np.log1p(LOCKSTEP_FLOOR_RATIO) + _noise(rng, 6, spread, "normal")
    return judge_gates({0: _sample(logs)})[0].verdict == "no difference shown"


def _missed_until_precise(spread: float, rng: np.random.Generator) -> bool | None:
    logs = np.log1p(LOCKSTEP_FLOOR_RATIO) + _noise(rng, MOST_PAIRS + 1, spread, "normal")
    stop = next((n for n in range(6, MOST_PAIRS) if power.enough(logs[:n].tolist(), LOCKSTEP_FLOOR_RATIO)), None)
    return (
        None
        if stop is None
        else judge_gates({0: _sample(logs[: stop + 1])}, until_precise=True)[0].verdict == "no difference shown"
    )


def _found(change: float, spread: float, rng: np.random.Generator) -> bool:
    logs = np.log1p(change) + _noise(rng, 6, spread, "normal")
    return judge_gates({0: _sample(logs)})[0].verdict == "worse"
