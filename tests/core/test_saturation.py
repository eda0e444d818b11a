"""When a queue grows without bound: planted queues whose fate is known."""

from __future__ import annotations

import numpy as np
import pytest

from moeprof.core.record.saturation import judge, judge_requests, longest_queue
from moeprof.core.trace import FloatArray
from tests.helpers.records import make_requests


def fifo(arrival_s: FloatArray, service_s: float) -> FloatArray:
    """When one server that takes requests in order has finished each."""
    finished, free_s = [], 0.0
    for arrival in arrival_s.tolist():
        free_s = max(free_s, arrival) + service_s
        finished.append(free_s)
    return np.array(finished)


def shared(arrival_s: FloatArray, service_s: float) -> FloatArray:
    """When a server that works on all requests at once, ever slower, has finished each (processor sharing)."""
    left = dict(enumerate([service_s] * len(arrival_s)))
    inside: list[int] = []
    finished = np.zeros(len(arrival_s))
    now_s, step_s, following = 0.0, service_s / 50, 0
    while left:
        while following < len(arrival_s) and arrival_s[following] <= now_s:
            inside.append(following)
            following += 1
        for row in list(inside):
            left[row] -= step_s / len(inside)
            if left[row] <= 0:
                finished[row] = now_s + step_s
                inside.remove(row)
                del left[row]
        now_s += step_s
    return finished


def poisson(number: int, rate: float, seed: int) -> FloatArray:
    gaps = np.random.default_rng(seed).exponential(1.0, number)
    starts: FloatArray = np.concatenate([[0.0], np.cumsum(gaps[:-1])]) * (number / rate / gaps.sum())
    return starts


def verdict(arrival_s: FloatArray, finished_s: FloatArray) -> bool | None:
    return judge(arrival_s, finished_s, float(finished_s.max())).saturated


def test_requests_that_come_half_as_fast_as_they_are_served_do_not_saturate() -> None:
    arrival_s = np.arange(40.0)
    assert verdict(arrival_s, fifo(arrival_s, 0.5)) is False


def test_requests_that_come_twice_as_fast_as_they_are_served_saturate() -> None:
    arrival_s = np.arange(60.0) / 2
    found = judge(arrival_s, fifo(arrival_s, 1.0), 60.0)
    assert found.saturated is True
    # t0 = 29.5 / 3 s: 40 of 60 arrive after it, one a second is served until 29.5 s.
    assert found.reason.startswith("20 of 40 requests were served while the last 19.7 s of them arrived")
    assert "the queue grew by 20" in found.reason


def test_an_engine_that_serves_all_at_once_ever_slower_saturates_as_well() -> None:
    arrival_s = np.arange(60.0) / 2
    assert verdict(arrival_s, shared(arrival_s, 1.0)) is True
    assert verdict(arrival_s, shared(arrival_s, 0.3)) is False


def test_a_slow_but_wide_engine_is_not_saturated() -> None:
    """Every request takes 5 s whatever the others do: the first 5 s fill the system, then it stays so."""
    arrival_s = poisson(200, 4.0, seed=3)
    assert verdict(arrival_s, arrival_s + 5.0) is False


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_chance_seldom_looks_like_saturation(load: float) -> None:
    runs = [poisson(64, 1.0, seed) for seed in range(60)]
    assert sum(verdict(arrival_s, fifo(arrival_s, load)) is True for arrival_s in runs) <= 1


@pytest.mark.parametrize(("load", "least"), [(1.5, 55), (2.0, 60)])
def test_overload_is_seen(load: float, least: int) -> None:
    runs = [poisson(64, 1.0, seed) for seed in range(60)]
    assert sum(verdict(arrival_s, fifo(arrival_s, load)) is True for arrival_s in runs) >= least


def test_a_burst_at_the_end_is_not_growth() -> None:
    arrival_s = np.concatenate([np.arange(50.0), np.full(14, 50.0)])
    finished_s = fifo(arrival_s, 0.6)
    assert verdict(arrival_s, finished_s) is False


def test_a_pass_that_was_cut_is_judged_by_what_it_saw() -> None:
    arrival_s = np.arange(200.0) / 4
    finished_s = fifo(arrival_s, 1.0)
    end_s = 30.0  # 30 of the 121 requests that came by then are done
    seen = arrival_s <= end_s
    finished_s = np.where(finished_s <= end_s, finished_s, np.nan)
    found = judge(arrival_s[seen], finished_s[seen], end_s)
    assert found.saturated is True
    assert "20 of 80 requests" in found.reason


def test_a_pass_shorter_than_two_requests_cannot_tell() -> None:
    arrival_s = np.arange(40.0) / 40
    found = judge(arrival_s, arrival_s + 3.0, 4.0)
    assert found.saturated is None
    assert found.reason == (
        "cannot tell: requests arrive within 0.975 s and one of them takes 3 s, so the system is still filling up; "
        "send more requests, for longer"
    )
    nothing = judge(arrival_s, np.full(40, np.nan), 1.0)
    assert nothing.saturated is None
    assert "does not end" in nothing.reason


def test_a_queue_that_grew_and_then_stood_still_cannot_tell() -> None:
    """The engine stops for 20 s in the middle, then keeps up: 20 requests stand there, no more and no fewer."""
    arrival_s = np.arange(100.0)
    finished_s = np.where(arrival_s < 35, arrival_s + 0.5, arrival_s + 20.5)
    found = judge(arrival_s, finished_s, 120.0)
    assert found.saturated is None
    assert "the queue grew by 20" in found.reason
    assert found.reason.endswith("it did not grow steadily; send more requests")


def test_fifteen_requests_cannot_tell() -> None:
    arrival_s = np.arange(15.0)
    assert judge(arrival_s, arrival_s + 0.1, 15.0).reason == "cannot tell: 15 requests, the rule needs 16"


def test_what_bursts_explain_can_be_counted_by_hand() -> None:
    """Three at once, then one after 3 s: 0.9 load serves one in 0.9 s, so the third finds two before it."""
    assert longest_queue(np.array([0.0, 0.0, 0.0, 3.0]), 0.9) == 3
    assert longest_queue(np.arange(10.0), 0.9) == 1
    assert longest_queue(np.zeros(7), 0.9) == 7


def test_only_an_open_loop_can_saturate() -> None:
    for traffic, words in (("closed", "wait for a place"), ("offline", "sent at once")):
        found = judge_requests(make_requests(60), traffic, 1.0)
        assert found.saturated is False
        assert words in str(found.reason)


def test_the_table_of_a_pass_is_judged_by_what_was_let_in() -> None:
    """60 requests, two a second; one a second is served. What was refused was never in the queue."""
    arrival_s = np.arange(60.0) / 2
    ttft_s = fifo(arrival_s, 1.0) - arrival_s
    requests = make_requests(60, arrival_s=arrival_s, ttft_s=ttft_s, output_tokens=1)
    assert judge_requests(requests, "open", 60.0).saturated is True
    mixed = ["refused" if number % 2 else "done" for number in range(60)]
    served = make_requests(60, arrival_s=arrival_s, ttft_s=0.5, output_tokens=1, status=mixed)
    assert judge_requests(served, "open", 60.0).saturated is False
