"""docs/recipes/trace-format.md, executed: a file of the new format is known by its content and read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moeprof.sources import formats
from tests.helpers.recipes import blocks, recipe_module
from tests.helpers.tiny_run import run_main


def test_a_new_trace_format_is_known_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = recipe_module("trace-format", tmp_path, monkeypatch)
    (row,) = [code for language, file, code in blocks("trace-format") if language == "python" and not file]
    rows = eval("{" + row.replace("moeprof.sources.formats.gateway", module.__name__) + "}")
    monkeypatch.setattr(formats, "READERS", rows | formats.READERS)
    log = tmp_path / "log.csv"
    log.write_text("received,prompt_tokens,completion_tokens\n0,10,5\n2,30,5\n")
    ran = run_main(["trace", "inspect", log, "--format", "json"])
    assert ran.code == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert (found["source"], found["num_requests"], found["span_s"]) == ("gateway", 2, 2.0)
