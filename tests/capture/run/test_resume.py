"""An interrupted run is gone on with: what is finished stays byte for byte, what is not is measured again."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from moeprof.capture.run.resume import first_difference, open_interrupted
from tests.helpers.tiny_run import SHORT, Ran, run_main

SWEEP = "sweep: {concurrency: [1, 2], num_requests: 4}\n"


def read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.is_file() and path.name not in ("heartbeat", "lock")
    }


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``w.yaml`` and its finished ``run``: one model, two rounds, a sweep of two points."""
    folder = tmp_path_factory.mktemp("whole")
    text = SHORT.format(rate=50, num_requests=6, models=f"{{name: moe, path: {tiny / 'moe'}}}")
    (folder / "w.yaml").write_text(text.replace("rounds: 1", "rounds: 2") + SWEEP)
    ran = run_main(["run", folder / "w.yaml", "--output-dir", folder / "run", "--max-concurrency", 2, "--quiet"])
    assert ran.code == 0, ran.stderr
    return folder


@pytest.fixture(scope="module")
def resumed(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, str]], Ran]:
    """The same run, stopped in its sweep, and resumed: its launch folder, what had been finished, what was said."""
    folder = tmp_path_factory.mktemp("resumed") / "run"
    shutil.copytree(whole / "run", folder)
    launch = folder / "moe" / "launch-0"
    shutil.rmtree(launch / "sweep-1-1")
    write(launch / "sweep-1-0" / "pass.json", read(launch / "sweep-1-0" / "pass.json") | {"status": "stopped"})
    info = read(launch / "launch.json")
    del info["quality"]
    write(launch / "launch.json", info)
    write(folder / "experiment.json", read(folder / "experiment.json") | {"status": "interrupted"})
    kept = {name: digests(launch / name) for name in ("round-0", "round-1", "sweep-0-0", "sweep-0-1")}
    return launch, kept, run_main(["run", whole / "w.yaml", "--resume", folder, "--max-concurrency", 2])


def test_what_was_finished_stays_byte_for_byte(resumed: tuple[Path, dict[str, dict[str, str]], Ran]) -> None:
    launch, kept, ran = resumed
    assert ran.code == 0, ran.stderr
    assert {name: digests(launch / name) for name in kept} == kept
    assert not any(f"{name}: " in ran.stderr for name in kept)


def test_what_was_not_is_measured_in_the_same_launch_by_another_process(
    resumed: tuple[Path, dict[str, dict[str, str]], Ran],
) -> None:
    launch, kept, _ = resumed
    for name in ("sweep-1-0", "sweep-1-1"):
        assert read(launch / name / "pass.json")["status"] == "done"
        assert read(launch / name / "pass.json")["process"] == 1
    assert {read(launch / name / "pass.json")["process"] for name in kept} == {0}
    info = read(launch / "launch.json")
    assert (info["resumed"], info["process"]) == (True, 1)
    assert info["quality"]["bytes"] > 0  # it had not been reached


def test_an_unfinished_pass_is_set_aside_not_deleted(resumed: tuple[Path, dict[str, dict[str, str]], Ran]) -> None:
    launch, _, _ = resumed
    aside = launch / "interrupted-1.sweep-1-0"
    assert read(aside / "pass.json")["status"] == "stopped"
    assert (aside / "requests.parquet").exists()
    (told,) = read(launch.parents[1] / "experiment.json")["resumed"]
    assert told["set_aside"] == ["moe/launch-0/interrupted-1.sweep-1-0"]


def test_the_report_doubts_a_run_of_two_processes(resumed: tuple[Path, dict[str, dict[str, str]], Ran]) -> None:
    ran = resumed[2]
    said = " ".join(ran.stdout.split())
    assert "the run was resumed: passes of launch-0 come from 2 processes" in said


