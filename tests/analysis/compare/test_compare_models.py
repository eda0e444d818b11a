"""Models of one run side by side: paired ratios, and what must not be compared."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moeprof.analysis.compare.models import compare_models
from moeprof.analysis.compare.pairs import paired_logs, ratio_of_pairs, ratio_of_requests, wider
from moeprof.analysis.compare.ratios import exact_ratio, interval_ratio
from moeprof.analysis.compare.tables import Compared
from moeprof.analysis.metrics.lookup import Key
from moeprof.analysis.metrics.summary import Summary, summarise
from moeprof.analysis.report.compare import model_tables
from moeprof.analysis.stats.estimate import Estimate, Ratio
from moeprof.core.errors import InputError
from moeprof.core.files import write_json
from moeprof.core.metric import MetricValue
from moeprof.core.record.layout import open_record
from tests.helpers.planted_runs import PRICING, planted_run
from tests.helpers.records import make_facts, make_pass, make_requests, make_steps, write_record

Runs = Callable[..., Summary]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Planted runs, each written and summarised once."""
    made: dict[str, Summary] = {}

    def make(**planted: Any) -> Summary:
        if str(planted) not in made:
            made[str(planted)] = planted_run(tmp_path_factory.mktemp("runs") / "run", **planted)
        return made[str(planted)]

    return make


def cell(summary: Summary, reference: str, name: str, **labels: str) -> Ratio:
    """The other model's ratio to the reference, of the two models."""
    compared = compare_models(summary, reference)
    found = [
        value for key, value in compared.items() if key[0] == name and _labels(key) == {"window": "total", **labels}
    ]
    found = found or [value for key, value in compared.items() if key[0] == name and _labels(key) == labels]
    assert len(found) == 1, (name, len(found))
    (ratio,) = [ratio for ratio in found[0].ratios if ratio is not None]
    return ratio


def _labels(key: Key) -> dict[str, str]:
    return {name: label for name, label in key[1] if name != "traffic"}


def test_six_launches_of_a_slow_dense_model_are_worse_than_the_moe(run: Runs) -> None:
    ratio = cell(run(slow=1.3, rounds=1), "moe", "step_mean_s", phase="decode")
    assert ratio.verdict == "worse" and ratio.low is not None and ratio.high is not None
    assert ratio.low < 1.3 < ratio.high
    assert cell(run(slow=1.3, rounds=1), "dense", "step_mean_s", phase="decode").verdict == "better"
    assert cell(run(slow=1.3, rounds=1), "moe", "output_tokens_per_s").verdict == "worse"


def test_equal_models_are_neither_better_nor_worse(run: Runs) -> None:
    found = {
        ratio.verdict for cells in compare_models(run(rounds=1), "moe").values() for ratio in cells.ratios if ratio
    }
    assert cell(run(rounds=1), "moe", "step_mean_s", phase="decode").verdict in ("no difference shown", "cannot tell")
    assert "no difference shown" in found


def test_one_launch_is_paired_by_round_and_says_so(run: Runs) -> None:
    summary = run(slow=1.5, launches=1, rounds=4)
    ratio = cell(summary, "moe", "usd_per_1m_total_tokens")
    assert ratio.verdict == "worse" and "speaks for this launch" in str(ratio.reason)
    bills = [[split.run_cost_usd for split in model.splits] for model in summary.models]
    logs = [math.log(dense / moe) for moe, dense in zip(*bills, strict=True)]
    assert ratio.value == pytest.approx(math.exp(float(np.mean(logs))))


def test_one_round_of_one_launch_has_a_ratio_and_no_interval(run: Runs) -> None:
    ratio = cell(run(slow=1.5, launches=1, rounds=1), "moe", "step_mean_s", phase="decode")
    assert ratio.value == pytest.approx(1.5, rel=0.1) and ratio.low is None and ratio.verdict == "cannot tell"


def test_counted_facts_compare_exactly(run: Runs) -> None:
    summary = run(launches=1, rounds=1)
    assert cell(summary, "moe", "total_params").value == 1_000_000 / 1_080_000
    weights = cell(summary, "moe", "weights_bytes")
    assert weights.value == 1_000_000 / 1_080_000 and weights.verdict == "better"


