"""Models that break in the middle of a pass, for real: what was measured stays readable, the others go on.

One run of five models: the first hangs, the second runs out of memory, the third is sound, with the fourth the device
is lost, so that the fifth is not tried.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moeprof.capture.protocol import Fault, Slowdown
from moeprof.capture.run import prepare as running
from moeprof.core.record.layout import ModelRecord, open_record
from tests.helpers.tiny_run import SHORT, Ran, run_main

REQUEST = 12  # of 20: some are done by then, some are under way
NAMES = ("hangs", "needs", "sound", "loses", "waits")
FAULTS = (
    Fault(kind="hang", model="hangs", request=REQUEST),
    Fault(kind="out_of_memory", model="needs", request=REQUEST),
    Fault(kind="device_lost", model="loses", request=REQUEST),
)


def read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


@pytest.fixture(scope="module")
def broken(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    """The record of the run, and what the command line said."""
    folder, whole = tmp_path_factory.mktemp("broken"), running.execute
    slowdown = Slowdown(ratio=0.0, every=1_000_000, faults=FAULTS)
    models = ", ".join(f"{{name: {name}, path: {tiny / 'dense'}}}" for name in NAMES)
    workload = folder / "w.yaml"
    text = SHORT.format(rate=20, num_requests=20, models=models).replace("peaks: false", "peaks: false, quality: false")
    workload.write_text(text + "watchdog_s: 1\n")
    options = ["--max-concurrency", 3, "--num-prompts", 20, "--no-content"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "execute", lambda *args, **named: whole(*args, **named, slowdown=slowdown))
        return folder / "run", run_main(["run", workload, "--output-dir", folder / "run", *options])


def model(folder: Path, name: str) -> ModelRecord:
    return next(found for found in open_record(folder).models if found.name == name)


def reason(folder: Path, name: str) -> str | None:
    told: dict[str, str | None] = {m["name"]: m.get("reason") for m in read(folder / "experiment.json")["models"]}
    return told[name]


def test_a_step_that_hangs_is_ended_and_the_record_says_where(broken: tuple[Path, Ran]) -> None:
    folder, ran = broken
    assert ran.code == 1
    hung = model(folder, "hangs")
    assert (hung.status, reason(folder, "hangs")) == ("failed", "hung_step")
    assert str(hung.error).startswith("model hangs: a step hung: nothing was heard for ")
    assert "called by moeprof/capture/engines/faults.py:" in str(hung.error)
    assert "in break_down" in (folder / "hangs" / "failure.txt").read_text()
    info = read(folder / "hangs" / "launch-0" / "round-0" / "pass.json")
    assert (info["status"], info["reason"]) == ("failed", "hung_step")


def test_out_of_memory_in_the_middle_keeps_what_was_measured(broken: tuple[Path, Ran]) -> None:
    folder, _ = broken
    needs = model(folder, "needs")
    assert (needs.status, reason(folder, "needs")) == ("failed", "out_of_memory")
    began = folder / "needs" / "launch-0" / "round-0"
    assert read(began / "pass.json")["reason"] == "out_of_memory"
    assert not list(began.glob("*.arrows"))
    tables = needs.launches[0].rounds[0]
    assert len(tables.steps) > 10
    assert set(tables.requests["status"]) == {"done", "unfinished"}


def test_the_sound_model_is_done(broken: tuple[Path, Ran]) -> None:
    folder, _ = broken
    assert (model(folder, "sound").status, reason(folder, "sound")) == ("done", None)
    assert list(model(folder, "sound").launches[0].rounds[0].requests["status"]) == ["done"] * 20


def test_after_a_lost_device_nothing_more_is_tried_on_it(broken: tuple[Path, Ran]) -> None:
    folder, ran = broken
    assert reason(folder, "loses") == "device_lost"
    assert "model loses: the device cpu was lost (CUDA error: GPU is lost); nothing more can run on it" in ran.stderr
    waits = model(folder, "waits")
    text = "model waits: not tried further: the device was lost while loses ran"
    assert (waits.status, waits.error, reason(folder, "waits")) == ("failed", text, "device_lost")
    assert not (folder / "waits" / "launch-0" / "round-0").exists()


def test_the_report_of_it_reads_and_names_what_failed(broken: tuple[Path, Ran]) -> None:
    folder, _ = broken
    ran = run_main(["report", folder])
    assert ran.code == 0, ran.stderr
    said = " ".join(ran.stdout.split())
    for name in ("hangs", "needs", "loses", "waits"):
        assert f"{name}: it failed" in said or f"{name}: failed" in said
