"""The evidence for one card, as far as a CPU can test it: workloads, steps, archives, targets, pages."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import evidence, publish
from benchmarks.gpu.carry import first_minute, olmoe_counts
from benchmarks.gpu.evidence import FORMAT_VERSION
from benchmarks.gpu.experiments import RULES, filled
from benchmarks.gpu.goals import GOALS, Figure
from benchmarks.gpu.page import BEGIN, END, docs_block, evidence_page, with_block
from benchmarks.gpu.parts import PLAN, build
from benchmarks.gpu.publish import EXPERIMENTS, PUBLISHED, card_name, published_results
from benchmarks.gpu.results import Results, read_results
from benchmarks.gpu.workload_files import WORKLOADS, full_size, tiny
from moeprof.capture.devices.choose import Choice
from moeprof.capture.memory.shape import DeviceMemory
from moeprof.capture.run.prepare import prepare
from moeprof.core.errors import RecordError
from moeprof.core.workload.workload import Prices, load_workload

NAMES = sorted(path.stem for path in WORKLOADS.glob("*.yaml"))


# -- workloads -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_workload_of_the_card_loads_and_is_called_as_its_file(name: str) -> None:
    workload = load_workload(WORKLOADS / f"{name}.yaml")
    assert workload.name == name and workload.device == "cuda" and workload.engine.dtype == "bfloat16"


@pytest.mark.parametrize("name", NAMES)
def test_a_tiny_twin_runs_on_the_cpu_with_the_same_kinds_of_measurement(name: str, tmp_path: Path) -> None:
    ready, full = tiny(name, tmp_path), load_workload(WORKLOADS / f"{name}.yaml")
    assert ready.path is not None
    small = load_workload(ready.path)
    assert small.device == "cpu" and small.models[0].config != full.models[0].config
    for part in ("sweep", "lockstep", "ladder", "claim"):
        assert (getattr(small, part) is None) == (getattr(full, part) is None)


def test_every_workload_stands_in_one_part() -> None:
    planned = [one.name for part in PLAN.values() for one in part if one.kind == "run"]
    assert sorted(planned) == NAMES


def test_each_part_is_expected_to_end_within_nine_minutes() -> None:
    assert all(sum(one.expected_s for one in part) <= evidence.BUDGET_S - evidence.PACKING_S for part in PLAN.values())


def test_popularity_that_is_not_there_is_replaced_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.gpu.workload_files._there", lambda source, path: False)
    ready = full_size("mixtral-against-dense", tmp_path)
    assert ready.path is not None and "instead" in ready.notes[0]
    assert load_workload(ready.path).models[0].routing.policy == "zipf"
    assert (
        ": /" not in ready.path.read_text()
    )  # the record tells this text, and a machine's folders are not its business


def test_a_missing_trace_makes_its_step_impossible_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.gpu.workload_files._there", lambda source, path: False)
    built = build(("3",), tmp_path, is_tiny=False)
    assert [step.name for step in built.steps] == ["qwen3-30b-against-dense"]
    assert "make gpu-carry" in built.impossible["azure-olmoe"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixtral-against-dense", "roofline-mixtral"])
def test_the_largest_workloads_are_predicted_to_fit_a_card_of_141_gb(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = DeviceMemory(total_bytes=141_000_000_000, free_bytes=140_000_000_000, is_host=False)
    monkeypatch.setattr("moeprof.capture.memory.predict.device_memory", lambda device, gpu: card)
    chosen = (Choice(device="cuda:0"), ())
    monkeypatch.setattr("moeprof.capture.run.prepare.choose_devices", lambda workload, **_: chosen)
    ready = full_size(name, tmp_path)
    assert ready.path is not None
    priced = replace(load_workload(ready.path), prices=Prices(usd_per_device_hour=1.0))
    fit = prepare(priced).fit
    assert fit.refusal is None and fit.kv_tokens == fit.wanted_kv_tokens
    assert 93e9 < max(model.weights_bytes or 0 for model in fit.models.values()) < 94e9


def test_the_minute_holds_what_came_within_a_minute_of_the_first() -> None:
    head, first = "TIMESTAMP,ContextTokens,GeneratedTokens", "2023-11-16 18:15:46.6805900,374,44"
    lines = [head, first, "2023-11-16 18:16:46.6805900,10,4", "2023-11-16 18:16:48.6805900,10,4"]
    assert first_minute(lines) == [f"{line}\n" for line in lines[:3]]


def test_olmoe_counts_are_those_of_its_measured_layers(tmp_path: Path) -> None:
    file = tmp_path / "counts.csv"
    rows = ["model,kind,domain,layer,expert,count", "olmoe,expert_counts,c4,7,3,70", "olmoe,expert_counts,c4,0,1,5"]
    file.write_text("\n".join([*rows, "mistral,expert_counts,c4,0,1,9", "olmoe,expert_counts,arxiv,0,1,9"]))
    counts = olmoe_counts(file)
    assert len(counts) == 2 and counts[0][1] == 5 and counts[1][3] == 70 and sum(map(sum, counts)) == 75


# -- pages ---------------------------------------------------------------------------------------------------------


def told_by_a_card(**changes: Any) -> dict[str, Any]:
    machine = {"name": "machine", "environment": {"packages": {"torch": "2.11.0", "transformers": "5.17.0"}}}
    peaks = {"name": "peaks", "bandwidth_bytes_per_s": 4.3e12, "flops_per_s": {"bfloat16": 780e12}}
    return {
        "format_version": FORMAT_VERSION,
        "part": "1",
        "tiny": False,
        "started": "2026-12-01T10:00:00+00:00",
        "notes": {},
        "steps": [{"name": "overhead", "status": "failed", "seconds": 3.0, "reason": "exit code 1", "tail": ""}],
        "archives": [],
        "probes": {"environment": {"cases": [machine, {"name": "card", "name_": ""}, peaks]}},
        "figures": [Figure(key="decode-over-roofline/mixtral/1", value=1.31, low=1.3, high=1.32).to_json()],
    } | changes


def test_before_any_card_every_figure_is_not_yet_measured() -> None:
    page = evidence_page(Results())
    assert "no card has run it" in page and page.count("| not yet measured | not measured |") == len(GOALS)
    block = docs_block(Results())
    assert block.startswith(BEGIN) and block.endswith(END) and "not yet measured" in block


def test_the_page_holds_each_figure_and_verdict_and_what_failed() -> None:
    page = evidence_page(Results(parts=(told_by_a_card(),)))
    assert "| at most 1.4 | 1.31 [1.3, 1.32] | met |" in page
    assert "4.30" in page and "780" in page and "- overhead: failed, exit code 1" in page
    assert "torch 2.11.0" in page


def test_the_block_replaces_what_stands_between_its_markers() -> None:
    text = with_block(f"before\n{BEGIN}\nold\n{END}\nafter", f"{BEGIN}\nnew\n{END}")
    assert text == f"before\n{BEGIN}\nnew\n{END}\nafter"
    with pytest.raises(ValueError, match="once each"):
        with_block("no markers", "")


def test_what_is_committed_is_what_the_records_give() -> None:
    results = published_results(PUBLISHED)
    assert (PUBLISHED / "gpu" / "README.md").read_text() == evidence_page(results)
    assert EXPERIMENTS.read_text() == filled(EXPERIMENTS.read_text(), results)
    page = (WORKLOADS.parents[1] / "docs" / "gpu.md").read_text()
    assert with_block(page, docs_block(results)) == page


def test_every_experiment_has_a_rule_and_every_rule_an_experiment() -> None:
    assert all(EXPERIMENTS.read_text().count(f"<!-- result {key} -->") == 1 for key in RULES)
    with pytest.raises(ValueError, match="'x' is unknown"):
        filled("<!-- result x --><!-- /result -->", Results())


def test_the_result_of_graphs_is_two_times_and_their_ratio() -> None:
    cases = [
        {"name": "m, 4 layers, batch 1: eager", "step_s": 0.003},
        {"name": "m, 4 layers, batch 1: graph", "step_s": 0.0015},
        {"name": "m, 4 layers, batch 8: eager", "step_s": 0.003},
        {"name": "m, 4 layers, batch 8: graph", "reason": "a kernel cannot be captured"},
    ]
    text = filled(
        "<!-- result graphs -->old<!-- /result -->",
        Results(parts=(told_by_a_card(probes={"engine": {"cases": cases}}),)),
    )
    assert "m, 4 layers, batch 1: 3.00 ms eager, 1.50 ms graph (2.00x)" in text
    assert "batch 8: not measured (a kernel cannot be captured)" in text and "old" not in text


@pytest.mark.parametrize(
    ("device", "name"), [("NVIDIA H200", "h200"), ("NVIDIA A100-SXM4-80GB", "a100"), ("Intel Xeon 8480", "cpu")]
)
def test_a_record_is_called_by_its_card(device: str, name: str) -> None:
    assert card_name(device) == name


def test_results_of_another_version_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "results-1.json"
    file.write_text(json.dumps(told_by_a_card(format_version=0)))
    with pytest.raises(RecordError, match="not results of this version"):
        read_results([file])


# -- the whole path ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_whole_path_with_tiny_models_from_steps_to_published_pages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, to = tmp_path / "out", tmp_path / "published"
    steps = ["--only", "environment", "roofline-mixtral"]
    arguments = ["--part", "1", "--tiny", "--out", str(out), "--work", str(tmp_path / "work"), *steps]
    assert evidence.main(arguments) == 0, (out / "log-1.txt").read_text()
    assert "not measured" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["log-1.txt", "results-1.json", "roofline-mixtral.tar.gz"]

    assert publish.main([str(out), "--to", str(to)]) == 2
    assert "tiny models are no evidence" in capsys.readouterr().err
    assert publish.main([str(out), "--to", str(to), "--allow-tiny"]) == 0
    record = to / "roofline-mixtral-cpu"
    assert (record / "report.html").exists() and not list(record.rglob("*.arrows"))
    page = (to / "gpu" / "README.md").read_text()
    assert "tiny models: a test of the path" in page and "../roofline-mixtral-cpu/report.html" in page
