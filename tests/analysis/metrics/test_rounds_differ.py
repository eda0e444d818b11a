"""Intervals of rounds that differ: planted truth, and the rule for few or very different rounds."""

from __future__ import annotations

import numpy as np
import pytest

from moeprof.analysis.metrics.samples import Samples, summarise
from moeprof.analysis.stats import intervals
from moeprof.analysis.stats.arrays import FloatArray

TRIALS = 150


def noise(generator: np.random.Generator, num: int, memory: float) -> FloatArray:
    """Standard normal, each value remembering the one before."""
    drawn = generator.standard_normal(num)
    for i in range(1, num):
        drawn[i] = memory * drawn[i - 1] + np.sqrt(1 - memory**2) * drawn[i]
    return drawn


@pytest.mark.parametrize(("spread", "memory"), [(0.0, 0.0), (0.02, 0.0), (0.05, 0.0), (0.10, 0.0), (0.0, 0.9)], ids=str)
def test_the_median_of_rounds_that_differ_is_covered(spread: float, memory: float) -> None:
    """The true median is 1 s. Resampling requests alone covers 94, 87, 77, 54 and 66 % of these worlds."""
    generator, held = np.random.default_rng(7), 0
    for _ in range(TRIALS):
        rounds = []
        for _ in range(3):
            logs = 0.3 * noise(generator, 72, memory) + spread * generator.standard_normal()
            rounds.append(Samples(values=np.exp(logs), weights=np.ones(72), units=np.arange(72)))
        p50 = summarise("ttft", rounds, {}, missing_reason="", percentiles=(50.0,))[1]
        held += p50.ci_low is not None and p50.ci_high is not None and p50.ci_low <= 1.0 <= p50.ci_high
    assert held >= 0.90 * TRIALS  # 95 %, less three Monte Carlo errors


def test_the_interval_of_a_median_holds_the_medians_of_its_rounds() -> None:
    """Rounds of 5.0, 5.5 and 6.0 s, each without any spread of its own."""
    rounds = [Samples(values=np.full(20, s), weights=np.ones(20), units=np.arange(20)) for s in (5.0, 5.5, 6.0)]
    p50 = summarise("ttft", rounds, {}, missing_reason="", percentiles=(50.0,))[1]
    factor = np.exp(4.3027 * (0.5 / 5.5) / np.sqrt(3))  # sd 0.5 around 5.5, two degrees of freedom
    assert (p50.value, p50.ci_low, p50.ci_high) == pytest.approx((5.5, 5.5 / factor, 5.5 * factor), rel=1e-4)


@pytest.mark.parametrize(
    ("rounds", "reason"),
    [
        ([2.0], "no interval: one round; 3 or more rounds needed"),
        ([2.0, 2.0], "no interval: two rounds that agree; 3 or more rounds needed"),
        ([1.0, 1.1], "no interval: two rounds that differ by 10.0 %; 3 or more rounds needed"),
        ([1.0, 2.66], "no interval: two rounds that differ by 166 %; about 4 rounds needed"),
        ([5.5, 5.92, 13.1], "no interval: 3 rounds that differ by 138 %; about 4 rounds needed"),
        ([0.0, 0.0, 1.0], "no interval: 3 rounds that differ (0 to 1); about 12 rounds needed"),
    ],
)
def test_few_or_very_different_rounds_have_no_interval_and_say_how_many_would(rounds: list[float], reason: str) -> None:
    assert intervals.repeated_interval(rounds) == (None, reason)


def test_three_rounds_that_differ_little_have_one() -> None:
    found, reason = intervals.repeated_interval([9.99, 10.0, 10.01])
    assert found == intervals.mean_interval([9.99, 10.0, 10.01]) and reason is None


def test_a_small_share_keeps_an_interval_that_is_narrow_in_itself() -> None:
    """0.001 to 0.03 is thirtyfold and yet says that hardly any; 0.05 to 0.9 says nothing."""
    assert not intervals.is_too_wide((0.001, 0.03), bounded=True)
    assert intervals.is_too_wide((0.05, 0.9), bounded=True)
    assert intervals.is_too_wide((0.001, 0.03))
