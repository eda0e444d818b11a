"""Runs that do not end as planned: killed, interrupted, cut by the clock, or with a model that fails. All for real."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from moeprof.capture.run.experiment import Experiment
from moeprof.core.record.layout import open_record
from tests.helpers.tiny_run import SHORT, Ran, run_main

PATIENCE_S = 120.0


def read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def until(true: Callable[[], bool], what: str) -> None:
    """Wait for another process; there is no other way to know when it gets there."""
    give_up = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < give_up, f"waited too long until {what}"
        time.sleep(0.02)


class Started:
    """A run of minutes in its own process group, and where its record grows."""

    def __init__(self, folder: Path, models: str, *options: str) -> None:
        self.folder = folder / "run"
        workload = folder / "long.yaml"
        workload.write_text(SHORT.format(rate=10, num_requests=900, models=models))
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "moeprof", "run", str(workload), "--output-dir", str(self.folder), *options],
            env={**os.environ, "TMPDIR": str(self.temporary)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def end(self) -> None:
        """Leave no process behind, whatever the test did."""
        for child in family(self.process.pid):
            child.kill()
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def start(tiny: Path, tmp_path: Path) -> Iterator[Callable[..., Started]]:
    """Starts a run of the named models."""
    running: list[Started] = []

    def begin(*names: str, options: tuple[str, ...] = ()) -> Started:
        models = ", ".join(f"{{name: {name}, path: {tiny / name}}}" for name in names)
        running.append(Started(tmp_path, models, *options))
        return running[-1]

    yield begin
    for run in running:
        run.end()


def family(pid: int) -> list[psutil.Process]:
    try:
        children: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return children


def has_flushed(folder: Path) -> bool:
    """The first pass has some routing windows and some finished requests on disk."""
    began = folder / "moe" / "launch-0" / "round-0"
    stream = began / "requests.arrows"
    return (began / "routing.part-1.npz").exists() and stream.exists() and stream.stat().st_size > 10_000


def is_gone(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def test_kill_9_in_the_middle_leaves_a_record_that_is_read_and_called_interrupted(
    start: Callable[..., Started],
) -> None:
    run = start("moe")
    process, folder = run.process, run.folder
    until(lambda: has_flushed(folder), "a pass had flushed")
    workers = family(process.pid)
    assert workers
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    until(lambda: all(map(is_gone, workers)), "the workers of a killed parent ended")
    (folder / "heartbeat").write_text("1.0")  # as after ten seconds of silence
    assert open_record(folder).status == "interrupted"
    ran = run_main(["report", folder])
    assert ran.code == 0, ran.stderr
    assert "incomplete" in ran.stdout
    values = json.loads(run_main(["report", folder, "--format", "json"]).stdout)["models"]["moe"]["metrics"]
    found = {v["name"]: v["value"] for v in values if v["labels"] == {"traffic": "open", "window": "total"}}
    assert found["ttft_p50_s"] > 0
    assert found["output_tokens_per_s"] > 0
    decode = [v for v in values if v["name"] == "router_load_max_over_mean" and v["labels"].get("phase") == "decode"]
    assert decode[0]["value"] >= 1


def test_ctrl_c_keeps_what_was_measured_and_says_how_to_read_it(
    start: Callable[..., Started],
) -> None:
    run = start("moe")
    process, folder = run.process, run.folder
    until(lambda: has_flushed(folder), "a pass had flushed")
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, err
    kept = f"moeprof: stopped; what was measured is kept: moeprof report {folder}; to go on: --resume {folder}"
    assert err.splitlines()[-1] == kept
    assert "Traceback" not in err
    assert "incomplete" in out
    experiment = read(folder / "experiment.json")
    assert experiment["status"] == "interrupted"
    assert [(m["status"], m["error"]) for m in experiment["models"]] == [("interrupted", None)]
    began = folder / "moe" / "launch-0" / "round-0"
    assert read(began / "pass.json")["status"] == "stopped"
    assert all(check["passed"] for check in read(began / "pass.json")["invariants"].values())
    requests = pq.read_table(began / "requests.parquet").to_pandas()
    assert set(requests["status"]) <= {"done", "unfinished"}
    assert (requests["status"] == "done").sum() >= 10
    assert not list(folder.rglob("*.arrows"))
    assert not (folder / "moe" / "launch-0" / "capacity-0").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_to_the_whole_group_while_models_load_is_no_failure_of_a_model(
    start: Callable[..., Started], number: int, code: int
) -> None:
    run = start("moe", "dense")
    until(lambda: (run.folder / "moe" / "launch-0").exists(), "a worker had begun")
    os.killpg(run.process.pid, number)
    _, err = run.process.communicate(timeout=PATIENCE_S)
    assert run.process.returncode == code, err
    assert "Traceback" not in err
    assert not list(run.temporary.glob("moeprof-*"))
    experiment = read(run.folder / "experiment.json")
    assert experiment["status"] == "interrupted"
    assert [(m["status"], m["error"]) for m in experiment["models"]] == [("interrupted", None)] * 2


def test_term_while_a_model_loads_ends_its_worker_at_once(start: Callable[..., Started]) -> None:
    run = start("moe", "dense")
    until(lambda: (run.folder / "moe" / "launch-0").exists(), "a worker had begun")
    workers, began = family(run.process.pid), time.monotonic()
    run.process.terminate()  # the parent alone, as `docker stop` does
    out, err = run.process.communicate(timeout=PATIENCE_S)
    assert time.monotonic() - began < 10  # 20 s of grace for a worker that hears nothing would be over docker's own 10
    assert run.process.returncode == 143, err
    assert err.splitlines()[-1].startswith("moeprof: stopped; what was measured is kept")
    assert out == ""  # who sends TERM waits for no page
    until(lambda: all(map(is_gone, workers)), "the workers had ended")


def test_kill_9_leaves_no_worker_and_no_content_on_any_disk(start: Callable[..., Started]) -> None:
    run = start("moe", options=("--no-content",))
    until(lambda: (run.folder / "moe" / "launch-0").exists(), "a worker had begun")
    workers = family(run.process.pid)
    run.process.kill()
    run.process.wait()
    until(lambda: all(map(is_gone, workers)), "the workers of a killed parent ended while they loaded")
    left = list(run.temporary.glob("moeprof-*"))
    assert left
    assert [path for folder in left for path in folder.rglob("*.parquet") if path.exists()] == []


def test_a_file_that_may_not_grow_is_told_in_one_line_and_what_was_measured_is_read(tiny: Path, tmp_path: Path) -> None:
    workload = tmp_path / "w.yaml"
    model = f"{{name: dense, path: {tiny / 'dense'}}}"
    workload.write_text(SHORT.format(rate=100, num_requests=900, models=model))
    ran = subprocess.run(
        [sys.executable, "-m", "moeprof", "run", str(workload), "--quiet", "--output-dir", str(tmp_path / "run")],
        capture_output=True, text=True, timeout=PATIENCE_S,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)),
    )  # fmt: skip
    where = tmp_path / "run"
    assert (ran.returncode, ran.stdout) == (1, "")
    line = r"moeprof: \S+: (model dense: )?a file would be larger than is allowed \(ulimit -f\); "
    line += rf"what was measured is kept; once that is mended: go on with --resume {re.escape(str(where))}\n"
    assert re.fullmatch(line, ran.stderr), ran.stderr
    assert read(where / "experiment.json")["status"] in ("started", "interrupted")
    assert run_main(["report", where]).code == 0


def test_max_minutes_cuts_cleanly_and_the_report_says_so(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = tmp_path / "w.yaml"
    text = SHORT.format(rate=5, num_requests=900, models=f"{{name: dense, path: {tiny / 'dense'}}}")
    workload.write_text(text.replace("rounds: 1", "rounds: 2"))
    whole = Experiment._pass

    def minutes_end_soon(self: Experiment, workers: Any, model: str, name: str, *, offline: bool) -> None:
        if name == "round-0":  # however long loading took
            self._setup = replace(self._setup, deadline_s=time.perf_counter() + 3.5)
        whole(self, workers, model, name, offline=offline)

    monkeypatch.setattr(Experiment, "_pass", minutes_end_soon)
    ran = run_main(["run", workload, "--output-dir", tmp_path / "run", "--max-minutes", 9, "--quiet"])
    assert ran.code == 0, ran.stderr
    launch = tmp_path / "run" / "dense" / "launch-0"
    assert read(launch / "round-0" / "pass.json")["status"] == "cut"
    assert 1 < read(launch / "round-0" / "pass.json")["duration_s"] < 4.5
    assert [path.name for path in launch.iterdir() if path.is_dir()] == ["round-0"]
    said = " ".join(ran.stdout.split())
    assert "max_minutes (9.0) ended the run early: round-0 sent" in said
    assert "of 900 requests, 1 of 2 rounds never began" in said


@pytest.fixture(scope="module")
def half_damaged(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    """A closed-loop run without content and with every pick, of a model with damaged weights and a sound one."""
    folder = tmp_path_factory.mktemp("half")
    damaged = folder / "damaged"
    damaged.mkdir()
    for file in (tiny / "dense").iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    models = f"{{name: broken, path: damaged}}, {{name: sound, path: {tiny / 'moe'}}}"
    workload = folder / "w.yaml"
    workload.write_text(SHORT.format(rate=5, num_requests=30, models=models))
    options = ["--max-concurrency", 3, "--no-content", "--save-detailed", "--num-prompts", 12]
    return folder / "run", run_main(["run", workload, "--output-dir", folder / "run", *options])


def test_a_model_with_damaged_weights_fails_and_the_other_still_runs(half_damaged: tuple[Path, Ran]) -> None:
    folder, ran = half_damaged
    assert ran.code == 1
    assert "Traceback" not in ran.stderr
    last = ran.stderr.splitlines()[-1]
    assert last.startswith("moeprof: broken failed: model broken: damaged weights file")
    experiment = read(folder / "experiment.json")
    assert experiment["status"] == "failed"
    assert {m["name"]: m["status"] for m in experiment["models"]} == {"broken": "failed", "sound": "done"}
    assert "broken: failed: " in ran.stdout
    requests = pq.read_table(folder / "sound" / "launch-0" / "round-0" / "requests.parquet").to_pandas()
    assert list(requests["status"]) == ["done"] * 12


def test_a_closed_loop_keeps_its_concurrency_and_has_no_capacity_pass(half_damaged: tuple[Path, Ran]) -> None:
    folder, _ = half_damaged
    launch = folder / "sound" / "launch-0"
    assert [p.name for p in launch.iterdir() if p.is_dir()] == ["round-0"]
    assert read(launch / "round-0" / "pass.json")["traffic"] == "closed"
    steps = pq.read_table(launch / "round-0" / "steps.parquet").to_pandas()
    assert steps["num_requests"].max() == 3
    requests = pq.read_table(launch / "round-0" / "requests.parquet").to_pandas()
    assert (requests["arrival_s"] == requests["sent_s"]).all()


def test_without_content_no_token_id_is_in_the_record(half_damaged: tuple[Path, Ran]) -> None:
    folder, _ = half_damaged
    assert read(folder / "experiment.json")["content_kept"] is False
    schedule = pq.read_table(folder / "schedule.parquet").to_pandas()
    assert [len(ids) for ids in schedule["input_ids"]] == [0] * 12
    assert [len(ids) for ids in schedule["output_ids"]] == [0] * 12
    assert list(schedule["input_tokens"]) == [8] * 12
    assert sorted(p.name for p in folder.glob("*.parquet")) == ["schedule.parquet"]


def test_every_pick_is_kept_on_request(half_damaged: tuple[Path, Ran]) -> None:
    import numpy as np

    folder, _ = half_damaged
    began = folder / "sound" / "launch-0" / "round-0"
    picks = np.load(began / "picks" / "part-0.npz")
    tokens = 12 * (8 + 6 - 1)
    assert picks["picks_TLK"].shape == (tokens, 2, 2)
    assert picks["picks_TLK"].dtype == np.uint8
    assert read(began / "picks" / "left_out.json")["tokens"] == 0
    counts_LE = np.load(began / "routing.npz")["counts_WPCLE"].sum(axis=(0, 1, 2))
    for layer in range(2):
        assert np.bincount(picks["picks_TLK"][:, layer].ravel(), minlength=8).tolist() == counts_LE[layer].tolist()
    assert np.bincount(picks["request_T"]).tolist() == [13] * 12
