from __future__ import annotations

import ast
import json
from pathlib import Path

import numpy as np
import pytest

from moeprof.analysis.metrics import SUBJECTS
from moeprof.analysis.metrics.cards import all_cards
from tests.helpers.recipes import blocks, recipe_module
from tests.helpers.records import make_facts, make_pass, make_steps, make_telemetry, write_record
from tests.helpers.tiny_run import run_main

NAME = "carbon_g_per_1m_output_tokens"


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = recipe_module("metric", tmp_path, monkeypatch)
    (row,) = [code for language, file, code in blocks("metric") if language == "python" and not file]
    (scope,) = ast.literal_eval(f"{{{row}}}").values()
    monkeypatch.setitem(SUBJECTS, module.__name__, scope)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Ten seconds at 100 W, 40 output tokens: 25 J a token."""
    times = 0.2 * np.arange(51)
    telemetry = make_telemetry(51, power_w=100.0, energy_counter_j=100.0 * times)
    one = make_pass(steps=make_steps(10, step_s=1.0), telemetry=telemetry, window_s=(0.0, 10.0))
    return write_record(tmp_path / "run", {"moe": (make_facts(), [[one]])})


@pytest.mark.usefixtures("registered")
def test_a_metric_of_one_file_and_one_row_is_in_the_report(run: Path) -> None:
    shown = run_main(["report", str(run), "--usd-per-device-hour", "2", "--format", "json"])
    (value,) = [m for m in json.loads(shown.stdout)["models"]["moe"]["metrics"] if m["name"] == NAME]
    assert value["value"] == pytest.approx(25e6 * 400 / 3.6e6)  # J per million tokens, 400 g per 3.6 MJ
    assert (value["unit"], value["better"]) == ("g / 1M tokens", "lower")
    page = run_main(["report", str(run), "--usd-per-device-hour", "2", "--format", "md"])
    assert "carbon / 1M output tokens" in page.stdout


@pytest.mark.usefixtures("registered")
def test_a_metric_of_one_file_and_one_row_is_explained() -> None:
    lines = run_main(["explain", NAME]).stdout.splitlines()
    assert lines[0] == NAME
    assert lines[-1].endswith(f"docs/metrics.md#{NAME}")


def test_a_recipe_leaves_nothing_behind() -> None:
    assert NAME not in {card.name for card in all_cards()}
