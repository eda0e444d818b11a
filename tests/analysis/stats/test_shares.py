"""Intervals of shares: binomial over what is independent, and per cent on pages."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from moeprof.analysis.stats.intervals import binomial_interval, clustered_share_interval, share_interval
from moeprof.core import units


@pytest.mark.parametrize(("met", "of", "low"), [(72, 72, 0.950), (71, 71, 0.949), (8, 8, 0.631), (300, 300, 0.988)])
def test_all_of_n_is_never_known_to_be_all(met: int, of: int, low: float) -> None:
    assert binomial_interval(met, of) == (pytest.approx(low, abs=6e-4), 1.0)


def test_none_of_eight_may_be_a_third() -> None:
    assert binomial_interval(0, 8) == (0.0, pytest.approx(0.369, abs=6e-4))


@given(st.integers(1, 400), st.data())
def test_whole_numbers_give_scipys_exact_interval(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    exact = binomtest(successes, trials).proportion_ci(0.95, method="exact")
    assert binomial_interval(successes, trials) == pytest.approx((exact.low, exact.high), abs=1e-9)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("requests", [8, 72, 400])
def test_the_binomial_interval_covers_at_least_95_per_cent(share: float, requests: int) -> None:
    counts = np.arange(requests + 1)
    covered = [low <= share <= high for low, high in (binomial_interval(k, requests) for k in counts.tolist())]
    assert float(binom.pmf(counts, requests, share) @ np.array(covered)) >= 0.95


def test_tokens_that_stand_or_fall_with_their_request_count_as_one() -> None:
    """30 of 40 requests agree in all of their 10 tokens: that is 30 of 40, not 300 of 400."""
    parts = np.where(np.arange(40) < 30, 10.0, 0.0)
    low, high = clustered_share_interval(parts, np.full(40, 10.0)) or (0.0, 0.0)
    assert (low, high) == pytest.approx(binomial_interval(30, 40), abs=0.02)


def test_independent_tokens_count_each() -> None:
    agreed = np.random.default_rng(0).binomial(10, 0.75, 400).astype(float)
    low, high = clustered_share_interval(agreed, np.full(400, 10.0)) or (0.0, 0.0)
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.75 * 0.25 / 4000), rel=0.15)


def test_requests_that_all_agree_are_one_trial_each() -> None:
    assert clustered_share_interval(np.full(72, 16.0), np.full(72, 16.0)) == binomial_interval(72, 72)
    assert clustered_share_interval(np.zeros(0), np.zeros(0)) is None


@pytest.mark.parametrize("requests", [8, 72])
def test_the_interval_of_clustered_shares_covers(requests: int) -> None:
    """Requests whose own shares differ (beta with mean 0.9), 16 tokens each."""
    rng, covered = np.random.default_rng(3), 0
    for _ in range(800):
        agreed = rng.binomial(16, rng.beta(9, 1, requests)).astype(float)
        low, high = clustered_share_interval(agreed, np.full(requests, 16.0)) or (1.0, 0.0)
        covered += low <= 0.9 <= high
    assert covered >= 0.94 * 800


def test_rounds_join_the_interval_and_never_narrow_it() -> None:
    assert share_interval((0.95, 1.0), [1.0, 1.0, 1.0]) == (0.95, 1.0)
    assert share_interval((0.3, 0.5), [0.4]) == (0.3, 0.5)
    low, high = share_interval((0.35, 0.45), [0.3, 0.4, 0.5])
    assert (low, high) == pytest.approx((0.4 - 4.303 * 0.1 / 3**0.5, 0.4 + 4.303 * 0.1 / 3**0.5), abs=1e-4)
    assert share_interval((0.9, 1.0), [1.0, 0.8]) == (0.0, 1.0)  # two rounds: t of one degree is 12.7


def test_shares_are_per_cent_on_pages_and_their_differences_are_points() -> None:
    assert units.display(1.0, "share") == "100 %"
    assert units.display(0.417, "share") == "41.7 %"
    assert units.interval(binomial_interval(72, 72)[0], 1.0, "share") == "95 \u2013 100 %"
    assert units.difference(0.05, "share") == "5 points"
    assert units.difference(0.05, "s") == "50 ms"
    assert units.axis_scale("share", 1.0) == (0.01, "%")
