"""Steps, probes and archives of the evidence for one card: what fails stays alone, what is too large is told."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu.pack import LEFT_OUT, pack, unpack
from benchmarks.gpu.probe_tools import Probe
from benchmarks.gpu.steps import Step, StepResult, run_steps, without_folders
from moeprof.core.errors import RecordError

# -- steps ---------------------------------------------------------------------------------------------------------


def python(name: str, code: str, makes: Path, limit_s: float = 20.0) -> Step:
    return Step(name=name, arguments=("-c", code), limit_s=limit_s, makes=makes)


def test_a_step_that_fails_or_hangs_does_not_stop_the_others(tmp_path: Path) -> None:
    told: list[StepResult] = []
    steps = [
        python("broken", "raise SystemExit('/home/me/secret.py: no such card')", tmp_path / "a"),
        python("hung", "import threading; threading.Event().wait()", tmp_path / "b", limit_s=1.0),
        python("good", "print('fine')", tmp_path / "c"),
    ]
    results = run_steps(steps, budget_s=100, log=tmp_path / "log.txt", after=lambda step, result: told.append(result))
    assert [result.status for result in results] == ["failed", "timed out", "done"] and told == results
    assert results[0].reason == "exit code 1: secret.py: no such card"
    assert "fine" in (tmp_path / "log.txt").read_text()


def test_a_step_without_time_left_is_not_started(tmp_path: Path) -> None:
    results = run_steps(
        [python("late", "", tmp_path / "a")], budget_s=1, log=tmp_path / "log.txt", after=lambda step, result: None
    )
    assert results[0].status == "not started" and results[0].reason == "no time was left for it"


def test_folders_of_the_machine_do_not_reach_the_results() -> None:
    assert without_folders('File "/opt/env/lib/x.py", line 3: a/b of https://host/path') == (
        'File "x.py", line 3: a/b of https://host/path'
    )


# -- probes --------------------------------------------------------------------------------------------------------


class Event:
    """A CUDA event of a device on which every call takes 2 ms."""

    def record(self) -> None:
        pass

    def elapsed_time(self, other: Event) -> float:
        return 2.0


def probe_on_a_card(monkeypatch: pytest.MonkeyPatch) -> Probe:
    monkeypatch.setattr("torch.cuda.Event", lambda **options: Event())
    monkeypatch.setattr("torch.cuda.synchronize", lambda: None)
    probe = object.__new__(Probe)
    probe.is_tiny, probe.device = False, torch.device("cuda:0")
    return probe


def test_events_of_milliseconds_give_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    probe = probe_on_a_card(monkeypatch)
    assert probe.time_s(lambda: calls.append(1), calls=5) == pytest.approx(0.002)
    assert len(calls) == 3 + 5  # warm calls are not timed


def test_what_cannot_be_captured_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = probe_on_a_card(monkeypatch)

    def refuse(work: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(probe, "capture", refuse)
    found = probe.graph_case(lambda: None)
    assert found == {"graph_s": None, "graph_reason": "operation not permitted when stream is capturing more"}


def test_a_case_that_fails_is_told_and_the_next_one_runs(tmp_path: Path) -> None:
    probe = Probe("", ["--out", str(tmp_path / "x.json"), "--tiny"])
    probe.case("bad", lambda: {"ratio": 1 / 0})
    probe.case("good", lambda: {"ratio": 1})
    cases = json.loads((tmp_path / "x.json").read_text())["cases"]
    assert cases == [{"name": "bad", "reason": "ZeroDivisionError: division by zero"}, {"name": "good", "ratio": 1}]


# -- archives ------------------------------------------------------------------------------------------------------


def record_with(folder: Path, files: dict[str, int]) -> Path:
    """A record with files of so many random bytes, which no archive makes smaller."""
    for name, size in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(random.Random(name).randbytes(size))
    return folder


def test_a_small_record_is_packed_whole_but_for_its_pages(tmp_path: Path) -> None:
    record = record_with(tmp_path / "run", {"summary.json": 50, "moe/launch-0/round-0/steps.parquet": 50, "x.html": 9})
    packed = pack(record, tmp_path / "run.tar.gz")
    there = unpack(packed.path, tmp_path / "again")
    assert packed.left_out == () and not (there / "x.html").exists()
    assert (there / "moe/launch-0/round-0/steps.parquet").read_bytes() == (
        record / "moe/launch-0/round-0/steps.parquet"
    ).read_bytes()


def test_a_record_over_the_limit_loses_what_is_worth_least_and_says_so(tmp_path: Path) -> None:
    big = {"moe/launch-0/sweep-0-0/routing.npz": 200_000, "moe/launch-0/forced.npz": 1_000, "summary.json": 500}
    record = record_with(tmp_path / "run", big | {"moe/launch-0/sweep-0-0/steps.parquet": 800})
    packed = pack(record, tmp_path / "run.tar.gz", limit_bytes=50_000)
    there = unpack(packed.path, tmp_path / "again")
    assert packed.size_bytes <= 50_000
    assert packed.left_out == ("moe/launch-0/forced.npz", "moe/launch-0/sweep-0-0/routing.npz")
    assert json.loads((there / LEFT_OUT).read_text()) == list(packed.left_out)
    assert (there / "summary.json").exists() and (there / "moe/launch-0/sweep-0-0/steps.parquet").exists()


def test_a_record_whose_summary_alone_is_too_large_is_refused(tmp_path: Path) -> None:
    record = record_with(tmp_path / "run", {"summary.json": 80_000})
    with pytest.raises(RecordError, match="more than 50,000 bytes"):
        pack(record, tmp_path / "run.tar.gz", limit_bytes=50_000)
    assert not (tmp_path / "run.tar.gz").exists()


def test_an_archive_is_never_unpacked_over_something_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "there" / "x").mkdir(parents=True)
    (tmp_path / "bad.tar.gz").write_bytes(b"no archive")
    with pytest.raises(RecordError, match="not empty"):
        unpack(tmp_path / "bad.tar.gz", tmp_path / "there")
    with pytest.raises(RecordError, match=r"bad.tar.gz: cannot be unpacked"):
        unpack(tmp_path / "bad.tar.gz", tmp_path / "new")
