from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest

from moeprof.analysis.metrics.latency import latency_metrics, schedule_lag_flag
from moeprof.analysis.metrics.samples import itl_samples, of_enough_requests, tpot_samples
from moeprof.analysis.metrics.throughput import throughput_metrics
from moeprof.analysis.stats.intervals import binomial_interval
from moeprof.core.metric import MetricValue
from tests.helpers.records import make_pass, make_requests, make_steps


def one(values: list[MetricValue], name: str, **labels: str) -> MetricValue:
    """The only value of that name and exactly these labels beside traffic; window is ``total`` unless given."""
    wanted = {"window": "total", **labels}
    found = [v for v in values if v.name == name and {k: x for k, x in v.labels.items() if k != "traffic"} == wanted]
    assert len(found) == 1, (name, wanted, len(found))
    return found[0]


def slo(**limits: float) -> Any:
    return cast(Any, SimpleNamespace(**{"ttft_s": None, "tpot_s": None, "e2e_s": None, **limits}))


def test_latencies_count_from_arrival_and_from_sent() -> None:
    requests = make_requests(2, queue_s=0.2, ttft_s=0.5, itl_s=0.1, output_tokens=6, sent_s=[0.1, 1.1])
    values = latency_metrics([make_pass(requests=requests)], None)
    assert one(values, "queue_mean_s").value == pytest.approx(0.2)
    assert one(values, "ttft_mean_s").value == pytest.approx(0.5)
    assert one(values, "e2e_mean_s").value == pytest.approx(1.0)
    assert one(values, "ttft_from_sent_mean_s").value == pytest.approx(0.4)
    assert one(values, "e2e_from_sent_mean_s").value == pytest.approx(0.9)
    assert one(values, "tpot_mean_s").value == pytest.approx(0.1)


def test_the_first_token_closes_no_gap() -> None:
    times = [np.array([5.0, 6.0, 8.0]), np.array([100.0]), np.array([], dtype=float)]
    requests = make_requests(3, token_times_s=times, status=["done", "done", "failed"])
    gaps = itl_samples(make_pass(requests=requests), None)
    assert gaps.values.tolist() == [1.0, 2.0]
    assert tpot_samples(make_pass(requests=requests), None).values.tolist() == [1.5]


def test_requests_that_did_not_end_well_have_no_gaps_either() -> None:
    times = [np.array([5.0, 6.0, 7.0]), np.array([5.0, 9.0, 13.0]), np.array([5.0, 9.0])]
    requests = make_requests(3, token_times_s=times, status=["done", "failed", "unfinished"])
    mean = one(latency_metrics([make_pass(requests=requests)], None), "itl_mean_s")
    assert mean.value == 1.0
    assert "2 of 3 requests did not end well and are left out" in mean.reasons


def test_gaps_that_end_in_one_step_are_one_sample() -> None:
    times = [np.arange(1.0, 13.0)] * 100  # 100 requests in lock-step: 11 gaps, not 1,100
    values = latency_metrics([make_pass(requests=make_requests(100, token_times_s=times))], None)
    assert one(values, "itl_p50_s").n == 11
    assert one(values, "itl_p50_s").value == 1.0
    assert one(values, "itl_p90_s").value is None
    assert one(values, "itl_p90_s").reasons == ("11 independent samples, p90 needs 64",)


def test_itl_percentiles_weigh_every_gap() -> None:
    rng = np.random.default_rng(0)
    times = [np.cumsum(rng.exponential(size=30)) for _ in range(50)]
    values = latency_metrics([make_pass(requests=make_requests(50, token_times_s=times))], None)
    gaps = np.concatenate([np.diff(t) for t in times])
    for p in (50, 90, 95, 99):
        assert one(values, f"itl_p{p}_s").value == pytest.approx(np.percentile(gaps, p))


def test_rounds_add_no_requests_to_the_sample_but_give_the_mean_its_interval() -> None:
    rounds = [make_pass(name=f"round-{i}", requests=make_requests(11, ttft_s=t)) for i, t in enumerate((0.9, 1.0, 1.1))]
    values = latency_metrics(rounds, None)
    mean = one(values, "ttft_mean_s")
    assert (mean.value, mean.n) == (pytest.approx(1.0), 11)
    assert mean.ci_low == pytest.approx(np.exp(-4.3027 * 0.1 / np.sqrt(3)), abs=1e-3)  # t of 2 degrees
    assert one(values, "ttft_p50_s").n == 11
    assert one(values, "ttft_p50_s").value == pytest.approx(1.0)
    assert one(values, "ttft_p90_s").value is None


def test_a_price_of_one_finished_request_stays_but_is_not_valid() -> None:
    price = MetricValue(name="usd_per_1m_total_tokens", value=0.5)
    rounds = [make_pass(requests=make_requests(12, status=["done"] + ["unfinished"] * 11))] * 3
    found = of_enough_requests(price, rounds)  # three rounds of one request are one request
    assert (found.value, found.valid) == (0.5, False)
    assert found.reasons == ("1 request finished, and a price or a rate needs 11 different ones, as a median does",)
    assert of_enough_requests(price, [make_pass(requests=make_requests(11))]) == price


