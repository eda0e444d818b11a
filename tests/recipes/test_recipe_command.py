"""docs/recipes/command.md, executed: the new command runs and stands in the help."""

from __future__ import annotations

from pathlib import Path

import pytest

from moeprof.cli import main
from tests.helpers.recipes import blocks, recipe_module
from tests.helpers.tiny_run import run_main


def test_a_new_command_runs_and_stands_in_the_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = recipe_module("command", tmp_path, monkeypatch)
    (row,) = [code for language, file, code in blocks("command") if language == "python" and not file]
    rows = eval("{" + row.replace("moeprof.cli.runs", module.__name__) + "}")
    monkeypatch.setattr(main, "COMMANDS", main.COMMANDS | rows)
    ran = run_main(["runs", "tests/records", "--format", "csv"])
    assert ran.code == 0, ran.stderr
    head, *lines = ran.stdout.splitlines()
    assert head == "run,status,models" and any(line.startswith("format-1,") for line in lines)
    assert "List the runs of a folder" in run_main(["--help"]).stdout
