"""A fixed piece of work beside each pass: the same every time, its median, and the metric made of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from moeprof.analysis.compare.comparable import classes_of
from moeprof.analysis.metrics.cards import card_for
from moeprof.analysis.metrics.launches import over_launches
from moeprof.analysis.metrics.resources.reference_kernel import NOT_TIMED, REFERENCE_NAME, reference_metrics
from moeprof.capture.devices.peaks import time_reference
from moeprof.core.record.passes import PassHeader
from tests.helpers.tiny_run import Ran

CPU = torch.device("cpu")


def test_the_median_of_the_runs_is_given() -> None:
    stamps = iter([0.0, 1.0, 10.0, 12.0, 20.0, 29.0])  # runs of 1, 2 and 9 seconds
    assert time_reference(CPU, repetitions=3, clock=lambda: next(stamps)) == 2.0


def test_it_takes_a_fraction_of_a_second_and_leaves_the_models_random_numbers_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    assert 0 < time_reference(CPU, repetitions=3) < 1
    assert torch.equal(torch.rand(3), expected)


def timed(seconds: float) -> PassHeader:
    return PassHeader(reference_kernel_s=seconds)


def test_the_metric_is_the_mean_over_the_passes_of_a_launch() -> None:
    (value,) = reference_metrics([timed(0.002), PassHeader(), timed(0.004), timed(0.003)])
    assert value.value == pytest.approx(0.003)
    assert value.n == 3
    assert value.ci_low is not None and value.ci_high is not None and value.ci_low < 0.003 < value.ci_high


def test_a_record_without_it_says_why_there_is_none() -> None:
    (value,) = reference_metrics([PassHeader(), PassHeader()])
    assert (value.value, value.reasons) == (None, (NOT_TIMED,))


def test_every_launch_keeps_its_own_value() -> None:
    values = over_launches([reference_metrics([timed(0.002)]), reference_metrics([timed(0.004)])])
    assert [(v.value, v.labels) for v in values] == [
        (0.003, {}), (0.002, {"launch": "0"}), (0.004, {"launch": "1"}),
    ]  # fmt: skip


def test_it_is_a_timed_figure_of_the_machine_and_says_nothing_of_tokens() -> None:
    assert classes_of(REFERENCE_NAME) == {"timed"}
    assert (card_for(REFERENCE_NAME).section, card_for(REFERENCE_NAME).better) == ("validity", "lower")


def test_a_real_run_times_it_before_every_round(tiny_run: tuple[Path, Ran]) -> None:
    folder, _ = tiny_run
    summary = json.loads((folder / "summary.json").read_text())
    for name, model in summary["models"].items():
        told = [
            json.loads(file.read_text())["reference_kernel_s"]
            for file in sorted((folder / name / "launch-0").glob("*/pass.json"))
        ]
        (value,) = [value for value in model["metrics"] if value["name"] == REFERENCE_NAME]
        assert len(told) == 4  # two rounds, and a capacity pass after each
        assert value["value"] == pytest.approx(sum(told) / 4)
