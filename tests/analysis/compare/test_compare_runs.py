"""Run against run: the same run is the same, chance is no change, and a model slowed on purpose is caught."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeprof.analysis.compare.ratios import stored_ratios
from moeprof.analysis.compare.runs import MetricComparison, ModelComparison, RunsComparison, compare_runs
from moeprof.analysis.metrics.summary import Summary, summarise
from moeprof.analysis.report.compare import run_tables
from moeprof.analysis.stats.estimate import Ratio
from moeprof.analysis.stats.verdicts import sample_of, t_tests
from moeprof.core.record.layout import open_record
from tests.helpers.planted_runs import PRICING, planted_run

STEP = ("step_mean_s", (("phase", "decode"),))
Runs = Callable[..., Summary]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Planted runs of one round, each written and summarised once."""
    made: dict[str, Summary] = {}

    def make(name: str = "a", **planted: Any) -> Summary:
        key = f"{name} {planted}"
        if key not in made:
            made[key] = planted_run(tmp_path_factory.mktemp("runs") / name, rounds=1, **planted)
        return made[key]

    return make


def of_model(comparison: RunsComparison, name: str) -> ModelComparison:
    return next(model for model in comparison.models if model.name == name)


def verdicts(model: ModelComparison) -> Counter[str]:
    return Counter(metric.ratio.verdict for metric in model.metrics)


def metric(model: ModelComparison, name: str, **labels: str) -> MetricComparison:
    wanted = {"window": "total", **labels}
    found = [m for m in model.metrics if m.name == name and {k: v for k, v in m.key[1] if k != "traffic"} == wanted]
    assert len(found) == 1, (name, len(found))
    return found[0]


def test_a_run_against_itself_is_the_same_run_with_ratio_1(run: Runs) -> None:
    comparison = compare_runs(run(launches=1), run(launches=1))
    assert comparison.is_same_run
    known = [m.ratio for model in comparison.models for m in model.metrics if m.ratio.value is not None]
    assert {(ratio.value, ratio.verdict) for ratio in known} == {(1.0, "same run")} and len(known) > 50


def test_a_copy_of_a_record_is_the_same_run(run: Runs, tmp_path: Path) -> None:
    first = run(launches=1)
    shutil.copytree(first.record.path, tmp_path / "copy")
    assert compare_runs(first, summarise(open_record(tmp_path / "copy"), PRICING)).is_same_run


def test_a_record_with_other_steps_under_the_same_header_is_another_run(run: Runs) -> None:
    first, second = run(launches=1), run(launches=1, seed=1)
    assert first.record.experiment == second.record.experiment
    assert not compare_runs(first, second).is_same_run


@pytest.mark.parametrize("seed", [1, 2])
def test_two_runs_of_one_workload_are_never_better_or_worse(run: Runs, seed: int) -> None:
    comparison = compare_runs(run(), run("b", seed=seed))
    assert not comparison.is_same_run and not comparison.differences
    for model in comparison.models:
        assert set(verdicts(model)) <= {"no difference shown", "cannot tell", ""}
        assert [gate.ratio.verdict for gate in model.gates] == ["no difference shown"] * 2


@pytest.mark.parametrize("slow", [1.15, 1.2])
def test_a_model_slowed_on_purpose_is_worse_and_its_neighbour_is_not(run: Runs, slow: float) -> None:
    comparison = compare_runs(run(), run("b", seed=1, slow=slow))
    dense, moe = of_model(comparison, "dense"), of_model(comparison, "moe")
    assert [gate.ratio.verdict for gate in dense.gates] == ["worse"] * 2
    assert [gate.ratio.verdict for gate in moe.gates] == ["no difference shown"] * 2
    step = metric(dense, "step_mean_s", phase="decode").ratio
    assert step.low is not None and step.high is not None and step.low < slow < step.high
    assert metric(dense, "output_tokens_per_s").ratio.verdict == "worse"  # where higher is better
    assert verdicts(moe)["worse"] == 0


def test_a_model_made_faster_is_better(run: Runs) -> None:
    comparison = compare_runs(run("b", seed=1, slow=1.2), run())
    assert {gate.ratio.verdict for gate in of_model(comparison, "dense").gates} == {"better"}


