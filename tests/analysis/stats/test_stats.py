from __future__ import annotations

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from moeprof.analysis.stats import intervals
from tests.helpers.shared_data import shared


def test_minimum_samples_are_those_of_the_contract() -> None:
    assert intervals.MINIMUM_SAMPLES == {50.0: 11, 90.0: 64, 95.0: 130, 99.0: 662, 99.9: 6636}


def test_a_percentile_label_holds_no_dot() -> None:
    assert [intervals.percentile_label(p) for p in (50.0, 99.9)] == ["p50", "p99_9"]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 4)), min_size=1), st.floats(0, 100))
def test_weighted_percentiles_equal_those_of_the_repeated_values(pairs: list[tuple[int, int]], p: float) -> None:
    values = np.array([float(v) for v, _ in pairs])
    weights = np.array([float(w) for _, w in pairs])
    expected = np.percentile(np.repeat(values, weights.astype(int)), p, method="linear")
    assert intervals.weighted_percentiles(values, weights, [p])[0] == pytest.approx(expected)


def test_the_interval_of_two_rounds_is_wide_and_of_one_round_is_none() -> None:
    # the standard error is 1.4142 / 1.4142 = 1, t of one degree 12.706, so the factor is exp(12.706 / 10)
    assert intervals.mean_interval([9.0, 11.0]) == pytest.approx((10 / 3.563, 10 * 3.563), rel=1e-3)
    assert intervals.mean_interval([9.0]) is None
    assert intervals.mean_interval([]) is None


def test_close_rounds_have_the_plain_t_interval_and_negative_values_always_do() -> None:
    half = 4.3027 * 0.01 / np.sqrt(3)
    assert intervals.mean_interval([9.99, 10.0, 10.01]) == pytest.approx((10 - half, 10 + half), rel=1e-5)
    assert intervals.mean_interval([-0.01, 0.0, 0.01]) == pytest.approx((-half, half), rel=1e-4)


def test_equal_rounds_have_an_interval_without_width() -> None:
    assert intervals.mean_interval([1.0, 1.0, 1.0], bounded=True) == (1.0, 1.0)
    assert intervals.mean_interval([0.0, 0.0]) == (0.0, 0.0)
    low, high = intervals.mean_interval([0.1, 0.1, 0.1]) or (0.0, 0.0)
    assert low == high == pytest.approx(0.1)


@given(st.lists(st.floats(0, 1).map(lambda x: round(x, 6)), min_size=2, max_size=8).filter(any), st.booleans())
def test_an_interval_never_leaves_the_range_of_the_quantity_and_holds_the_mean(v: list[float], bounded: bool) -> None:
    low, high = intervals.mean_interval(v, bounded=bounded) or (-1.0, -1.0)
    assert 0 < low <= np.mean(v) * (1 + 1e-12)
    assert np.mean(v) <= high * (1 + 1e-12)
    assert not bounded or high <= 1


def test_a_share_that_is_not_one_is_taken_as_not_bounded() -> None:
    assert intervals.mean_interval([0.9, 1.1], bounded=True) == intervals.mean_interval([0.9, 1.1])


@pytest.mark.parametrize(("spread", "bounded"), [(0.1, False), (0.5, False), (0.5, True)])
def test_the_interval_of_three_rounds_covers_the_mean_in_ninety_five_percent(spread: float, bounded: bool) -> None:
    rng = np.random.default_rng(0)
    if bounded:  # shares around 0.976
        drawn, mean = rng.beta(80, 2, size=(1_000, 3)), 80 / 82
    else:
        drawn, mean = rng.lognormal(0, spread, size=(1_000, 3)), np.exp(spread**2 / 2)
    found = [intervals.mean_interval(row, bounded=bounded) or (0.0, 0.0) for row in drawn]
    assert sum(low <= mean <= high for low, high in found) >= 925


def test_bootstrap_intervals_cover_a_known_median_and_mean() -> None:
    covered_median = covered_mean = 0
    for seed in range(100):
        values = np.random.default_rng(seed).exponential(size=400)
        sample = intervals.BlockSample(values=values, weights=np.ones(400), blocks=intervals.blocks_of(400))
        medians = intervals.bootstrap_percentiles(sample, [50.0], seed)
        mean = intervals.bootstrap_mean(sample, seed)
        assert medians is not None and mean is not None
        low, high = intervals.percentile_interval(medians[:, 0])
        covered_median += low <= np.log(2) <= high
        covered_mean += mean[0] <= 1 <= mean[1]
    assert covered_median >= 86
    assert covered_mean >= 86


def test_binned_bootstrap_percentiles_lie_near_the_true_ones_of_a_large_sample() -> None:
    values = np.random.default_rng(0).exponential(size=200_000)
    sample = intervals.BlockSample(values=values, weights=np.ones(len(values)), blocks=intervals.blocks_of(len(values)))
    drawn = intervals.bootstrap_percentiles(sample, [50.0, 99.9])
    assert drawn is not None
    assert np.median(drawn, axis=0) == pytest.approx(np.percentile(values, [50, 99.9]), rel=0.01)


def test_few_blocks_give_no_bootstrap_interval() -> None:
    sample = intervals.BlockSample(values=np.ones(4), weights=np.ones(4), blocks=np.arange(4))
    assert intervals.bootstrap_mean(sample) is None
    assert intervals.bootstrap_percentiles(sample, [50.0]) is None


def test_batch_means_cover_the_mean_of_a_correlated_series() -> None:
    covered = 0
    for seed in range(100):
        noise = np.random.default_rng(seed).normal(size=1_500)
        series = np.convolve(noise, np.ones(5), mode="valid")  # each value shares four fifths with the next
        low, high = intervals.block_mean_interval(series) or (0.0, 0.0)
        covered += low <= 0 <= high
    assert covered >= 88


def test_the_jackknife_of_a_mean_is_the_t_interval_of_it() -> None:
    groups = np.array([1.0, 2.0, 3.0, 6.0])
    without = intervals.leave_group_out(groups, lambda total: float(total) / 3)
    assert intervals.jackknife_interval(3.0, without) == pytest.approx(intervals.mean_interval(groups))


def test_a_line_through_exact_points_is_found_and_a_flat_x_is_refused() -> None:
    assert intervals.linear_fit([0, 1, 2], [1, 3, 5]) == intervals.LinearFit(intercept=1.0, slope=2.0, r2=1.0)
    assert intervals.linear_fit([1, 1, 1], [1, 3, 5]) is None


def test_published_kernel_times_are_linear_in_distinct_experts() -> None:
    for table in yaml.safe_load(shared("kernels/fused_moe_tables.yaml").read_text())["tables"]:
        experts, share = table["num_experts"], table["top_k"] / table["num_experts"]
        distinct = [experts * (1 - (1 - share) ** batch) for batch in table["batch_sizes"]]
        fit = intervals.linear_fit(distinct, table["time_us"])
        assert fit is not None
        assert fit.intercept == pytest.approx(table["fit"]["intercept_us"], abs=0.06)
        assert fit.slope == pytest.approx(table["fit"]["slope_us_per_expert"], abs=0.06)
        assert fit.r2 == pytest.approx(table["fit"]["r2"], abs=1e-4)
        if "r2_against_batch_size" in table["fit"]:
            against = intervals.linear_fit(table["batch_sizes"], table["time_us"])
            assert against is not None
            assert against.r2 == pytest.approx(table["fit"]["r2_against_batch_size"], abs=0.01)
