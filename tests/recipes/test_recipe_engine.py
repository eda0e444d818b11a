"""The recipe of docs/recipes/engine.md: an engine that steps itself, from a row of the table to the printed report."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

from moeprof.capture.engines import ENGINES, EngineKind, engine_kinds
from moeprof.core.errors import WorkloadError
from moeprof.core.trace import Request
from moeprof.core.workload.workload import load_workload
from tests.helpers.recipes import recipe_module
from tests.helpers.tiny_run import run_main, write_models

FIRST_S, EACH_S, NUM_REQUESTS, OUTPUT_TOKENS = 0.05, 0.01, 8, 6
WORKLOAD = f"""\
name: served
traffic:
  arrivals: {{pattern: concurrency, concurrency: 2}}
  lengths: {{input: {{distribution: fixed, value: 8}}, output: {{distribution: fixed, value: {OUTPUT_TOKENS}}}}}
  prompts: {{source: packaged}}
  num_requests: {NUM_REQUESTS}
models: [{{name: moe, path: ./moe}}]
engine: {{kind: clockwork, first_s: {FIRST_S}, each_s: {EACH_S}}}
rounds: 2
threads: 1
device: cpu
warmup: {{num_requests: 2, max_seconds: 1}}
prices: {{usd_per_device_hour: 1.5}}
"""


@pytest.fixture
def clockwork(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = recipe_module("engine", tmp_path, monkeypatch)
    row = EngineKind(settings=f"{module.__name__}:Settings", open=f"{module.__name__}:open")
    monkeypatch.setitem(ENGINES, "clockwork", row)
    return module


def write(folder: Path, text: str) -> Path:
    (folder / "served.yaml").write_text(text, encoding="utf-8")
    return folder / "served.yaml"


def test_the_engine_is_measured_from_the_workload_to_the_report(clockwork: ModuleType, tmp_path: Path) -> None:
    write_models(tmp_path)
    file = write(tmp_path, WORKLOAD)
    ran = run_main(["run", file, "--output-dir", tmp_path / "run"])

    assert ran.code == 0, ran.stderr
    launch = tmp_path / "run" / "moe" / "launch-0"
    ttft_s: list[float] = []
    for name in ("round-0", "round-1"):
        requests = pd.read_parquet(launch / name / "requests.parquet")
        assert list(requests["status"]) == ["done"] * NUM_REQUESTS
        assert list(requests["output_tokens"]) == [OUTPUT_TOKENS] * NUM_REQUESTS
        times = pd.DataFrame(requests["token_times_s"].tolist())
        assert times.diff(axis=1).iloc[:, 1:].to_numpy() == pytest.approx(EACH_S, rel=1e-9)
        waited_s = requests["first_token_s"] - requests["sent_s"]  # the engine plans from when it was handed over
        assert waited_s.min() >= FIRST_S and waited_s.median() < FIRST_S + 0.03
        ttft_s += (requests["first_token_s"] - requests["arrival_s"]).tolist()
        assert requests[["cached_tokens", "num_preemptions", "first_scheduled_s"]].isna().all(axis=None)
        assert pd.read_parquet(launch / name / "steps.parquet").empty
        assert not (launch / name / "routing.npz").exists()
        info = json.loads((launch / name / "pass.json").read_text())
        assert (info["status"], info["finished"]) == ("done", NUM_REQUESTS)
        assert all(check["passed"] for check in info["invariants"].values())

    info = json.loads((launch / "launch.json").read_text())
    assert info["engine"]["kind"] == "clockwork"
    assert set(info["lacks"]) == {"module", "steps", "routing", "memory", "forced ids"}
    measured = [info[name]["reason"] for name in ("quality", "forced_picks", "gap")]
    assert measured == 3 * [info["lacks"]["module"]]

    metrics = json.loads((tmp_path / "run" / "summary.json").read_text())["models"]["moe"]["metrics"]
    assert the(metrics, "tpot_mean_s")["value"] == pytest.approx(EACH_S, rel=1e-9)
    assert the(metrics, "ttft_mean_s")["value"] == pytest.approx(sum(ttft_s) / len(ttft_s), rel=1e-9)
    output_tokens = the(metrics, "cost_output_tokens")["value"]
    assert output_tokens == NUM_REQUESTS * OUTPUT_TOKENS
    bill = the(metrics, "run_cost_usd")["value"] / output_tokens * 1e6
    assert the(metrics, "usd_per_1m_output_tokens_all_in")["value"] == pytest.approx(bill)
    for name, need in (("step_mean_s", "steps"), ("mbu_ratio", "steps"), ("router_gini", "routing")):
        values = [metric for metric in metrics if metric["name"] == name]
        assert values, name
        assert all(metric["value"] is None and info["lacks"][need] in metric["reasons"] for metric in values)
    report = (tmp_path / "run" / "report.md").read_text()
    assert info["lacks"]["steps"] in report and info["lacks"]["routing"] in report


def the(metrics: list[dict[str, Any]], name: str, **labels: str) -> dict[str, Any]:
    found = [m for m in metrics if m["name"] == name and labels.items() <= m["labels"].items()]
    assert found, f"no {name} with {labels}"
    return found[0]


def test_its_own_class_reads_its_keys(clockwork: ModuleType, tmp_path: Path) -> None:
    file = write(tmp_path, WORKLOAD.replace("each_s: 0.01", "each: 0.01"))
    with pytest.raises(WorkloadError, match=r"served.yaml:8: engine.each: unknown key.*did you mean 'each_s'"):
        load_workload(file, engine_kinds())
    file = write(tmp_path, WORKLOAD.replace("kind: clockwork", "kind: clockwrok"))
    with pytest.raises(
        WorkloadError, match=r"engine\.kind: found 'clockwrok'; allowed: auto, transformers, vllm, openai, clockwork"
    ):
        load_workload(file, engine_kinds())


def test_what_needs_a_model_in_our_own_process_is_refused_before_anything_runs(
    clockwork: ModuleType, tmp_path: Path
) -> None:
    write_models(tmp_path)
    ran = run_main(["run", write(tmp_path, WORKLOAD + "ladder: {concurrency: [2]}\n"), "--dry-run"])
    assert ran.code == 2
    assert "ladder: needs a model in moeprof's own process, and engine.kind clockwork runs it elsewhere" in ran.stderr


def test_tokens_come_when_they_are_due(clockwork: ModuleType) -> None:
    engine = clockwork.Clockwork(clockwork.Settings(first_s=0.02, each_s=0.01))
    start_s, events = time.perf_counter(), []
    engine.submit(
        Request(
            index=3,
            request_id="r",
            arrival_s=0.0,
            input_ids=[1, 2],
            output_tokens=3,
            output_ids=None,
            request_class="all",
        )
    )
    while len(events) < 3:
        events += engine.poll(0.5).events
    engine.close()
    assert [event.request for event in events] == [3, 3, 3]
    assert [event.finished for event in events] == [False, False, True]
    first_s = events[0].at_s
    assert first_s - start_s >= 0.02
    assert [event.at_s - first_s for event in events] == pytest.approx([0.0, 0.01, 0.02])
