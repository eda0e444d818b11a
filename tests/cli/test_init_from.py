"""``moeprof init --from``: a workload for that very trace, which a dry run takes, and which overwrites nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from moeprof.core.workload.workload import load_workload
from moeprof.sources.schedule import traffic_trace
from tests.helpers.tiny_run import run_main

MOONCAKE = [
    {"timestamp": 250 * i, "input_length": 90 + i % 30, "output_length": 3000, "hash_ids": [0, i + 1]}
    for i in range(100)
]
CHATS = [{"messages": [{"role": "user", "content": f"Question {i} about the weather"}]} for i in range(5)]


def rows(*objects: dict[str, Any]) -> str:
    return "\n".join(map(json.dumps, objects))


def made(folder: Path, text: str, *options: str) -> tuple[dict[str, Any], str]:
    """The workload as written: its keys and its text."""
    (folder / "log.txt").write_text(text, encoding="utf-8")
    out = folder / "made.yaml"
    assert run_main(["init", "--from", str(folder / "log.txt"), "-o", str(out), *options]).code == 0
    written = out.read_text(encoding="utf-8")
    return yaml.safe_load(written), written


def test_a_workload_says_how_the_file_was_read_and_what_was_cut(tmp_path: Path) -> None:
    keys, text = made(tmp_path, rows(*MOONCAKE))
    trace = keys["traffic"]["trace"]
    assert (trace["path"], trace["format"], trace["timestamp_unit"]) == ("log.txt", "mooncake", "ms")
    assert trace["block_tokens"] == 64  # 90 to 119 tokens stand beside two ids
    assert trace["length_scale"] == pytest.approx(64 / 3000, rel=0.01)
    assert "hash_ids are read as blocks of 64 tokens" in text
    assert [model["name"] for model in keys["models"]] == ["moe", "dense"]
    read = traffic_trace(load_workload(tmp_path / "made.yaml").traffic, seed=0)
    assert len(read) == 64
    assert read.arrival_s[-1] == pytest.approx(
        16, rel=0.001
    )  # 63 gaps of 250 ms are 15.75 s: four a second are wanted at most
    assert max(read.output_tokens) == 64


def test_columns_that_look_like_times_and_lengths_are_used_and_told(tmp_path: Path) -> None:
    keys, text = made(tmp_path, "started_at_ms;prompt_tokens;completion_tokens;team\n0;10;2;a\n900;20;3;b\n")
    trace = keys["traffic"]["trace"]
    assert trace["columns"] == {"arrival": "started_at_ms", "input": "prompt_tokens", "output": "completion_tokens"}
    assert trace["timestamp_unit"] == "ms"
    assert "format" not in trace
    assert "told by their names" in text
    assert "not used: team" in text


def test_what_the_user_says_of_the_file_stands_in_the_workload(tmp_path: Path) -> None:
    keys, _ = made(
        tmp_path,
        "when,in,out,who\n0,10,2,a\nx,1,1,a\n900,20,3,b\n",
        *("--column", "arrival=when", "--column", "input=in", "--column", "output=out", "--timestamp-unit", "us"),
        "--skip-bad-rows",
    )
    assert keys["traffic"]["trace"]["columns"] == {"arrival": "when", "input": "in", "output": "out"}
    assert keys["traffic"]["trace"]["timestamp_unit"] == "us"
    assert keys["traffic"]["trace"]["skip_bad_rows"] is True


def test_texts_without_times_or_outputs_get_a_load_and_lengths(tmp_path: Path) -> None:
    keys, _ = made(tmp_path, rows(*CHATS))
    assert keys["traffic"]["arrivals"] == {"pattern": "concurrency", "concurrency": 4}
    assert keys["traffic"]["lengths"]["output"] == {"distribution": "fixed", "value": 32}
    assert "length_scale" not in keys["traffic"]["trace"]


@pytest.mark.parametrize(
    "text",
    [
        rows(*MOONCAKE),
        rows(*CHATS),
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00,5000,900\n2024-05-10 00:09:00,6,2\n",
        rows({"session_id": "s", "turns": [{"text": "x"}, {"text": "y", "delay": 3}]}),
    ],
)
def test_the_workload_passes_a_dry_run(tmp_path: Path, text: str) -> None:
    made(tmp_path, text)
    ran = run_main(["run", str(tmp_path / "made.yaml"), "--dry-run", "--device", "cpu"])
    assert (ran.code, "fits" in ran.stdout) == (0, True), ran.stderr


@pytest.mark.parametrize("more", [(), ("--force",)])
def test_nothing_is_overwritten(tmp_path: Path, more: tuple[str, ...]) -> None:
    made(tmp_path, rows(*CHATS))
    before = (tmp_path / "made.yaml").read_text()
    arguments = ["init", "--from", str(tmp_path / "log.txt"), "-o", str(tmp_path / "made.yaml"), *more]
    ran = run_main(arguments)
    assert (ran.code, "is there already; nothing was written" in ran.stderr) == (2, True)
    assert (tmp_path / "made.yaml").read_text() == before


def test_a_file_that_is_no_trace_writes_no_workload(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("a,b\n1,2\n")
    ran = run_main(["init", "--from", str(tmp_path / "log.txt"), "-o", str(tmp_path / "made.yaml")])
    assert (ran.code, "not a known trace" in ran.stderr) == (2, True)
    assert not (tmp_path / "made.yaml").exists()


def test_names_from_a_file_are_text_in_the_workload(tmp_path: Path) -> None:
    """A column's name could otherwise be a key of its own, or end the comment that it stands in."""
    name = "in\u2028models: [], \x1b[2J"
    keys, text = made(
        tmp_path,
        rows({name: 3, "out": 4, "evil\nmodels: 1": 2}),
        *("--column", f"input={name}", "--column", "output=out"),
    )
    assert keys["traffic"]["trace"]["columns"]["input"] == name
    assert len(keys["models"]) == 2
    assert "\x1b" not in text