def test_requests_that_failed_have_no_latency_and_are_named() -> None:
    requests = make_requests(4, ttft_s=[0.1, 0.1, 0.1, 9.0], status=["done", "done", "done", "failed"])
    mean = one(latency_metrics([make_pass(requests=requests)], None), "ttft_mean_s")
    assert mean.value == pytest.approx(0.1)
    assert "1 of 4 requests did not end well and are left out" in mean.reasons


def test_classes_have_their_own_latencies() -> None:
    requests = make_requests(4, ttft_s=[0.1, 0.3, 0.1, 0.3], request_class=["code", "prose", "code", "prose"])
    values = latency_metrics([make_pass(requests=requests)], None)
    assert one(values, "ttft_mean_s", request_class="code").value == pytest.approx(0.1)
    assert one(values, "ttft_mean_s", request_class="prose").value == pytest.approx(0.3)


def test_step_times_are_split_by_phase_and_device_time_may_be_null() -> None:
    steps = make_steps(4, step_s=[0.1, 0.1, 0.3, 0.3], phase=["prefill", "prefill", "decode", "decode"], device_s=None)
    values = latency_metrics([make_pass(steps=steps)], None)
    assert one(values, "step_mean_s", phase="prefill").value == pytest.approx(0.1)
    assert one(values, "step_mean_s", phase="all").value == pytest.approx(0.2)
    device = one(values, "step_device_mean_s", phase="decode")
    assert (device.value, device.reasons) == (None, ("no device times were recorded for such steps",))


def test_a_short_run_has_no_steady_window_and_says_so() -> None:
    value = one(latency_metrics([make_pass()], None), "ttft_p50_s", window="steady")
    assert value.value is None
    assert value.reasons[0].startswith("no steady state")


def test_a_late_replayer_is_flagged_by_its_median_or_its_tail() -> None:
    assert schedule_lag_flag([make_pass(requests=make_requests(4, send_slack_s=0.009))]) is None
    late = [make_pass(requests=make_requests(4, send_slack_s=0.011))]
    assert "median 11.0 ms" in (schedule_lag_flag(late) or "")
    tail = [make_pass(requests=make_requests(4, send_slack_s=[0, 0, 0, 1.0]))]
    assert "p99 0.970 s" in (schedule_lag_flag(tail) or "")
    assert not one(latency_metrics(late, None), "schedule_lag_mean_s").valid


@pytest.mark.parametrize("traffic", ["offline", "closed"])
def test_only_open_traffic_has_a_schedule_to_be_late_for(traffic: Any) -> None:
    late = make_pass(requests=make_requests(4, send_slack_s=3.0), traffic=traffic)
    assert schedule_lag_flag([late]) is None
    found = one(latency_metrics([late], None), "schedule_lag_mean_s")
    assert (found.value, found.valid) == (None, True)
    assert found.reasons == (f"{traffic} traffic has no arrivals to be late for",)


def test_rates_count_tokens_over_the_window_with_idle_time() -> None:
    tables = make_pass(requests=make_requests(4, input_tokens=8, output_tokens=5), window_s=(0.0, 10.0))
    values = throughput_metrics([tables], None)
    assert one(values, "request_rate_requested_per_s").value == 1.0  # four arrivals a second apart span three gaps
    assert one(values, "request_rate_achieved_per_s").value == pytest.approx(0.4)
    assert one(values, "output_tokens_per_s").value == pytest.approx(2.0)
    assert one(values, "input_tokens_per_s").value == pytest.approx(3.2)
    assert one(values, "total_tokens_per_s").value == pytest.approx(5.2)
    assert one(values, "goodput_ratio").reasons == ("the workload states no slo",)


def test_failures_stay_in_the_denominator_of_goodput() -> None:
    requests = make_requests(4, ttft_s=[0.1, 0.1, 0.9, 0.1], status=["done", "done", "done", "refused"])
    tables = make_pass(requests=requests, window_s=(0.0, 10.0))
    values = throughput_metrics([tables], slo(ttft_s=0.5))
    assert one(values, "goodput_ratio").value == pytest.approx(0.5)
    assert one(values, "goodput_requests_per_s").value == pytest.approx(0.2)
    assert one(latency_metrics([tables], slo(ttft_s=0.5)), "slo_ttft_met_ratio").value == pytest.approx(0.5)
    assert [one(values, f"num_requests_{s}").value for s in ("done", "refused", "failed")] == [3, 1, 0]


