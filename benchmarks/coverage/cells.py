"""A cell, what its trials say, and whether that meets its target."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["interval", "p-value", "verdict", "power"]
Trial = Callable[[np.random.Generator], bool | None]
NOMINAL = {"interval": 0.95, "p-value": 0.05, "verdict": 0.01, "power": 0.80}
LEAST_COVERED, MOST_COVERED = 0.92, 0.98
LEAST_FIRED, MOST_FIRED = 0.03, 0.07
MOST_WRONG = 0.01
LEAST_POWER = 0.70


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One figure in one world.

    Attributes:
        figure: as a page calls it, and how it was measured.
        world: what the noise is.
        kind: what a trial's answer means: the truth lay in the interval; p was at most 0.05 (nothing there, or for
            ``power`` something); the verdict was wrong.
        trial: one trial; None where the product gave no interval, no p, no verdict.
        note: why a figure outside its target is expected here, and what a page says of it.
        is_claimed: False in a world for which the page says that the interval does not hold.
        error: nominal error of a p-value that is not judged at 5 %.
    """

    figure: str
    world: str
    kind: Kind
    trial: Trial
    note: str = ""
    is_claimed: bool = True
    error: float | None = None

    @property
    def nominal(self) -> float:
        """Share of trials that should answer yes, or at most for a p-value and a verdict."""
        return NOMINAL[self.kind] if self.error is None else self.error


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """What the trials of a cell came to."""

    cell: Cell
    trials: int
    hits: int
    silent: int

    @property
    def answered(self) -> int:
        """Trials with an interval, a p or a verdict."""
        return self.trials - self.silent

    @property
    def share(self) -> float | None:
        """Of the trials with an answer; None without any."""
        return self.hits / self.answered if self.answered else None

    @property
    def error(self) -> float | None:
        """Monte Carlo standard error of the share."""
        if self.share is None:
            return None
        return math.sqrt(max(self.share * (1 - self.share), 1 / self.answered) / self.answered)

    @property
    def outcome(self) -> str:
        """``met``, or which side of the target it lies on, by more than two Monte Carlo errors."""
        share, error = self.share, self.error
        if share is None or error is None:
            return "never answers"
        slack = 2 * error
        if self.cell.kind == "interval":
            low, high, names = LEAST_COVERED, MOST_COVERED, ("too narrow", "conservative")
        elif self.cell.kind == "p-value":
            scale = self.cell.nominal / NOMINAL["p-value"]
            low, high, names = scale * LEAST_FIRED, scale * MOST_FIRED, ("conservative", "fires too often")
        elif self.cell.kind == "power":
            low, high, names = LEAST_POWER, 1.0, ("too weak", "")
        else:
            low, high, names = 0.0, MOST_WRONG, ("", "wrong too often")
        if share + slack < low:
            return names[0]
        return names[1] if share - slack > high else "met"


def run(cell: Cell, trials: int, seed: int) -> Reached:
    """All trials of a cell; trial i of a seed is the same whatever else runs."""
    hits, silent = 0, 0
    for rng in np.random.default_rng(seed).spawn(trials):
        found = cell.trial(rng)
        hits, silent = hits + bool(found), silent + (found is None)
    return Reached(cell=cell, trials=trials, hits=hits, silent=silent)


def holds(interval: tuple[float | None, float | None] | None, truth: float) -> bool | None:
    """Whether an interval holds the truth; None where there is none."""
    if interval is None or interval[0] is None or interval[1] is None:
        return None
    return interval[0] <= truth <= interval[1]