def test_one_launch_a_side_cannot_tell_and_says_what_is_needed(run: Runs) -> None:
    comparison = compare_runs(run(launches=1), run("b", seed=1, slow=1.5, launches=1))
    gate = of_model(comparison, "dense").gates[0].ratio
    assert gate.verdict == "cannot tell" and gate.reason == "needs 5 launches a side, found 1"
    assert gate.value == pytest.approx(1.5, rel=0.1)


def test_parameters_compare_exactly_whatever_the_machine(run: Runs) -> None:
    comparison = compare_runs(run(launches=1), run("b", seed=1, launches=1, environment={"threads": 8}))
    moe = of_model(comparison, "moe")
    total = next(m for m in moe.metrics if m.name == "total_params").ratio
    assert (total.value, total.reason) == (1.0, "exact")
    step = metric(moe, "step_mean_s", phase="decode").ratio
    assert (step.value, step.verdict) == (None, "incomparable")
    assert step.reason == "the runs differ in threads (--allow threads)"
    assert metric(moe, "router_gini", phase="decode").ratio.verdict == "no difference shown"


def test_counts_of_requests_compare_exactly_too(run: Runs) -> None:
    moe = of_model(compare_runs(run(), run("b", seed=1)), "moe")
    done, failed = metric(moe, "num_requests_done").ratio, metric(moe, "num_requests_failed").ratio
    assert (done.value, done.verdict, done.reason) == (1.0, "no difference shown", "exact")
    assert (failed.value, failed.verdict) == (None, "no difference shown")  # nothing over nothing


def test_what_is_allowed_is_compared(run: Runs) -> None:
    other = run("b", seed=1, launches=1, environment={"threads": 8})
    moe = of_model(compare_runs(run(launches=1), other, {"threads"}), "moe")
    assert metric(moe, "step_mean_s", phase="decode").ratio.value == pytest.approx(1.0, rel=0.1)


def test_models_of_one_run_only_are_named(run: Runs) -> None:
    both = run(launches=1)
    comparison = compare_runs(both, replace(both, models=both.models[:1]))
    assert comparison.only_in_reference == ("dense",) and comparison.only_in_other == ()
    assert [model.name for model in comparison.models] == ["moe"]


def test_tables_begin_with_the_headline_and_fold_the_rest(run: Runs) -> None:
    tables = run_tables(compare_runs(run(), run("b", seed=1)))
    assert [table.folded for table in tables[:3]] == [False, False, True]
    assert tables[0].columns == ("a", "b") and tables[0].title == "moe: run against run"
    assert all(len(row.values) == len(row.ratios) == 2 and row.ratios[0] is None for t in tables for row in t.rows)


# -- the test behind the verdicts --------------------------------------------------------------------------------------


def judged(reference: Sequence[float], other: Sequence[float]) -> Ratio:
    return stored_ratios({STEP: (reference, other)}, [STEP])[STEP]


def test_welch_on_logarithms_agrees_with_scipy() -> None:
    from scipy.stats import ttest_ind

    generator = np.random.default_rng(0)
    first, second = generator.lognormal(0, 0.1, 6), generator.lognormal(0.1, 0.3, 9)
    sample = sample_of(first.tolist(), second.tolist())
    wanted = ttest_ind(np.log(second), np.log(first), equal_var=False)
    assert sample is not None
    ((p, (low, high)),) = t_tests([sample], 0.95)
    assert 2 * p == pytest.approx(wanted.pvalue)
    assert (low, high) == pytest.approx(tuple(wanted.confidence_interval(0.95)))
    assert sample.mean / sample.error == pytest.approx(wanted.statistic)


def test_a_sure_difference_below_the_floor_is_no_alarm() -> None:
    exact = [1.0, 1.001, 0.999, 1.0, 1.0, 1.0]
    assert judged(exact, [1.05 * value for value in exact]).verdict == "no difference shown"
    assert judged(exact, [1.11 * value for value in exact]).verdict == "worse"


def test_false_alarms_stay_below_alpha() -> None:
    generator = np.random.default_rng(1)
    alarms = 0
    for _ in range(1000):
        first, second = (generator.lognormal(0, 0.15, 6).tolist() for _ in range(2))
        alarms += judged(first, second).verdict in ("better", "worse")
    assert alarms <= 30  # two sides of 1 % each: 20 expected at most


def test_four_launches_are_too_few_and_zero_has_no_ratio() -> None:
    assert judged([1.0] * 4, [2.0] * 9).reason == "needs 5 launches a side, found 4"
    assert judged([0.0] * 6, [2.0] * 6).value is None
