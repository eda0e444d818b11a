"""Shares of requests between models, launches and runs: what repeats the same requests is no evidence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from moeprof.analysis.compare.models import compare_models
from moeprof.analysis.compare.ratios import TOO_FEW_REQUESTS, as_requests_tell
from moeprof.analysis.metrics.launches import over_launches
from moeprof.analysis.metrics.summary import summarise
from moeprof.analysis.stats.estimate import Ratio
from moeprof.analysis.stats.intervals import binomial_interval
from moeprof.core.metric import MetricValue
from moeprof.core.pricing import Pricing
from moeprof.core.record.layout import open_record
from tests.helpers.records import make_facts, make_pass, make_requests, make_steps, write_record

GOODPUT = ("goodput_ratio", (("traffic", "closed"), ("window", "total")))


def goodput(met: int, of: int) -> MetricValue:
    low, high = binomial_interval(met, of)
    return MetricValue(name="goodput_ratio", value=met / of, n=of, ci_low=low, ci_high=high)


def ratio_of(folder: Path, met: Sequence[int], of: int) -> Ratio:
    """The goodput of two models with these requests within the SLO in each of three rounds, second over first."""
    models = {}
    for name, num in zip(("dense", "moe"), met, strict=True):
        ttft = [0.1] * num + [0.9] * (of - num)
        passes = [
            make_pass(name=f"round-{i}", traffic="closed", requests=make_requests(of, ttft_s=ttft), steps=make_steps())
            for i in range(3)
        ]
        models[name] = (make_facts(num_experts=0, name=name), [passes])
    record = open_record(write_record(folder / "run", models, workload={"slo": {"ttft_s": 0.5}}))
    found = compare_models(summarise(record, Pricing(usd_per_device_hour=3.6)), "dense")[GOODPUT].ratios[1]
    assert found is not None
    return found


def test_seven_of_eight_in_every_round_is_no_worse_than_eight_of_eight(tmp_path: Path) -> None:
    """Three rounds agree to the last digit, of the same eight requests: 0.63 to 1 against 0.47 to 0.997."""
    found = ratio_of(tmp_path, (8, 7), 8)
    assert found.value == pytest.approx(7 / 8)
    assert found.low is not None and found.high is not None and found.low < 1 < found.high
    assert found.verdict == "cannot tell"


def test_half_of_72_is_worse_than_all_of_them_and_the_ratio_is_that_of_the_values(tmp_path: Path) -> None:
    found = ratio_of(tmp_path, (72, 36), 72)
    assert (found.value, found.verdict) == (pytest.approx(0.5), "worse")


def test_launches_do_not_narrow_a_share_of_the_same_requests() -> None:
    """8 of 8 and 7 of 8: at least what either says for itself."""
    together = over_launches([[goodput(8, 8)], [goodput(7, 8)], [goodput(8, 8)]])[0]
    assert together.value == pytest.approx(23 / 24)
    assert (together.ci_low, together.ci_high) == (pytest.approx(binomial_interval(7, 8)[0]), 1.0)


def test_five_launches_of_eight_requests_show_nothing_of_a_share() -> None:
    told = Ratio(value=7 / 8, low=0.87, high=0.88, verdict="worse", reason="p = 0.001")
    found = as_requests_tell(told, goodput(8, 8), goodput(7, 8))
    assert (found.verdict, found.reason) == ("cannot tell", TOO_FEW_REQUESTS)
    assert found.low is not None and found.low < 0.7
    assert as_requests_tell(told, goodput(720, 720), goodput(630, 720)) is told
