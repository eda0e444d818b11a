from __future__ import annotations

from itertools import accumulate

import numpy as np
import pytest

from moeprof.analysis.metrics.load.steady import Steady, find_steady
from moeprof.analysis.metrics.tables import PassTables
from moeprof.analysis.stats.trend import mann_kendall, mser_cut, thin
from tests.helpers.queues import CAPACITY_PER_S, open_queue
from tests.helpers.records import make_pass, make_requests, make_steps

STEPS = 1_200


def planted(seed: int, *, ramp_steps: int = 0, drift: float = 0.0, load_drift: float = 0.0) -> PassTables:
    """1,200 steps of about 10 ms; in flight rises to 20 over the ramp, then wanders (correlated) around 20."""
    rng = np.random.default_rng(seed)
    wander = np.zeros(STEPS)
    for i in range(1, STEPS):
        wander[i] = 0.9 * wander[i - 1] + rng.normal(scale=0.5)
    level = 20 * np.minimum(1, (np.arange(STEPS) + 1) / max(ramp_steps, 1))
    in_flight = np.maximum(1, np.round(level * (1 + load_drift * np.arange(STEPS) / STEPS) + wander)).astype(int)
    time_s = (0.005 + 0.00025 * in_flight) * (1 + 0.03 * rng.normal(size=STEPS))
    time_s *= 1 + drift * np.arange(STEPS) / STEPS
    steps = make_steps(STEPS, step_s=time_s, decode_tokens=in_flight, num_requests=in_flight)
    total_s = float(time_s.sum())
    requests = make_requests(
        60, arrival_s=np.linspace(0, 0.95 * total_s, 60), ttft_s=0.02, itl_s=0.01, output_tokens=20
    )
    return make_pass(requests=requests, steps=steps)


def test_a_plateau_after_a_ramp_is_found_and_the_ramp_is_cut() -> None:
    found = [find_steady(planted(seed, ramp_steps=300)) for seed in range(20)]
    windows = [steady.window_s for steady in found if steady.window_s is not None]
    assert len(windows) >= 16, [steady.reason for steady in found]
    end_of_ramp_s = 300 * 0.0075  # the mean step of the ramp is 0.005 + 0.00025 * 10
    assert min(start for start, _ in windows) > 0.75 * end_of_ramp_s
    assert max(end for _, end in windows) <= 0.96 * STEPS * 0.0102


def test_a_machine_that_slows_down_has_no_steady_state() -> None:
    for seed in range(20):
        steady = find_steady(planted(seed, drift=0.2))
        assert steady.window_s is None
        assert steady.reason is not None and "step time at equal load changes by +" in steady.reason


def growing(seed: int, *, drift: float = 0.0, rising: bool = True) -> PassTables:
    """8-token decode steps of 10 ms and, from context 1,000 on, up to 4 ms more at 4,000; ``rising`` or at random."""
    rng = np.random.default_rng(seed)
    context = np.linspace(1_000, 4_000, STEPS)
    context = context if rising else rng.permutation(context)
    time_s = (0.01 + 0.004 * (context - 1_000) / 3_000) * (1 + 0.01 * rng.normal(size=STEPS))
    time_s *= 1 + drift * np.arange(STEPS) / STEPS
    time_s[5] = 1.0  # one hiccup at the smallest context
    steps = make_steps(STEPS, step_s=time_s, decode_tokens=8, num_requests=8, context_tokens=context.astype(int))
    arrival_s = np.linspace(0, 0.95 * float(time_s.sum()), 60)
    requests = make_requests(60, arrival_s=arrival_s, ttft_s=0.02, itl_s=0.01, output_tokens=20)
    return make_pass(requests=requests, steps=steps)


def test_steps_that_take_longer_because_contexts_grow_are_no_trend() -> None:
    for seed in range(10):
        steady = find_steady(growing(seed))
        assert steady.window_s is not None, steady.reason


def test_a_machine_that_slows_down_is_seen_whatever_the_contexts() -> None:
    for seed in range(10):
        steady = find_steady(growing(seed, drift=0.1, rising=False))
        assert "step time at equal load changes by +" in (steady.reason or "")


