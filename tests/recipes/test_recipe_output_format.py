"""docs/recipes/output-format.md, executed: the format serves run, compare, regress, params and lists."""

from __future__ import annotations

from pathlib import Path

import pytest

from moeprof import render
from tests.helpers.recipes import blocks, recipe_module
from tests.helpers.tiny_run import run_main

RECORD = "tests/records/format-1"


@pytest.fixture
def tsv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = recipe_module("output-format", tmp_path, monkeypatch)
    (row,) = [code for language, file, code in blocks("output-format") if language == "python" and not file]
    rows = eval("{" + row.replace("moeprof.render.tsv", module.__name__) + "}", vars(render))
    monkeypatch.setattr(render, "FORMATS", render.FORMATS | rows)


@pytest.mark.usefixtures("tsv")
def test_every_command_prints_the_new_format() -> None:
    for command in (
        ["report", RECORD],
        ["compare", RECORD],
        ["regress", RECORD, "--baseline", RECORD, "--allow-undecided"],
        ["explain"],
    ):
        ran = run_main([*command, "--format", "tsv"])
        assert ran.code == 0, ran.stderr
        head, *lines = ran.stdout.splitlines()
        assert len(lines) > 5 and {line.count("\t") for line in lines} == {head.count("\t")}


@pytest.mark.usefixtures("tsv")
def test_every_command_writes_the_new_format(tmp_path: Path) -> None:
    for command, name in (
        (["report", RECORD], "summary.tsv"),
        (["compare", RECORD], "compare.tsv"),
        (["regress", RECORD, "--baseline", RECORD, "--allow-undecided"], "regress.tsv"),
    ):
        folder = tmp_path / command[0]
        assert run_main([*command, "--write", "tsv", "--output-dir", folder]).code == 0
        assert [path.name for path in folder.iterdir()] == [name]


def test_without_its_row_there_is_no_such_format() -> None:
    assert "is not one of" in run_main(["report", RECORD, "--format", "tsv"]).stderr
    assert "unknown format 'tsv'" in run_main(["report", RECORD, "--write", "tsv"]).stderr
