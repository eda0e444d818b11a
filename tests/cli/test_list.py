"""moeprof list, and how the bare command and its groups greet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moeprof.cli.main import main
from moeprof.core import VERSION
from tests.helpers.planted_runs import planted_run


def test_runs_are_listed_with_their_answers_and_damaged_ones_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planted_run(tmp_path / "a" / "good", slow=0.5, launches=2)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "experiment.json").write_text("{")
    assert main(["list", str(tmp_path), "--format", "json"]) == 0
    rows = {Path(row["run"]).name: row for row in json.loads(capsys.readouterr().out)}
    assert rows["good"]["models"] == "moe, dense"
    assert rows["bad"]["status"] == "unreadable"


def test_a_folder_without_runs_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", str(tmp_path)]) == 2
    assert "no run is kept here" in capsys.readouterr().err
    assert main(["list", str(tmp_path / "nowhere")]) == 2


@pytest.mark.parametrize("arguments", [[], ["trace"], ["baseline"], ["-h"], ["run", "-h"]])
def test_bare_commands_and_groups_show_their_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert said.out.lstrip().startswith("Usage:") and "\n" in said.out.strip() and not said.err
    assert "..." not in said.out.split("Commands:")[-1] or "Commands:" not in said.out


def test_the_version_has_a_short_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-V"]) == 0
    assert capsys.readouterr().out == f"moeprof {VERSION}\n"


def test_a_family_of_metrics_is_explained_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "ttft", "--format", "json"]) == 0
    names = [row["name"] for row in json.loads(capsys.readouterr().out)]
    assert names[0] == "ttft_*_s" and all(name.startswith("ttft_") for name in names)