def test_a_queue_that_grows_has_no_steady_state() -> None:
    found = [find_steady(planted(seed, load_drift=1.0)) for seed in range(10)]
    assert all(steady.window_s is None for steady in found)
    assert all("requests in flight" in (steady.reason or "") for steady in found)


def test_steady_traffic_is_seldom_refused() -> None:
    refused: list[Steady] = [s for seed in range(60) if (s := find_steady(planted(seed))).window_s is None]
    assert len(refused) <= 6, [steady.reason for steady in refused]  # 10 %


def test_too_few_steps_and_one_single_batch_are_refused_with_their_reasons() -> None:
    short = make_pass(requests=make_requests(4), steps=make_steps(40))
    assert find_steady(short).reason == "no steady state: 26 steps between ramp and tail, 100 are needed"
    at_once = make_pass(requests=make_requests(4, arrival_s=[0, 0, 0, 0]), steps=make_steps(40))
    assert find_steady(at_once).reason == "no steady state: every request had started before the first one ended"


@pytest.mark.parametrize(("correlation", "limit"), [(0.0, 0.07), (0.6, 0.08), (0.9, 0.12)])
def test_correlated_noise_is_seldom_called_a_trend(correlation: float, limit: float) -> None:
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(300):
        noise = rng.normal(size=1_000).tolist()
        series = np.array(list(accumulate(noise, lambda before, new: correlation * before + new)))
        alarms += mann_kendall(thin(100 + series)).p_value < 0.05
    assert alarms / 300 <= limit


def test_mann_kendall_finds_a_rising_line_and_its_change() -> None:
    trend = mann_kendall(10 + 0.02 * np.arange(100.0))  # from 10 to 12: the median is 11
    assert trend.p_value < 1e-6
    assert trend.change_ratio == pytest.approx(2 / 11, rel=0.01)
    assert mann_kendall(np.ones(50)).p_value == 1.0


def test_mser_cuts_where_the_level_changes_and_refuses_what_never_settles() -> None:
    rng = np.random.default_rng(0)
    step = np.concatenate([np.zeros(100), np.full(400, 10.0)]) + rng.normal(scale=0.1, size=500)
    assert mser_cut(step) == 100
    assert mser_cut(np.arange(500.0)) is None


@pytest.mark.parametrize(("rate_per_s", "num"), [(320, 400), (300, 1_500), (200, 400)])
def test_an_open_loop_that_brings_more_than_150_a_second_to_an_engine_of_150_has_no_steady_state(
    rate_per_s: float, num: int
) -> None:
    for seed in range(8):
        steady = find_steady(open_queue(rate_per_s, num, seed))
        assert steady.window_s is None
        assert "requests arrived faster than they were served" in (steady.reason or "")


@pytest.mark.parametrize("num", [400, 1_500])
def test_seven_per_cent_too_much_is_mostly_refused(num: int) -> None:
    refused = [find_steady(open_queue(160, num, seed)).window_s is None for seed in range(16)]
    assert sum(refused) >= 13


@pytest.mark.parametrize("load", [0.3, 0.5, 0.8])
def test_queues_that_are_stable_keep_their_steady_state(load: float) -> None:
    found = [find_steady(open_queue(load * CAPACITY_PER_S, 400, seed)) for seed in range(24)]
    assert sum(steady.window_s is not None for steady in found) >= 19, [steady.reason for steady in found]


def test_the_steady_window_of_an_open_loop_ends_at_the_last_arrival() -> None:
    """One request a second until 9 s, the last three wait for a place until 12 s; 10 ms steps all along."""
    arrival_s = np.minimum(np.arange(13.0), 9.0)
    waits = make_requests(13, arrival_s=arrival_s, queue_s=np.arange(13.0) - arrival_s, ttft_s=3.1, itl_s=0.0)
    for traffic, end_s in (("open", 9.0), ("closed", 12.0)):
        tables = make_pass(requests=waits, steps=make_steps(1_400), traffic=traffic)  # type: ignore[arg-type]
        window_s = find_steady(tables).window_s
        assert window_s is not None and window_s[1] == pytest.approx(end_s, abs=0.011)