def test_a_figure_that_the_reference_lacks_has_no_ratio(run: Runs) -> None:
    ratio = cell(run(launches=1, rounds=1), "dense", "router_gini", phase="decode")
    assert ratio == Ratio(value=None, reason="dense has no such figure")


def with_tokenizers(summary: Summary, moe: str, dense: str) -> Summary:
    path = summary.record.path
    experiment = json.loads((path / "experiment.json").read_text())
    experiment["schedules"] = {
        "moe": {"tokenizer_hash": moe, "notes": []},
        "dense": {"tokenizer_hash": dense, "notes": []},
    }
    write_json(path / "experiment.json", experiment)
    return replace(summary, record=open_record(path))


def test_models_of_different_tokenizers_compare_per_character_and_per_request_only(tmp_path: Path) -> None:
    summary = with_tokenizers(planted_run(tmp_path / "run", launches=1, rounds=3), "t", "u")
    for name in ("usd_per_1m_total_tokens", "output_tokens_per_s", "itl_mean_s"):
        ratio = cell(summary, "moe", name)
        assert (ratio.value, ratio.verdict, ratio.reason) == (None, "incomparable", "different tokenizers")
    for name in ("usd_per_1m_characters", "usd_per_request", "e2e_mean_s"):
        assert cell(summary, "moe", name).value == pytest.approx(1.0, rel=0.1)


def open_loop(folder: Path, gap_s: float) -> Summary:
    """Steps of 10 ms, ``gap_s`` apart."""
    tables = [
        make_pass(name=f"round-{i}", traffic="open", steps=make_steps(100, gap_s=gap_s), requests=make_requests(4))
        for i in range(3)
    ]
    models = {"moe": (make_facts(num_experts=0), [tables]), "dense": (make_facts(num_experts=0), [tables])}
    return summarise(open_record(write_record(folder, models)), PRICING)


def test_open_loop_dollars_of_machines_that_stood_idle_are_incomparable(tmp_path: Path) -> None:
    idle, busy = open_loop(tmp_path / "idle", 0.01), open_loop(tmp_path / "busy", 0.0)
    ratio = cell(idle, "moe", "usd_per_1m_total_tokens")
    assert ratio.verdict == "incomparable" and "utilisation" in str(ratio.reason)
    assert cell(idle, "moe", "output_tokens_per_s").verdict == "incomparable"
    assert cell(idle, "moe", "ttft_mean_s").value == 1.0
    assert cell(busy, "moe", "usd_per_1m_total_tokens").value == 1.0


def test_unequal_work_is_incomparable(tmp_path: Path) -> None:
    whole = [make_pass(name=f"round-{i}", traffic="offline") for i in range(3)]
    failed = make_requests(4, status=["done", "done", "done", "failed"])
    broken = [make_pass(name=f"round-{i}", traffic="offline", requests=failed) for i in range(3)]
    models = {"moe": (make_facts(num_experts=0), [whole]), "dense": (make_facts(num_experts=0), [broken])}
    summary = summarise(open_record(write_record(tmp_path / "run", models)), PRICING)
    assert cell(summary, "moe", "usd_per_1m_total_tokens").reason == "they did not do the same work"


def test_a_reference_that_is_not_in_the_run_is_refused_with_the_names(run: Runs) -> None:
    with pytest.raises(InputError, match="no model 'mine'; it has: moe, dense"):
        compare_models(run(launches=1, rounds=1), "mine")


def test_tables_hold_every_measured_metric_once_and_fold_the_sections(run: Runs) -> None:
    summary = run(launches=1, rounds=4, slow=1.5)
    tables = model_tables(summary, "dense")
    assert [table.folded for table in tables] == [False] + [True] * (len(tables) - 1)
    assert {(table.columns, table.reference) for table in tables} == {(("moe", "dense"), 1)}
    rows = sum(len(table.rows) for table in tables[1:])
    assert rows == sum(map(measured, compare_models(summary, "dense").values()))
    assert "output speed" in [row.label for row in tables[0].rows]


