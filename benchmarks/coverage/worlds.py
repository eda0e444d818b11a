"""Worlds of noise: what a machine does to times, with a known truth.

Noise is a factor on time. A *round* replays the same requests, a *launch* is a fresh process. Legend: R rounds or
launches, N requests or steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from moeprof.analysis.stats.arrays import FloatArray

SPREAD = 0.05  # of one step or request, standard deviation of the logarithm


def autoregressive(rng: np.random.Generator, shape: tuple[int, ...], rho: float) -> FloatArray:
    """Standard normal noise along the last axis with lag-1 autocorrelation ``rho``."""
    from scipy.signal import lfilter

    drive = rng.standard_normal(shape) * np.sqrt(1 - rho**2)
    drive[..., 0] = rng.standard_normal(shape[:-1])
    return np.asarray(lfilter([1.0], [1.0, -rho], drive, axis=-1), dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """How times vary.

    Attributes:
        name: in the table.
        between_rounds: standard deviation of the logarithm of a round's own factor.
        rho: lag-1 autocorrelation of steps within a round.
        is_heavy: steps have Student's t with three degrees of freedom instead of a normal.
        interrupted: share of rounds in which the machine took the processor away: 30 % more wall time, none of it
            processor time.
    """

    name: str
    between_rounds: float = 0.0
    rho: float = 0.0
    is_heavy: bool = False
    interrupted: float = 0.0

    def factors(self, rng: np.random.Generator, rounds: int, num: int) -> tuple[FloatArray, FloatArray]:
        """Factors on wall time and on processor time, both of shape [R, N], about 1."""
        if self.rho:
            noise = autoregressive(rng, (rounds, num), self.rho)
        elif self.is_heavy:
            noise = rng.standard_t(3, (rounds, num)) / np.sqrt(3)
        else:
            noise = rng.standard_normal((rounds, num))
        own = self.between_rounds * rng.standard_normal((rounds, 1))
        cpu = np.maximum(1 + SPREAD * noise, 0.1) if self.is_heavy else np.exp(SPREAD * noise + own)
        hit = rng.random((rounds, 1)) < self.interrupted
        return cpu * np.where(hit, 1.3, 1.0), cpu

    @property
    def mean(self) -> float:
        """Expectation of a factor without interruptions."""
        return 1.0 if self.is_heavy else math.exp((SPREAD**2 + self.between_rounds**2) / 2)

    def percentile(self, percentile: float) -> float:
        """Of the factors of a round, the middle of rounds."""
        from scipy.special import ndtri

        return math.exp(SPREAD * float(ndtri(percentile / 100)))


IID = World(name="independent")
ROUNDS = tuple(World(name=f"rounds differ by {100 * sd:g} %", between_rounds=sd) for sd in (0.02, 0.05, 0.10))
MEMORY = World(name="steps remember (AR 0.9)", rho=0.9)
HEAVY = World(name="heavy tails (t3)", is_heavy=True)
INTERRUPTED = World(name="one round in five interrupted", between_rounds=0.02, interrupted=0.2)
