"""Ratios of prices of one side: the split of mixed steps is in them, and what it leaves open is not claimed."""

from __future__ import annotations

import pytest

from moeprof.analysis.compare.split_prices import within_split
from moeprof.analysis.metrics.cost.bounds import SplitBounds, bounds_by_figure
from moeprof.analysis.stats.estimate import Ratio
from moeprof.core.metric import MetricValue

BETTER = Ratio(value=0.9, low=0.89, high=0.91, n=3, verdict="better", reason="told")


def bounds(low: float, high: float, method: str = "calibration") -> SplitBounds:
    return SplitBounds(low=low, high=high, method=method)


def test_prices_split_by_different_methods_cannot_be_told_apart_inside_their_bounds() -> None:
    # 0.9 at the figures themselves; the reference 10 % lower makes 1, so up to 0.9 * 1.2 / 0.9 = 1.2 is possible.
    told = within_split(BETTER, bounds(0.9, 1.1), bounds(0.8, 1.2, "roofline"))
    assert told.verdict == "cannot tell"
    assert (told.low, told.high) == pytest.approx((0.9 * 0.8 / 1.1, 0.9 * 1.2 / 0.9))
    assert told.reason == (
        "mixed steps were split by roofline against calibration: by that alone it may be from 0.655 to 1.2"
    )


def test_a_difference_beyond_the_bounds_is_told_with_an_interval_that_holds_them() -> None:
    far = Ratio(value=0.343, low=0.338, high=0.349, n=3, verdict="better", reason="told")
    told = within_split(far, bounds(0.072 / 0.103, 0.134 / 0.103, "roofline"), bounds(0.0275 / 0.0353, 0.0432 / 0.0353))
    assert told.verdict == "better"
    assert (told.low, told.high) == pytest.approx((0.343 * 0.779 / 1.301, 0.343 * 1.2238 / 0.699), rel=1e-3)


def test_one_method_errs_alike_on_both_sides() -> None:
    alike = within_split(BETTER, bounds(0.5, 1.5), bounds(0.5, 1.5))
    assert alike == BETTER
    apart = within_split(BETTER, bounds(0.5, 1.0), bounds(0.5, 1.2))  # 0.9 * 1.2 where both stand at their upper end
    assert (apart.low, apart.high, apart.verdict) == (0.89, pytest.approx(1.08), "cannot tell")


def test_no_difference_is_shown_only_where_the_bounds_stay_within_the_floor() -> None:
    same = Ratio(value=1.0, low=0.99, high=1.01, n=3, verdict="no difference shown", reason="within")
    near = within_split(same, bounds(1, 1, "pure"), bounds(0.98, 1.02), floor_ratio=0.05)
    far = within_split(same, bounds(1, 1, "pure"), bounds(0.9, 1.1), floor_ratio=0.05)
    assert (near.verdict, near.low, near.high) == ("no difference shown", 0.98, 1.02)
    assert (far.verdict, far.low, far.high) == ("cannot tell", 0.9, 1.1)


def test_a_price_that_may_be_nothing_leaves_its_ratio_without_an_upper_end() -> None:
    told = within_split(BETTER, bounds(0.0, 2.0, "roofline"), bounds(0.9, 1.1))
    assert (told.verdict, told.low, told.high) == ("cannot tell", None, None)
    assert told.reason is not None and told.reason.endswith("it may be from 0.405 without end")


def test_figures_that_are_not_split_keep_their_ratio() -> None:
    assert within_split(BETTER, None, bounds(0.5, 2.0)) == BETTER
    untold = Ratio(value=0.9, verdict="cannot tell", reason="two rounds")
    assert within_split(untold, bounds(0.9, 1.1), bounds(0.8, 1.2, "run")) == untold


def test_bounds_are_read_off_the_metrics_that_a_run_or_a_baseline_has() -> None:
    def value(name: str, number: float, **labels: str) -> MetricValue:
        return MetricValue(name=name, value=number, labels={"traffic": "offline", **labels})

    values = [
        value("usd_per_1m_input_tokens", 2.0),
        value("usd_per_1m_input_tokens_low", 1.0),
        value("usd_per_1m_input_tokens_high", 3.0),
        value("usd_per_1m_input_tokens_busy", 1.8),
        value("usd_per_1m_total_tokens", 5.0),
        value("mixed_steps_ratio", 0.4, split_method="roofline"),
    ]
    found = {name: bounds for (name, _), bounds in bounds_by_figure(values).items()}
    assert found["usd_per_1m_input_tokens"] == bounds(0.5, 1.5, "roofline")
    assert found["usd_per_1m_input_tokens_busy"] == bounds(0.5, 1.5, "roofline")
    assert found["usd_per_1m_input_tokens_low"] == bounds(1.0, 3.0, "roofline")
    assert "usd_per_1m_total_tokens" not in found
    assert bounds_by_figure([value("usd_per_1m_input_tokens", 2.0)]) == {}  # of before there were bounds