def test_a_share_of_requests_speaks_of_distinct_requests_however_many_rounds_repeat_them() -> None:
    """72 of 72 in three rounds is [0.950, 1]: 0.95^72 = 0.025."""
    rounds = [make_pass(name=f"round-{i}", requests=make_requests(72, agreed_tokens=4)) for i in range(3)]
    limits = slo(ttft_s=0.5, tpot_s=0.5, e2e_s=5.0)
    values = [*throughput_metrics(rounds, limits), *latency_metrics(rounds, limits)]
    names = ("goodput_ratio", "slo_ttft_met_ratio", "slo_tpot_met_ratio", "slo_e2e_met_ratio", "forced_agreement_ratio")
    for name in (*names, "output_length_ratio"):
        found = one(values, name)
        assert (found.value, found.n, found.ci_high) == (1.0, 72, 1.0)
        assert found.ci_low == pytest.approx(0.950, abs=5e-4)


def test_rounds_that_differ_widen_a_share_and_it_stays_within_zero_and_one() -> None:
    """3 of 4, 3 of 4 and 2 of 4: mean 2/3; below the binomial interval is wider, above 2/3 + 4.3 x 0.083 > 1."""
    slow = ((0.1, 0.1, 0.1, 0.9), (0.1, 0.1, 0.1, 0.9), (0.1, 0.1, 0.9, 0.9))
    rounds = [make_pass(name=f"round-{i}", requests=make_requests(4, ttft_s=ttft)) for i, ttft in enumerate(slow)]
    found = one(throughput_metrics(rounds, slo(ttft_s=0.5)), "goodput_ratio")
    assert found.value == pytest.approx(2 / 3)
    assert (found.ci_low, found.ci_high) == (pytest.approx(binomial_interval(8 / 3, 4)[0]), 1.0)
    many = [make_pass(name=f"round-{i}", requests=make_requests(400, ttft_s=np.tile(ttft, 100)))
            for i, ttft in enumerate(slow)]  # fmt: skip
    wide = one(throughput_metrics(many, slo(ttft_s=0.5)), "goodput_ratio")
    half = 4.303 * np.std([0.75, 0.75, 0.5], ddof=1) / np.sqrt(3)  # 400 requests a round: rounds differ by more
    assert (wide.ci_low, wide.ci_high) == pytest.approx((2 / 3 - half, 1.0), abs=1e-3)


def test_an_objective_that_no_request_can_meet_or_miss_is_null_with_its_reason() -> None:
    """Outputs of one token have no time between tokens: their tpot is neither met nor missed."""
    rounds = [make_pass(requests=make_requests(72, output_tokens=1))]
    values = [*throughput_metrics(rounds, slo(tpot_s=0.1)), *latency_metrics(rounds, slo(tpot_s=0.1))]
    for name in ("slo_tpot_met_ratio", "goodput_ratio", "goodput_requests_per_s"):
        assert one(values, name).value is None
        assert one(values, name).reasons == (
            "no request has two output tokens, so there is no time between tokens to judge",
        )
    both = one(throughput_metrics(rounds, slo(tpot_s=0.1, ttft_s=0.5)), "goodput_ratio")
    assert both.value == 1.0
    assert both.reasons[0].startswith("the tpot objective judges nothing")
    failed = [make_pass(requests=make_requests(72, output_tokens=1, asked_output_tokens=8, status="failed"))]
    assert one(latency_metrics(failed, slo(tpot_s=0.1)), "slo_tpot_met_ratio").value == 0.0  # they missed it


def test_an_empty_pass_gives_nulls_with_reasons_and_never_numbers() -> None:
    empty = make_pass(requests=make_requests(0), steps=make_steps(0), window_s=(0.0, 0.0))
    values = [*latency_metrics([empty], slo(ttft_s=1.0)), *throughput_metrics([empty], slo(ttft_s=1.0))]
    timed = [v for v in values if not v.exact]
    assert all(v.value is None and v.reasons for v in timed), [v for v in timed if v.value is not None]


def test_the_latencies_agree_with_a_plain_pandas_recomputation() -> None:
    rng = np.random.default_rng(1)
    requests = make_requests(700, ttft_s=rng.exponential(size=700), output_tokens=rng.integers(1, 9, size=700))
    values = latency_metrics([make_pass(requests=requests)], None)
    ttft = requests["first_token_s"] - requests["arrival_s"]
    gaps = requests["token_times_s"].map(lambda t: np.diff(np.asarray(t))).explode().dropna().astype(float)
    for p in (0.5, 0.9, 0.95, 0.99):
        assert one(values, f"ttft_p{100 * p:.0f}_s").value == pytest.approx(ttft.quantile(p))
        assert one(values, f"itl_p{100 * p:.0f}_s").value == pytest.approx(pd.Series(gaps).quantile(p))


def test_a_million_output_tokens_take_seconds() -> None:
    rng = np.random.default_rng(0)
    ends = np.cumsum(0.01 + 0.001 * rng.random(20_000))
    starts = np.sort(rng.integers(0, 19_500, size=2_000))
    times = [ends[start : start + 500] for start in starts]
    requests = make_requests(2_000, arrival_s=ends[starts] - 0.1, token_times_s=times, output_tokens=500)
    tables = make_pass(requests=requests, steps=make_steps(20_000, step_s=np.diff(ends, prepend=0)))
    began = time.process_time()
    latency_metrics([tables], None)
    throughput_metrics([tables], None)
    assert time.process_time() - began < 10
