"""What a failure does to the record, sampling around a pass, and the device on the command line. No GPU, no worker."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pynvml
import pytest

from moeprof.capture.devices import choose
from moeprof.capture.devices.gpu import find_gpu
from moeprof.capture.devices.meters import GpuMeter
from moeprof.capture.recorders.telemetry import Telemetry
from moeprof.capture.run.status import Failures, RunStatus, has_ended, mark_pass
from moeprof.capture.worker.process import WorkerFailedError
from moeprof.core.record.experiment import EnvironmentHeader, ExperimentHeader, ModelHeader
from moeprof.core.record.tables import read_table
from tests.capture.devices.test_device_state import several
from tests.capture.devices.test_gpu import fake_nvml
from tests.helpers.tiny_run import run_main


def failures_of(folder: Path, meters: list[Any]) -> tuple[Failures, RunStatus]:
    three = tuple(ModelHeader(name=name, folder=name) for name in "abc")
    header = RunStatus(folder, ExperimentHeader(workload={}, environment=EnvironmentHeader(), models=three))
    return Failures(header, meters, lambda model, event, data: None), header


def models(folder: Path) -> dict[str, tuple[str, str | None]]:
    told = json.loads((folder / "experiment.json").read_text())["models"]
    return {model["name"]: (model["status"], model.get("reason")) for model in told}


def test_a_failure_on_a_device_that_does_not_answer_is_a_lost_device(tmp_path: Path) -> None:
    gone = GpuMeter(find_gpu("1", fake_nvml(nvmlDeviceGetPowerUsage=pynvml.NVML_ERROR_GPU_IS_LOST)))
    failures, header = failures_of(tmp_path, [gone])
    failures.add("a", WorkerFailedError("model a: its process died (exit code -6)", reason="process_died"))
    failures.leave_out(["b"])
    header.finish("failed", failed=failures.names)
    assert models(tmp_path) == {"a": ("failed", "device_lost"), "b": ("failed", "device_lost"), "c": ("done", None)}
    text = json.loads((tmp_path / "experiment.json").read_text())["models"][0]["error"]
    assert text.startswith("model a: its process died (exit code -6); the device was lost")


def test_xids_stand_in_the_error(tmp_path: Path) -> None:
    nvml = fake_nvml()
    meter = GpuMeter(find_gpu("1", nvml))
    timeout = pynvml.NVMLError(pynvml.NVML_ERROR_TIMEOUT)
    nvml.nvmlEventSetWait_v2.side_effect = [type("Event", (), {"eventData": 31})(), *[timeout] * 9]
    failures, header = failures_of(tmp_path, [meter])
    failures.add("a", WorkerFailedError("model a: a kernel broke", reason="device_error"))
    header.finish("failed", failed=failures.names)
    assert models(tmp_path)["a"] == ("failed", "device_error")
    error = json.loads((tmp_path / "experiment.json").read_text())["models"][0]["error"]
    assert error == "model a: a kernel broke; the driver reported Xid 31"
    assert failures.lost_with is None


def test_a_pass_that_ended_is_not_marked_and_a_damaged_one_is(tmp_path: Path) -> None:
    file = tmp_path / "pass.json"
    mark_pass(tmp_path, "hung_step", "it hung")
    assert not file.exists()  # it never began
    for status, after in (("done", "done"), ("cut", "cut"), ("started", "failed")):
        file.write_text(json.dumps({"status": status, "traffic": "closed"}))
        mark_pass(tmp_path, "hung_step", "it hung")
        assert json.loads(file.read_text())["status"] == after
        assert has_ended(tmp_path) == (after != "failed")
    file.write_text("{")
    assert not has_ended(tmp_path)
    mark_pass(tmp_path, "process_died", "it died")
    assert json.loads(file.read_text())["reason"] == "process_died"


# -- sampling ----------------------------------------------------------------------------------------------------------


class Counting:
    """A meter whose counter grows by one with each reading."""

    def __init__(self) -> None:
        self.count = 0

    def read(self) -> dict[str, Any]:
        self.count += 1
        return {"energy_counter_j": float(self.count)}


def test_samples_bracket_the_pass(tmp_path: Path) -> None:
    import time

    telemetry = Telemetry([Counting()], os.getpid())
    while not telemetry._before:
        pass  # the first sample is on its way
    telemetry.begin(tmp_path, time.perf_counter())
    telemetry.note({"allocated_bytes": 5, "reserved_bytes": 6})
    end_s = time.perf_counter()
    telemetry.close()
    table = read_table(tmp_path, "telemetry")
    assert table["t_s"].iloc[0] < 0
    assert table["t_s"].iloc[-1] >= 0 and end_s > 0
    assert list(table["energy_counter_j"]) == sorted(table["energy_counter_j"])
    assert table["allocated_bytes"].iloc[-1] == 5


def test_a_worker_that_is_gone_has_no_memory(tmp_path: Path) -> None:
    telemetry = Telemetry([], 2**22 + 1)
    telemetry.begin(tmp_path, 0.0)
    telemetry.close()
    assert read_table(tmp_path, "telemetry")["host_rss_bytes"].isna().all()


def test_of_a_pass_that_never_began_nothing_is_written(tmp_path: Path) -> None:
    Telemetry([Counting()], os.getpid()).close()
    assert list(tmp_path.iterdir()) == []


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine of two GPUs, and a torch for them, for the commands."""
    nvml = several(40, 90)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(choose, "find_gpu", lambda uuid, given=None, **named: find_gpu(uuid, nvml, **named))
    monkeypatch.setattr(choose, "has_cuda_build_of_torch", lambda: True)
    monkeypatch.setattr("moeprof.capture.devices.gpu._is_ours", lambda pid: False)
    return nvml


def test_a_gpu_that_is_not_there_is_a_usage_error(two_gpus: Any, tiny: Path, tmp_path: Path) -> None:
    ran = run_main(["run", tiny / "workload.yaml", "--device", "cuda:2", "--output-dir", tmp_path / "run"])
    assert ran.code == 2
    assert ran.stderr.splitlines() == [
        "moeprof: device: found cuda:2, but there are cuda:0 (NVIDIA H200, 40 GiB free), cuda:1 (NVIDIA H200, 90 GiB "
        "free)"
    ]


def test_doctor_says_which_gpu_a_run_would_take_and_what_is_wrong_with_it(
    two_gpus: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moeprof.capture.devices.meters.LOOK_FOR_S", 0.0)
    two_gpus.nvmlDeviceGetEnforcedPowerLimit.return_value = 300_000
    rows = {row["what"]: row for row in json.loads(run_main(["doctor", "--format", "json"]).stdout)}
    assert rows["device"]["note"].startswith("cuda:1 of 2 GPUs: 90 GiB are free, the most")
    assert rows["power_limit_lowered"]["note"] == "the device's power limit is 300 W, below its default of 700 W"
    assert rows["device_busy_at_start"]["found"] == "warning"
    assert rows["power"]["note"].startswith("usage: averaged by the driver")
