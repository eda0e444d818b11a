"""Traffic that is more than an engine can serve: what the engine of 150 requests a second says of 320, and of 75."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moeprof.analysis.metrics.load.overload import backlog, capacity_per_s, fell_behind, overload_of, requested_rate
from moeprof.analysis.metrics.summary import Summary, summarise
from moeprof.analysis.metrics.tables import PassTables
from moeprof.analysis.metrics.throughput import throughput_metrics
from moeprof.analysis.report.compare import compare_document
from moeprof.analysis.report.doubts import find_doubts
from moeprof.analysis.report.run import build_document
from moeprof.core.pricing import Pricing
from moeprof.core.record.layout import open_record
from tests.helpers.queues import open_queue
from tests.helpers.records import make_facts, make_pass, make_requests, make_steps, write_record


def summary_of(folder: Path, *rounds: PassTables) -> Summary:
    path = write_record(folder / "run", {"dense": (make_facts(num_experts=0), [rounds])})
    return summarise(open_record(path), Pricing(usd_per_device_hour=3.6))


def named(tables: PassTables, number: int) -> PassTables:
    return make_pass(
        name=f"round-{number}", requests=tables.requests, steps=tables.steps, window_s=tables.window_s
    )  # fmt: skip


def test_an_engine_of_150_a_second_under_320_says_both_figures_in_the_headline(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, *(named(open_queue(320, 400, seed), seed) for seed in range(2)))
    told = overload_of(summary.models[0].rounds)
    assert told is not None and told.requested_per_s == pytest.approx(320)
    assert told.capacity_per_s == pytest.approx(150, rel=0.03)
    headline = build_document(summary).headline
    assert "The traffic was more than dense could serve: requests arrived at 320/s, it completed 1" in headline
    assert headline.endswith("; its latencies only say how long the schedule was.")
    (doubt,) = [doubt for doubt in find_doubts(summary) if doubt.code == "overloaded"]
    assert (doubt.flag, doubt.severity) == ("latency", "error")


def test_a_comparison_of_overloaded_models_says_so_of_each(tmp_path: Path) -> None:
    facts = make_facts(num_experts=0)
    path = write_record(
        tmp_path / "run", {name: (facts, [[named(open_queue(320, 400, 0), 0)]]) for name in ("one", "two")}
    )
    summary = summarise(open_record(path), Pricing(usd_per_device_hour=3.6))
    headline = compare_document([summary], reference=None).document.headline
    assert "more than one could serve: requests arrived at 320/s" in headline
    assert "more than two could serve: requests arrived at 320/s" in headline


def test_half_of_what_it_can_serve_is_no_overload(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, named(open_queue(75, 400, 0), 0))
    assert overload_of(summary.models[0].rounds) is None
    assert "more than dense could serve" not in build_document(summary).headline
    codes = {doubt.code for doubt in find_doubts(summary)}
    assert not codes & {"overloaded", "fell_behind", "overload_unknown"}


def test_rounds_that_disagree_are_a_doubt_and_no_headline(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, named(open_queue(320, 400, 0), 0), named(open_queue(75, 400, 0), 1))
    assert "more than dense could serve" not in build_document(summary).headline
    (doubt,) = [doubt for doubt in find_doubts(summary) if doubt.code == "overloaded"]
    assert doubt.severity == "warning"
    assert "more than it could serve in 1 of 2 rounds" in doubt.text


def test_the_capacity_stands_beside_the_rate_that_was_asked_for() -> None:
    values = {v.name: v for v in throughput_metrics([open_queue(320, 400, 1)], None) if v.labels["window"] == "total"}
    assert values["request_rate_requested_per_s"].value == pytest.approx(320)
    assert values["request_rate_capacity_per_s"].value == pytest.approx(150, rel=0.03)
    stable = {v.name: v for v in throughput_metrics([open_queue(75, 400, 1)], None) if v.labels["window"] == "total"}
    assert stable["request_rate_capacity_per_s"].value is None
    assert stable["request_rate_capacity_per_s"].reasons == (
        "no round shows that its queue grew, so what it could serve was not reached",
    )


def test_72_requests_whose_first_comes_at_0_and_last_at_7_1_seconds_are_10_a_second() -> None:
    assert requested_rate(make_pass(requests=make_requests(72, arrival_s=np.arange(72) / 10))) == pytest.approx(10)
    late = make_pass(requests=make_requests(72, arrival_s=3 + np.arange(72) / 10))  # nothing comes before the first
    assert requested_rate(late) == pytest.approx(10)
    assert requested_rate(make_pass(requests=make_requests(1))) is None


def test_one_served_a_second_while_two_arrive_is_a_capacity_of_one() -> None:
    """60 arrive in 29.5 s and enter one after the other until 59 s: from a third of the arrivals on, one a second."""
    arrival_s, begin_s = np.arange(60.0) / 2, np.arange(60.0)
    requests = make_requests(
        60, arrival_s=arrival_s, queue_s=begin_s - arrival_s, ttft_s=begin_s + 1 - arrival_s, output_tokens=1
    )
    tables = make_pass(requests=requests, steps=make_steps(60, step_s=1.0))
    assert capacity_per_s(tables) == pytest.approx(1.0, rel=0.02)
    assert backlog(tables) is not None


def test_a_pass_that_was_cut_long_after_its_last_arrival_says_what_was_left() -> None:
    """89 requests within 44 s; 480 s after the first, 12 of them are done, the first after a minute."""
    status = ["done"] * 12 + ["unfinished"] * 77
    requests = make_requests(89, arrival_s=np.arange(89) / 2, ttft_s=60.0, status=status)
    tables = make_pass(requests=requests, window_s=(0.0, 480.0))
    assert overload_of([tables]) is None  # one takes a minute: whether more would go on growing cannot be told
    assert fell_behind([tables]) == (
        "12 of 89 requests were finished 8 min after the first one, although they arrived within 44 s"
    )
    assert fell_behind([make_pass(requests=make_requests(89, arrival_s=np.arange(89) / 2, ttft_s=60.0))]) is None