def test_a_complete_run_has_nothing_to_resume_and_starts_no_process(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole / "run", tmp_path / "run")
    monkeypatch.setattr("moeprof.capture.run.experiment.Worker", None)
    before = digests(tmp_path / "run")
    ran = run_main(["run", whole / "w.yaml", "--resume", tmp_path / "run", "--max-concurrency", 2])
    assert ran.code == 0, ran.stderr
    assert "resumed" not in ran.stdout
    measured = {file: digest for file, digest in digests(tmp_path / "run").items() if file in before}
    pages = ("report.", "summary.")
    assert {f: d for f, d in measured.items() if not f.startswith(pages)} == {
        f: d for f, d in before.items() if not f.startswith(pages)
    }
    assert read(tmp_path / "run" / "experiment.json")["status"] == "done"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--max-concurrency", 2, "--seed", 3], "the workload differs from the record's in workload.seed: 0 there, 3"),
        (["--max-concurrency", 3], "in workload.traffic.arrivals.concurrency: 2 there, 3 here"),
        (["--max-concurrency", 2, "--rounds", 5], "workload.rounds: 2 there, 5 here"),
    ],
)
def test_another_workload_is_refused_by_the_key_that_differs(
    whole: Path, tmp_path: Path, options: list[object], said: str
) -> None:
    shutil.copytree(whole / "run", tmp_path / "run")
    before = digests(tmp_path / "run")
    ran = run_main(["run", whole / "w.yaml", "--resume", tmp_path / "run", *options])
    assert ran.code == 2
    assert said in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert digests(tmp_path / "run") == before


def test_another_machine_is_refused(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "run", tmp_path / "run")
    experiment = read(tmp_path / "run" / "experiment.json")
    experiment["environment"]["packages"]["torch"] = "1.0"
    write(tmp_path / "run" / "experiment.json", experiment)
    ran = run_main(["run", whole / "w.yaml", "--resume", tmp_path / "run", "--max-concurrency", 2])
    assert ran.code == 2
    assert 'the machine differs from the record\'s in environment.packages.torch: "1.0" there' in ran.stderr


def test_a_run_that_still_beats_is_left_alone(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "run", tmp_path / "run")
    experiment = read(tmp_path / "run" / "experiment.json") | {"status": "started"}
    write(tmp_path / "run" / "experiment.json", experiment)
    (tmp_path / "run" / "heartbeat").write_text(f"{time.time():.1f}\n")
    ran = run_main(["run", whole / "w.yaml", "--resume", tmp_path / "run"])
    assert ran.code == 2
    assert "is still running" in ran.stderr


def test_no_such_run_and_two_folders_are_usage_errors(whole: Path, tmp_path: Path) -> None:
    ran = run_main(["run", whole / "w.yaml", "--resume", tmp_path / "nowhere"])
    assert (ran.code, ran.stderr.count("\n")) == (2, 1)
    assert "no such run folder" in ran.stderr
    ran = run_main(["run", whole / "w.yaml", "--resume", whole / "run", "--output-dir", tmp_path / "new"])
    assert ran.code == 2
    assert "leave --output-dir out" in ran.stderr


def test_rates_left_out_as_saturated_are_not_missing(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "run", tmp_path / "run")
    resume, launch = open_interrupted(tmp_path / "run"), tmp_path / "run" / "moe" / "launch-0"
    names = ["sweep-0-0", "sweep-2-0", "sweep-2-1"]
    assert resume.is_missing(launch, names)
    row = {"point": 1, "request_rate": 9.0, "skipped": [2], "reason": "full"}
    write(launch / "launch.json", {"sweep_stopped": {"reason": "full", "rows": [row]}})
    assert not resume.is_missing(launch, names)


def test_a_pass_cut_by_the_sweeps_own_bound_is_finished_and_one_cut_by_the_runs_is_not(
    whole: Path, tmp_path: Path
) -> None:
    resume = open_interrupted(whole / "run")
    for number, (cut_by, kept) in enumerate((("sweep.max_seconds", True), ("max_minutes", False))):
        folder = tmp_path / f"sweep-0-{number}"
        folder.mkdir()
        write(folder / "pass.json", {"status": "cut", "cut_by": cut_by})
        assert resume.is_finished(folder) is kept
    (tmp_path / "sweep-0-1" / "pass.json").write_text("{")  # killed while writing
    assert not resume.is_finished(tmp_path / "sweep-0-1")


def test_the_first_difference_is_named_by_its_place() -> None:
    assert first_difference({"a": [1, {"b": 2}]}, {"a": [1, {"b": 2}]}) is None
    assert first_difference({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}) == ".a[1].b: 2 there, 3 here"
    assert first_difference({}, {"a": 1}) == ".a: null there, 1 here"
    assert first_difference([1], [1, 2]) == ": [1] there, [1, 2] here"
