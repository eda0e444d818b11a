"""Verdicts of intervals and of launch pairs."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from moeprof.analysis.stats.estimate import ROUNDS, Estimate, Ratio, ratio_of_logs
from moeprof.analysis.stats.verdicts import LOCKSTEP_FLOOR_RATIO, Sample, holm, judge, judge_interval


@pytest.mark.parametrize(
    ("value", "low", "high", "kind"),
    [
        (1.10, 1.05, 1.15, "worse"),
        (0.90, 0.85, 0.95, "better"),
        (1.00, 0.99, 1.01, "no difference shown"),
        (1.01, 1.005, 1.014, "no difference shown"),  # a difference, but shown to be within the floor
        (1.01, 1.002, 1.018, "cannot tell"),
        (1.10, 0.95, 1.25, "cannot tell"),
        (1.10, None, None, "cannot tell"),
    ],
)
def test_a_verdict_needs_the_interval_and_the_floor(
    value: float, low: float | None, high: float | None, kind: str
) -> None:
    ratio = Estimate(value=value, low=low, high=high)
    assert judge_interval(ratio, better="lower", floor_ratio=0.015).verdict == kind


def test_higher_may_be_better() -> None:
    ratio = Estimate(value=1.1, low=1.05, high=1.15)
    assert judge_interval(ratio, better="higher", floor_ratio=0.015).verdict == "better"
    assert judge_interval(ratio, better="higher", floor_ratio=0.20).verdict == "no difference shown"


def judged(**logs: list[float]) -> dict[str, Ratio]:
    """Launch pairs of a family."""
    samples = {
        name: Sample(logs=tuple(own), floor_ratio=LOCKSTEP_FLOOR_RATIO, n=f"{len(own)} launch pairs")
        for name, own in logs.items()
    }
    return judge(samples)


def test_six_launch_pairs_show_ten_percent() -> None:
    logs = np.log([1.09, 1.10, 1.11, 1.10, 1.09, 1.11])
    assert judged(a=logs.tolist())["a"].verdict == "worse"
    assert judged(a=(-logs).tolist())["a"].verdict == "better"


def test_equal_launches_show_no_difference_and_wild_ones_cannot_tell() -> None:
    assert judged(a=[0.0] * 6)["a"].verdict == "no difference shown"
    assert judged(a=[0.004, -0.004, 0.002, -0.002, 0.0, 0.0])["a"].verdict == "no difference shown"
    assert judged(a=[0.3, -0.3, 0.2, -0.2, 0.1, 0.0])["a"].verdict == "cannot tell"


def test_a_sure_difference_below_the_floor_is_no_alarm() -> None:
    told = judged(a=np.log([1.0140, 1.0141, 1.0139, 1.0140, 1.0141, 1.0139]).tolist())["a"]
    assert told.verdict == "no difference shown"


def test_holm_multiplies_the_smallest_most() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({}) == {}


def test_false_alarms_of_a_family_stay_rare() -> None:
    rng, alarms = np.random.default_rng(6), 0
    for _ in range(1000):
        told = judged(**{name: rng.normal(0, 0.05, 6).tolist() for name in ("decode", "prefill", "energy")})
        alarms += any(verdict.verdict == "worse" for verdict in told.values())
    assert alarms <= 20  # 1 % of a thousand, and what chance adds


def test_reasons_say_the_floor_and_the_evidence_in_plain_words() -> None:
    found = judged(
        worse=np.log([1.09, 1.10, 1.11, 1.10, 1.09, 1.11]).tolist(),
        equal=[0.0] * 6,
        wild=[0.3, -0.3, 0.2, -0.2, 0.1, 0.1],
    )
    assert re.fullmatch(r"differs by more than 1\.5 % \(p = \S+, over 6 launch pairs\)", found["worse"].reason or "")
    assert (found["equal"].reason or "").startswith("the interval lies within 1.5 % (p = ")
    assert (found["wild"].reason or "").startswith(
        "more than 1.5 % apart, but no more than repeats differ by chance (p"
    )
    by_interval = judge_interval(Estimate(value=1.1, low=1.05, high=1.15), better="lower", floor_ratio=0.05)
    assert by_interval.reason == "differs by more than 5 % (the interval excludes 1)"


def test_a_verdict_of_rounds_says_so_and_one_of_launches_does_not() -> None:
    ratio = Ratio(value=1.1, low=1.05, high=1.15, verdict="worse")
    assert ratio.verdict_text == "worse"
    assert replace(ratio, by=ROUNDS).verdict_text == "worse (rounds)"
    assert replace(ratio, by=ROUNDS, verdict="cannot tell").verdict_text == "cannot tell"


def test_a_ratio_of_two_rounds_has_no_interval_and_says_how_many_would_decide() -> None:
    """Mean log 0.259, standard deviation 0.109: t * sd / sqrt(n) is 0.271 with three rounds and 0.173 with four."""
    found = ratio_of_logs(np.log([1.2, 1.4]).tolist(), "round")
    assert (found.low, found.high) == (None, None)
    assert found.reason == "two rounds that differ by 17 %; about 4 rounds needed"
    assert ratio_of_logs(np.log([1.29, 1.30, 1.31]).tolist(), "round").excludes(1.0)
