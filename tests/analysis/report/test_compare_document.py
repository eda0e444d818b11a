"""The page of a comparison: one sentence with the answer, one table, and everything as data too."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moeprof.analysis.metrics.summary import Summary, summarise
from moeprof.analysis.metrics.tables import PassTables
from moeprof.analysis.report.compare import compare_document
from moeprof.analysis.report.data import comparison_json, comparison_rows
from moeprof.analysis.report.document import Table, Waterfall
from moeprof.analysis.report.doubts import find_doubts
from moeprof.analysis.sparsity.roles import roles
from moeprof.core.errors import InputError, RecordError
from moeprof.core.model_facts import ModelFacts, TwinFacts
from moeprof.core.record.layout import open_record
from tests.helpers.lane_records import lane, write_lanes
from tests.helpers.planted_runs import PRICING, launch, planted_run
from tests.helpers.records import make_facts, make_pass, make_requests, make_steps, write_record

# name -> width and how long a step takes beside the total-matched twin's; the active width is 100 units, the total 800
TWINS = {"dense-1x": (100, 0.2), "dense-2x": (200, 0.4), "dense-4x": (400, 0.6), "dense-8x": (800, 1.0)}
MOE_SLOW = 0.6


def twin(name: str, width: int) -> ModelFacts:
    facts = make_facts(num_experts=0, name=name)
    match = {100: "active", 800: "total"}.get(width, f"{width // 100}x")
    told = TwinFacts(
        of="moe", match=match, width=width, active_width=100, total_width=800, target_params=width * 10_000
    )
    return replace(facts, total_params=width * 10_000, twin=told)


def run_with_twins(folder: Path, *, moe_slow: float = MOE_SLOW) -> Summary:
    models = {"moe": (make_facts(), [launch(1, moe_slow, moe=True, rounds=3)])}
    for number, (name, (width, slow)) in enumerate(TWINS.items()):
        models[name] = (twin(name, width), [launch(2 + number, slow, rounds=3)])
    return summarise(open_record(write_record(folder, models)), PRICING)


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    return run_with_twins(tmp_path_factory.mktemp("twins") / "run")


def test_the_roles_are_found_by_width(summary: Summary) -> None:
    parts = roles(summary)
    assert parts.moe is not None and parts.moe.name == "moe"
    assert parts.active is not None and parts.active.name == "dense-1x"
    assert parts.total is not None and parts.total.name == "dense-8x"
    assert [model.name for model in parts.twins] == list(TWINS)
    assert parts.rivals == ()


def test_the_headline_answers_the_question(summary: Summary) -> None:
    """0.6 of the total-matched, 3 times the active-matched; (1 - 0.6) / (1 - 0.2) = 50 %; as dear as the 4x twin."""
    headline = compare_document([summary], reference=None).document.headline
    found = re.fullmatch(
        r"On this traffic moe costs ([\d.]+)x \[.+?\] of the total-matched dense model and ([\d.]+)x \[.+?\] of the "
        r"active-matched one: of the saving between the two dense twins, (\d+) % \[.+?\] is realised "
        r"\(all steps, all at once\); it costs as much as a dense model of ([\d.]+) M parameters \[.+?\] "
        r"\(this launch\)\.",
        headline,
    )
    assert found is not None, headline
    of_total, of_active, realised, size = map(float, found.groups())
    assert of_total == pytest.approx(0.6, rel=0.1)
    assert of_active == pytest.approx(3, rel=0.1)
    assert realised == pytest.approx(50, abs=10)
    assert size == pytest.approx(4, rel=0.25)


def test_an_moe_dearer_than_its_total_matched_twin_realised_nothing(tmp_path: Path) -> None:
    headline = compare_document([run_with_twins(tmp_path / "run", moe_slow=1.6)], reference=None).document.headline
    assert "of the saving between the two dense twins none is realised (-" in headline
    assert "it costs more than the largest dense size tried (8 M parameters)" in headline


def test_the_total_matched_twin_is_the_reference_unless_another_is_named(summary: Summary) -> None:
    def reference(name: str | None) -> str:
        table = compare_document([summary], reference=name).document.sections[0].blocks[0]
        assert isinstance(table, Table)
        return table.columns[table.reference]

    assert reference(None) == "dense-8x"
    assert reference("dense-2x") == "dense-2x"


def test_json_and_csv_carry_the_same_figures(summary: Summary) -> None:
    comparison = compare_document([summary], reference=None)
    data = json.loads(json.dumps(comparison_json(comparison), allow_nan=False))
    assert data["verdict"] == comparison.document.headline
    realised = next(m for m in data["metrics"] if m["name"] == "sparsity_realised_ratio")
    assert realised["labels"] == {"phase": "all", "concurrency": "all at once", "measured": "alone"}
    assert realised["of"] == "moe" and realised["ci_low"] < realised["value"] < realised["ci_high"]
    header, *rows = comparison_rows(comparison)
    assert all(len(row) == len(header) for row in rows)
    row = next(dict(zip(header, row, strict=True)) for row in rows if row[header.index("name")] == realised["name"])
    assert row["value"] == realised["value"]


def test_without_twins_what_they_would_tell_has_its_reason(tmp_path: Path) -> None:
    metrics = dict(
        (value.name, value)
        for _, value in compare_document([planted_run(tmp_path / "run", launches=1)], reference=None).metrics
    )
    assert metrics["sparsity_realised_ratio"].value is None
    assert "twin_of" in metrics["sparsity_realised_ratio"].reasons[0]
    assert "ladder" in metrics["dense_equivalent_params"].reasons[0]


def test_a_ladder_stands_on_the_page_with_its_taxes(tmp_path: Path) -> None:
    """10 ms active-matched, 12 with dispatch, 22 with coverage, 21 as recorded, 40 total-matched."""
    run_with_twins(tmp_path / "run")
    rungs = {"active": 0.010, "concentrated": 0.012, "balanced": 0.022, "recorded": 0.021, "total": 0.040}
    lanes = [
        lane(name, match=name) if name in ("active", "total") else lane(name, rung=name, model="moe") for name in rungs
    ]
    write_lanes(tmp_path / "run" / "ladder", rungs, lanes=lanes)
    page = compare_document([summarise(open_record(tmp_path / "run"), PRICING)], reference=None)
    metrics = {value.name: value for _, value in page.metrics if value.labels.get("phase") == "decode"}
    assert metrics["dispatch_tax_s"].value == pytest.approx(0.002)
    assert metrics["coverage_tax_s"].value == pytest.approx(0.010)
    assert metrics["imbalance_tax_s"].value == pytest.approx(-0.001)
    assert metrics["sparsity_saved_s"].value == pytest.approx(0.019)
    section = next(s for s in page.document.sections if s.name == "ladder")
    (waterfall,) = [block for block in section.blocks if isinstance(block, Waterfall)]
    assert [step.label for step in waterfall.steps] == [
        "active-matched", "dispatch", "coverage", "imbalance", "MoE", "saved", "total-matched"
    ]  # fmt: skip
    assert waterfall.steps[0].value + sum(s.value for s in waterfall.steps[1:4]) == pytest.approx(0.021)


def test_a_run_against_itself_is_the_same_run(summary: Summary) -> None:
    page = compare_document([summary, summarise(open_record(summary.record.path), PRICING)], reference=None)
    assert "are the same run: every ratio is 1" in page.document.headline
    tables = [block for block in page.document.sections[0].blocks if isinstance(block, Table) and block.compares]
    verdicts = {ratio.verdict for table in tables for row in table.rows for ratio in row.ratios if ratio is not None}
    assert verdicts == {"same run"}


def test_unlike_runs_are_refused_by_name_or_compared_under_a_banner(tmp_path: Path) -> None:
    first = planted_run(tmp_path / "one", seed=1)
    other = planted_run(tmp_path / "two", seed=2, environment={"threads": 7})
    with pytest.raises(RecordError, match=r"threads.*--allow threads"):
        compare_document([first, other], reference=None)
    page = compare_document([first, other], reference=None, allow=frozenset({"threads"}))
    assert any("threads" in banner for banner in page.document.banners)


def test_a_slowed_model_is_called_worse_and_an_equal_one_is_not(tmp_path: Path) -> None:
    first = planted_run(tmp_path / "one", seed=1)
    slow = planted_run(tmp_path / "slow", seed=2, slow=1.2)
    same = planted_run(tmp_path / "same", seed=3)
    assert (
        "slow is worse than one: dense: decode step 1."
        in compare_document([first, slow], reference=None).document.headline
    )
    equal = compare_document([first, same], reference=None).document.headline
    assert "worse" not in equal and "better" not in equal


def test_runs_without_a_common_model_are_bad_input(tmp_path: Path, summary: Summary) -> None:
    models = {"other": (make_facts(name="other"), [launch(1, moe=True)])}
    alone = summarise(open_record(write_record(tmp_path / "run", models)), PRICING)
    with pytest.raises(InputError, match="no model in common"):
        compare_document([summary, alone], reference=None)


def test_models_of_different_dtypes_are_a_reason_to_doubt(tmp_path: Path) -> None:
    run = planted_run(tmp_path / "run", launches=1).record.path
    for model, dtype in (("moe", "bfloat16"), ("dense", "float32")):
        (run / model / "launch-0" / "launch.json").write_text(json.dumps({"engine": {"dtype": dtype}}))
    doubts = find_doubts(summarise(open_record(run), PRICING))
    (doubt,) = [doubt for doubt in doubts if doubt.code == "dtypes_differ"]
    assert "moe bfloat16, dense float32" in doubt.text


def test_two_runs_of_a_ladder_are_set_beside_each_other(tmp_path: Path) -> None:
    """Dispatch takes 2 of 21 ms in both; the active-matched twin of the third takes twice as long."""
    rungs = {"active": 0.010, "concentrated": 0.012, "balanced": 0.020, "recorded": 0.021, "total": 0.040}
    lanes = [lane(n, match=n) if n in ("active", "total") else lane(n, rung=n, model="moe") for n in rungs]
    noise = np.random.default_rng(0).normal(1, 0.01, (3, 120))
    summaries = []
    for number, active in enumerate((0.010, 0.010, 0.020)):
        run = run_with_twins(tmp_path / f"run-{number}").record.path
        times = {
            n: (active if n == "active" else s) * np.roll(noise[number], i) for i, (n, s) in enumerate(rungs.items())
        }
        write_lanes(run / "ladder", times, lanes=lanes)
        summaries.append(summarise(open_record(run), PRICING))
    same = compare_document(summaries[:2], reference=None).document
    assert any(re.match(r"The two ladders agree in (\d+) of \1 figures\.", note) for note in same.notes)
    other = compare_document([summaries[0], summaries[2]], reference=None).document
    assert any("apart are dispatch" in note for note in other.notes)
    assert "ladders-run-2" in [section.name for section in other.sections]


def test_outputs_that_models_end_themselves_are_a_reason_to_doubt_where_their_lengths_differ(tmp_path: Path) -> None:
    """moe ends its answers after 2 of 8 tokens, dense never: 2 and 8 tokens a request."""

    def ending(tokens: int) -> list[list[PassTables]]:
        times = [np.arange(1, tokens + 1) / 10] * 4
        requests = make_requests(4, token_times_s=times, output_tokens=8)
        return [[make_pass(name="round-0", traffic="offline", steps=make_steps(4), requests=requests)]]

    models = {
        "moe": (make_facts(num_experts=0), ending(2)),
        "dense": (make_facts(num_experts=0, name="dense"), ending(8)),
    }
    for outputs, codes in (("free", {"output_lengths_differ", "outputs_never_ended"}), ("forced_length", set())):
        path = write_record(tmp_path / outputs, models, workload={"outputs": outputs})
        doubts = find_doubts(summarise(open_record(path), PRICING))
        found = {d.code: d for d in doubts if d.code in ("output_lengths_differ", "outputs_never_ended")}
        assert found.keys() == codes
        if codes:
            assert "moe 2, dense 8 tokens a request" in found["output_lengths_differ"].text
            assert "cost per request" in found["output_lengths_differ"].text
            assert found["outputs_never_ended"].model == "dense"
