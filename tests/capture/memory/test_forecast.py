"""The forecast of host memory is held against what processes take: two small checkpoints and 211 M parameters."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.tiny_run import run_main

DEMO = Path(__file__).parents[3] / "workloads" / "models"
WORKLOAD = """\
name: forecast
traffic:
  arrivals: {{pattern: concurrency, concurrency: 4}}
  lengths: {{input: {{distribution: fixed, value: 32}}, output: {{distribution: fixed, value: 8}}}}
  prompts: {{source: packaged}}
  num_requests: 8
models: {models}
rounds: 1
threads: 1
device: cpu
warmup: {{num_requests: 2, max_seconds: 1}}
engine: {{max_batch_tokens: 512}}
instruments: {instruments}
prices: {{usd_per_device_hour: 1}}
"""
MODELS: list[tuple[str, list[dict[str, str]], dict[str, bool]]] = [
    (
        "the two demo models, with all instruments",
        [{"name": name, "path": str(DEMO / name)} for name in ("demo-moe", "demo-dense")],
        {"overhead": False},
    ),
    (
        "211 M parameters, rounds alone",
        [{"name": "big", "config": "cpu-moe-211m", "weights": "random"}],
        {"gap": False, "overhead": False, "quality": False, "forced_picks": False},
    ),
]


@pytest.mark.slow
@pytest.mark.usefixtures("spawned_workers")
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a resident set is reset on Linux alone")
@pytest.mark.parametrize(("models", "instruments"), [row[1:] for row in MODELS], ids=[row[0] for row in MODELS])
def test_the_forecast_is_within_a_tenth_of_what_was_taken(
    models: list[dict[str, str]], instruments: dict[str, bool], tmp_path: Path
) -> None:
    file, run = tmp_path / "w.yaml", tmp_path / "run"
    file.write_text(WORKLOAD.format(models=json.dumps(models), instruments=json.dumps(instruments)), encoding="utf-8")
    told = run_main(["run", file, "--output-dir", run, "--quiet", "--write", "json,md"])
    assert told.code == 0, told.stderr
    fit: dict[str, Any] = json.loads((run / "experiment.json").read_text())["fit"]["models"]
    page = (run / "report.md").read_text(encoding="utf-8")
    for model in models:
        launch = json.loads((run / model["name"] / "launch-0" / "launch.json").read_text())
        taken = launch["memory"]["host_rss_peak_bytes"]
        assert fit[model["name"]]["needed_bytes"] == pytest.approx(taken, rel=0.10)
        assert launch["memory"]["after_warmup_bytes"] <= taken
    assert page.count("predicted before loading,") >= len(models)