def measured(compared: Compared) -> bool:
    return any(value is not None and value.value is not None for value in compared.values)


# -- pairs -------------------------------------------------------------------------------------------------------------


def test_pairs_are_made_by_number_and_need_both_sides() -> None:
    assert paired_logs({0: 2.0, 1: 4.0, 3: 1.0}, {1: 2.0, 0: 1.0, 2: 5.0}) == [math.log(2), math.log(2)]
    assert paired_logs({0: 0.0}, {0: 1.0}) == []
    ratio = ratio_of_pairs([math.log(2)] * 3, "round")
    assert (ratio.low, ratio.value, ratio.high, ratio.n) == pytest.approx((2, 2, 2, 3))
    assert ratio_of_pairs([], "round").value is None


def test_noise_shared_by_a_pair_cancels() -> None:
    generator = np.random.default_rng(0)
    machine = generator.lognormal(0, 0.5, 6)
    ratio = ratio_of_pairs(paired_logs(dict(enumerate(1.1 * machine)), dict(enumerate(machine))), "round")
    assert ratio.value == pytest.approx(1.1) and ratio.excludes(1.0)


def test_requests_are_paired_one_by_one(run: Runs) -> None:
    summary = run(launches=1, rounds=1, slow=1.5)
    key = ("ttft_mean_s", (("traffic", "offline"), ("window", "total")))
    found = ratio_of_requests(key, summary.model("dense"), summary.model("moe"))
    assert found is not None and found.n == 12 and found.value == pytest.approx(1.5, rel=0.1)
    assert ratio_of_requests(("ttft_p50_s", key[1]), summary.model("dense"), summary.model("moe")) is None


def test_the_wider_interval_holds_both() -> None:
    both = wider(Estimate(value=1.0, low=0.9, high=1.2, n=3), Estimate(value=1.0, low=0.8, high=1.1, n=12))
    assert (both.low, both.high, both.n) == (0.8, 1.2, 3)
    assert wider(Estimate(value=1.0), None) == Estimate(value=1.0)


# -- cells -------------------------------------------------------------------------------------------------------------


def test_equal_counts_are_equal_and_nothing_over_nothing_is_no_ratio() -> None:
    one, two, none = (MetricValue(name="total_params", value=value, exact=True) for value in (1, 2, 0))
    assert exact_ratio(one, one, "lower").verdict == "no difference shown"
    assert exact_ratio(one, two, "lower").verdict == "worse" and exact_ratio(one, two, "higher").verdict == "better"
    assert exact_ratio(none, none, "lower").value is None and exact_ratio(one, two, "neither").verdict == ""


def test_half_widths_on_the_log_scale_add_as_squares() -> None:
    def value(middle: float, half: float) -> MetricValue:
        low, high = middle / math.exp(half), middle * math.exp(half)
        return MetricValue(name="router_gini", value=middle, ci_low=low, ci_high=high)

    ratio = interval_ratio(value(1.0, 0.3), value(2.0, 0.4), "lower")
    assert ratio.low == pytest.approx(2 / math.exp(0.5)) and ratio.high == pytest.approx(2 * math.exp(0.5))
    assert ratio.verdict == "worse" and ratio.reason == "the interval excludes 1"


def test_models_that_stopped_when_they_liked_did_not_do_the_same_work(tmp_path: Path) -> None:
    """Asked for 4 tokens each: one model says 4, the other stops after 2; their bills are of different work."""
    summary = planted_run(tmp_path / "run", launches=1, rounds=3)
    for file in (summary.record.path / "dense").rglob("requests.parquet"):
        table = pd.read_parquet(file)
        table["output_tokens"] = table["asked_output_tokens"] - 2
        table.to_parquet(file)
    compared = compare_models(summarise(open_record(summary.record.path), PRICING), "moe")
    bills = [cell.ratios[1] for key, cell in compared.items() if key[0] == "run_cost_usd"]
    assert bills and all(bill is not None and bill.verdict == "incomparable" for bill in bills)
