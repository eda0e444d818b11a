"""Names of a stranger's record do nothing to spreadsheets, CI runners and terminals, in any output."""

from __future__ import annotations

import csv
import io
import json
import shutil
import unicodedata
from pathlib import Path

import pytest

from moeprof.cli.main import main
from moeprof.core.text import UNSAFE, Harmless, cell, json_text

MODELS = ("=cmd|' /C calc'!A0", "::error::pwned", "##[error]pwned", "\u202egnp.exe")
RECORD = Path(__file__).parents[1] / "records" / "format-1"
NAMES = [
    "=cmd|' /C calc'!A0", "+1+1", "-1+1", "@SUM(1)", "\t=1", "\uff1d1+1", "::error::pwned", "  ::stop-commands::tok",
    "##[error]pwned", "x ##vso[task.setvariable]y", "\x1b]0;owned\x07", "\u202egnp.exe", "a\u2028::warning::b",
]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("=1", "'=1"), ("+1+1", "'+1+1"), (" @x", "' @x"), ("\tx", "'\\tx"), ("\uff1d1", "'\uff1d1"),
        ("::e::", "'::e::"),
        ("-1.5", "-1.5"), ("+3e4", "+3e4"), (-1.5, -1.5), (None, None), ("plain", "plain"), ("a=b", "a=b"),
    ],
)  # fmt: skip
def test_a_cell_that_a_spreadsheet_would_run_is_text(value: object, shown: object) -> None:
    assert cell(value) == shown


@pytest.mark.parametrize(
    ("parts", "shown"),
    [
        (["::error::x\n"], "\\::error::x\n"),
        (["a\n", "  ", "::error::x\n"], "a\n  \\::error::x\n"),
        (["a\n:", ":error::x\n"], "a\n:\\:error::x\n"),
        (["a ::b\n"], "a ::b\n"),
        (["x ##[error]y"], "x # #[error]y"),
        (["x #", "#[error]y"], "x # #[error]y"),
        (["x ##", "[error]y"], "x ##\\[error]y"),
        (["##VSO[task]"], "# #VSO[task]"),
        (["## title\n"], "## title\n"),
    ],
)
def test_no_line_is_a_command_however_it_was_written(parts: list[str], shown: str) -> None:
    out = io.StringIO()
    Harmless(out).writelines(parts)
    assert out.getvalue() == shown


@pytest.mark.parametrize("name", NAMES)
def test_json_is_the_same_value_and_holds_nothing_that_is_obeyed(name: str) -> None:
    text = json_text({"name": name})
    assert json.loads(text) == {"name": name}
    assert "##[" not in text
    assert text.replace("\n", "").isprintable()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    for number, name in enumerate(MODELS):
        copy = Path(shutil.copytree(RECORD, folder / str(number)))
        experiment = json.loads((copy / "experiment.json").read_text())
        experiment["models"][0]["name"] = name
        experiment["notes"] = NAMES
        (copy / "experiment.json").write_text(json.dumps(experiment))
    return folder


@pytest.mark.parametrize("number", range(len(MODELS)), ids=[ascii(name) for name in MODELS])
def test_no_output_of_a_hostile_record_is_obeyed(
    hostile: Path, number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forms = ("table", "md", "csv", "json")
    for form in forms[number % 2 :: 2] if number else forms:
        assert main(["report", str(hostile / str(number)), "--format", form]) == 0
        printed = capsys.readouterr().out
        for line in printed.splitlines():
            assert not line.lstrip().startswith("::")
            assert "##[" not in line
            assert "##vso[" not in line
            assert not [c for c in line if unicodedata.category(c) in UNSAFE]
    files = ["--write", "html,csv", "--output-dir", str(tmp_path / "o")]
    assert main(["report", str(hostile / str(number)), *files]) == 0
    rows = list(csv.reader(io.StringIO((tmp_path / "o" / "summary.csv").read_text())))
    assert not [text for row in rows for text in row if cell(text) != text]
    assert "\u202e" not in (tmp_path / "o" / "report.html").read_text()
