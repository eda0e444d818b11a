"""Lock-step lanes: ratios of planted step times, their intervals, and what is set aside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from moeprof.analysis.compare.lanes import LaneTimes, lane_times, pair_median, pair_ratio
from moeprof.analysis.stats.bootstrap import draw_means, estimate_of, launch_estimate, linear_estimate
from moeprof.analysis.stats.estimate import Estimate
from moeprof.core.errors import RecordError
from tests.helpers.lane_records import lane, write_lanes

Array = npt.NDArray[np.float64]


def noise(num: int, rng: np.random.Generator, sd: float, memory: float = 0.5) -> Array:
    """AR(1) with this standard deviation."""
    draws = rng.normal(0, sd * np.sqrt(1 - memory**2), num + 50)
    series = np.zeros(num + 50)
    for i in range(1, num + 50):
        series[i] = memory * series[i - 1] + draws[i]
    return series[50:]


def ratio(seconds: dict[str, float]) -> float:
    return seconds["b"] / seconds["a"]


def both_ratios(times: list[LaneTimes], phase: str | None = None) -> tuple[Estimate, Estimate]:
    """Of sums, and the median of steps."""
    return pair_ratio(times, "b", "a", phase), pair_median(times, "b", "a", phase)


def test_twice_the_time_is_a_ratio_of_two_without_width(tmp_path: Path) -> None:
    times = [lane_times(write_lanes(tmp_path, {"a": 0.010, "b": 0.020}))]
    for told in both_ratios(times, "decode"):
        assert (told.value, told.low, told.high, told.n) == pytest.approx((2, 2, 2, 120))
    assert (times[0].set_aside, times[0].concurrency) == (0, 8)


def test_a_few_very_slow_steps_move_the_ratio_of_sums_and_not_the_median(tmp_path: Path) -> None:
    slow = np.full(120, 0.010)
    slow[::40] = 0.410  # 3 of 120 steps: the mean doubles, (117 * 10 + 3 * 410) / 120 = 20 ms
    of_sums, median = both_ratios([lane_times(write_lanes(tmp_path, {"a": 0.010, "b": slow}))])
    assert of_sums.value == pytest.approx(2.0)
    assert median.value == pytest.approx(1.0)


def test_phases_are_told_apart_and_none_means_all(tmp_path: Path) -> None:
    phases = ["prefill"] * 10 + ["decode"] * 30
    b = np.tile([0.030] * 10 + [0.010] * 30, 3)
    times = [lane_times(write_lanes(tmp_path, {"a": 0.010, "b": b}, phase=phases))]
    values = [pair_ratio(times, "b", "a", phase).value for phase in ("prefill", "decode", None)]
    assert values == pytest.approx([3.0, 1.0, 1.5])


def test_a_turn_interrupted_in_one_lane_is_set_aside_in_all(tmp_path: Path) -> None:
    wall = np.full(120, 0.010)
    wall[:12] = 1.0
    times = lane_times(write_lanes(tmp_path, {"a": 0.010, "b": wall}, cpu_s={"b": 0.010}))
    assert times.set_aside == 12
    told = pair_ratio([times], "b", "a", None)
    assert (told.value, told.n) == pytest.approx((1.0, 108))


def test_where_the_host_waits_for_a_device_nothing_is_set_aside(tmp_path: Path) -> None:
    times = lane_times(write_lanes(tmp_path, {"a": 0.010, "b": 0.020}, cpu_s={"a": 0.001, "b": 0.001}))
    assert times.set_aside == 0


def test_a_turn_that_was_cut_off_and_a_cycle_that_was_cut_short_do_not_count(tmp_path: Path) -> None:
    lane_pass = write_lanes(tmp_path, {"a": 0.010, "b": 0.020}, num_steps=10, num_cycles=5)
    table = lane_pass.table
    last = table["cycle"] == 4
    lane_pass.__dict__["table"] = table[
        ~(last & (table["step"] > 5)) & ~((table["step"] == 2) & (table["lane"] == "b"))
    ]
    times = lane_times(lane_pass)
    assert len(times.time_SL) == 4 * 9


def test_a_lane_that_did_a_step_twice_is_a_damaged_table(tmp_path: Path) -> None:
    lane_pass = write_lanes(tmp_path, {"a": 0.010})
    lane_pass.__dict__["table"] = lane_pass.table.assign(step=0)
    with pytest.raises(RecordError, match="the same step of a cycle twice"):
        lane_times(lane_pass)


def test_a_measurement_that_was_killed_at_once_has_no_figures(tmp_path: Path) -> None:
    path = write_lanes(tmp_path, {"a": 0.01, "b": 0.01}, num_cycles=0).path
    times = lane_times(type(write_lanes(tmp_path / "x", {"a": 0.01}))(path))
    for told in both_ratios([times]):
        assert (told.value, told.n, told.reason) == (None, None, "no steps were measured")


def test_a_handful_of_steps_has_a_value_and_no_interval(tmp_path: Path) -> None:
    times = [lane_times(write_lanes(tmp_path, {"a": 0.010, "b": 0.020}, num_steps=9, num_cycles=1))]
    of_sums, median = both_ratios(times)
    assert of_sums.value == pytest.approx(2.0)
    assert of_sums.low is None
    assert of_sums.reason == median.reason == "9 steps: no interval with fewer than 10"


def test_what_a_step_computes_is_no_noise_when_it_is_repeated() -> None:
    content = np.linspace(0.001, 0.1, 50)
    step = np.tile(np.arange(50), 4)
    time = np.stack([np.tile(content, 4), np.tile(content[::-1], 4)], axis=1)
    told = estimate_of([draw_means(("a", "b"), time, step)], ratio)
    assert (told.low, told.high) == pytest.approx((1.0, 1.0))
    once = estimate_of([draw_means(("a", "b"), time[:50], step[:50])], ratio)
    assert once.low is not None and once.low < 0.9  # one cycle cannot know


@pytest.mark.parametrize(("num_cycles", "memory"), [(1, 0.5), (2, 0.5), (6, 0.5), (6, 0.8)])
def test_the_interval_covers_the_planted_ratio(num_cycles: int, memory: float) -> None:
    rng, held, num, runs = np.random.default_rng(1), 0, 300, 400
    content = 0.01 * (1 + (np.arange(num) % (num // num_cycles)) / num if num_cycles > 1 else np.ones(num))
    step = np.arange(num) % (num // num_cycles)
    for _ in range(runs):
        both = 1 + noise(num, rng, 0.2, 0.9)  # the machine's own weather
        a = content * both * (1 + noise(num, rng, 0.05, memory))
        b = 1.03 * content * both * (1 + noise(num, rng, 0.05, memory))
        told = estimate_of([draw_means(("a", "b"), np.stack([a, b], axis=1), step)], ratio)
        assert told.low is not None and told.high is not None
        held += told.low <= 1.03 <= told.high
    assert 0.90 <= held / runs <= 0.99


def test_a_model_against_itself_stays_within_the_floor(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    both = 0.01 * (1 + noise(600, rng, 0.1, 0.9))
    seconds = {name: both * (1 + noise(600, rng, 0.02)) for name in ("a", "b")}
    for told in both_ratios([lane_times(write_lanes(tmp_path, seconds, num_steps=100, num_cycles=6))], "decode"):
        assert told.low is not None and told.high is not None
        assert 0.985 < told.low <= 1 <= told.high < 1.015


def test_several_launches_are_the_unit_of_repetition(tmp_path: Path) -> None:
    passes = [write_lanes(tmp_path, {"a": 0.01, "b": 0.01 * r}, launch=i) for i, r in enumerate((1.99, 2.0, 2.01))]
    of_sums, median = both_ratios([lane_times(one) for one in passes], "decode")
    half = 4.3027 * 0.01 / np.sqrt(3)  # Student's t of two degrees
    assert of_sums.value == pytest.approx(2.0)
    assert (of_sums.low, of_sums.high) == pytest.approx((2 - half, 2 + half), rel=1e-3)
    assert of_sums.n == median.n == 3


def test_a_figure_of_either_sign_takes_no_logarithm_over_launches() -> None:
    told = launch_estimate([0.1, 0.5, 3.0], signed=True)
    assert told.low is not None and told.low < 0 < 1.2 == told.value
    positive = launch_estimate([1.0, 1.5, 2.0])
    assert positive.low is not None and positive.low > 0


def test_two_launches_have_no_interval() -> None:
    told = launch_estimate([1.0, 2.0])
    assert (told.value, told.low, told.high) == (1.5, None, None)
    assert told.reason == "no interval: two launches that differ by 100 %; about 4 launches needed"


def test_a_figure_that_does_not_exist_says_so(tmp_path: Path) -> None:
    times = [lane_times(write_lanes(tmp_path, {"a": 0.01}))]
    told = estimate_of([one.draws(None) for one in times], lambda _: None)
    assert (told.value, told.reason) == (None, "the figure does not exist for the times that were measured")


def test_two_means_of_three_rounds_differ_by_welch() -> None:
    told = linear_estimate([(1.0, [9.0, 10.0, 11.0]), (-1.0, [4.0, 5.0, 6.0])])
    half = 2.7764 * np.sqrt(2 / 3)  # four degrees of freedom
    assert (told.value, told.low, told.high) == pytest.approx((5, 5 - half, 5 + half), rel=1e-4)
    assert linear_estimate([(1.0, [1.0]), (-1.0, [2.0])]).reason == "no interval: one round; 3 or more rounds needed"
    assert linear_estimate([(1.0, [1.0, 1.0, 1.0])]) == Estimate(value=1.0, low=1.0, high=1.0, n=3)


def test_lanes_keep_the_order_of_their_description(tmp_path: Path) -> None:
    described: list[dict[str, Any]] = [lane("b"), lane("a")]
    times = lane_times(write_lanes(tmp_path, {"a": 0.01, "b": 0.02}, lanes=described))
    assert times.lanes == ("b", "a")
    assert times.time_SL[0].tolist() == [0.02, 0.01]
