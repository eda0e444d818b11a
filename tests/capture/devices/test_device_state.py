"""Which device is taken, what it did before the run, and what of that is not as it should be. NVML is a fake."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pynvml
import pytest

from moeprof.analysis.compare.comparable import device
from moeprof.analysis.metrics.resources.device_state import (
    Throttled,
    findings,
    in_words,
    throttle_codes,
    throttled_ratio,
    throttled_spans,
)
from moeprof.capture.devices.choose import choose_device
from moeprof.capture.devices.gpu import find_gpu
from moeprof.capture.devices.meters import GpuMeter, device_at_end, device_at_start
from moeprof.core.errors import InputError
from moeprof.core.record.experiment import DeviceAtStart, EnvironmentHeader, ExperimentHeader, WorkloadHeader
from moeprof.core.record.layout import Record
from tests.capture.devices.test_gpu import fake_nvml

GIB = 2**30


def several(*free_gib: int, others: tuple[int, ...] = (), names: tuple[str, ...] = ()) -> Any:
    """A machine of GPUs of 100 GiB; ``others``: which of them strangers use."""
    nvml = fake_nvml()
    nvml.nvmlDeviceGetCount.return_value = len(free_gib)
    nvml.nvmlDeviceGetHandleByIndex.side_effect = lambda index: index
    nvml.nvmlDeviceGetName.side_effect = lambda handle: names[handle] if names else "NVIDIA H200"
    nvml.nvmlDeviceGetMemoryInfo.side_effect = lambda handle: SimpleNamespace(
        used=(100 - free_gib[handle]) * GIB, total=100 * GIB
    )
    nvml.nvmlDeviceGetComputeRunningProcesses.side_effect = lambda handle: (
        [SimpleNamespace(pid=1_000_000)] if handle in others else []
    )
    return nvml


@pytest.fixture(autouse=True)
def plain_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every GPU is shown; a process that is not ours is a stranger."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    monkeypatch.setattr("moeprof.capture.devices.gpu._is_ours", lambda pid: False)


def test_auto_takes_the_gpu_with_the_most_free_memory() -> None:
    choice = choose_device("auto", several(40, 99, 70), has_cuda_build=True)
    assert choice.device == "cuda:1"
    assert choice.why == "cuda:1 of 3 GPUs: 99 GiB are free, the most of those that no other process uses"


def test_a_gpu_that_others_use_comes_last_whatever_is_free() -> None:
    assert choose_device("auto", several(99, 60, 50, others=(0,)), has_cuda_build=True).device == "cuda:1"
    choice = choose_device("cuda", several(50, 60, others=(0, 1)), has_cuda_build=True)
    assert (choice.device, choice.why) == (
        "cuda:1", "cuda:1 of 2 GPUs: 60 GiB are free, the most; other processes use every one of them",
    )  # fmt: skip


def test_of_equal_gpus_the_first_is_taken_and_a_single_one_needs_no_words() -> None:
    assert choose_device("auto", several(99, 99), has_cuda_build=True).device == "cuda:0"
    single = choose_device("auto", several(99), has_cuda_build=True)
    assert (single.device, single.why) == ("cuda:0", None)


def test_only_visible_gpus_are_there_and_are_counted_from_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,1")
    nvml = several(99, 80, 60)
    choice = choose_device("auto", nvml, has_cuda_build=True)
    assert choice.device == "cuda:1"  # index 1 of NVML, with 80 GiB
    with pytest.raises(InputError, match=r"cuda:2, but there are cuda:0 \(NVIDIA H200, 60 GiB free\), cuda:1"):
        choose_device("cuda:2", nvml, has_cuda_build=True)


def test_an_unknown_number_says_what_is_there() -> None:
    with pytest.raises(InputError, match=r"device: found cuda:5, but there is cuda:0 \(NVIDIA H200, 99 GiB free\)"):
        choose_device("cuda:5", several(99), has_cuda_build=True)
    assert choose_device("cuda:1", several(10, 20), has_cuda_build=True).device == "cuda:1"


def test_different_gpus_are_counted_as_nvidia_smi_does(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.delenv("CUDA_DEVICE_ORDER")
    nvml = several(50, 90, names=("NVIDIA H200", "NVIDIA T4"))
    assert choose_device("auto", nvml, has_cuda_build=True).device == "cuda:1"
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"  # for torch in the workers


def test_without_a_gpu_or_a_torch_for_it_auto_is_the_cpu_and_cuda_an_error() -> None:
    nothing = fake_nvml(nvmlInit=pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
    assert choose_device("auto", nothing, has_cuda_build=True).device == "cpu"
    assert choose_device("auto", several(99), has_cuda_build=False).device == "cpu"
    with pytest.raises(InputError, match="no NVIDIA driver or GPU was found"):
        choose_device("cuda", nothing, has_cuda_build=True)
    with pytest.raises(InputError, match="this torch is built for the CPU"):
        choose_device("cuda:0", several(99), has_cuda_build=False)


# -- before the run ----------------------------------------------------------------------------------------------------


def at_start(nvml: Any) -> DeviceAtStart:
    seen = device_at_start(find_gpu("1", nvml), look_for_s=0.3, sleep=lambda seconds: None)
    assert seen is not None
    return seen


def quiet_nvml() -> Any:
    nvml = fake_nvml()
    nvml.nvmlDeviceGetUtilizationRates.return_value = SimpleNamespace(gpu=0)
    nvml.nvmlDeviceGetMemoryInfo.return_value = SimpleNamespace(used=GIB // 2, total=100 * GIB)
    nvml.nvmlDeviceGetComputeRunningProcesses.return_value = []
    return nvml


def test_an_idle_device_has_an_idle_power_and_no_findings() -> None:
    seen = at_start(quiet_nvml())
    assert (seen.idle_power_w, seen.idle_power_reason) == (350.0, None)
    assert (seen.looked_for_s, seen.utilisation_ratio, seen.memory_used_bytes) == (0.3, 0.0, GIB // 2)
    assert list(findings(seen)) == []
    assert device_at_start(None) is None


def test_a_busy_device_has_no_idle_power() -> None:
    nvml = quiet_nvml()
    nvml.nvmlDeviceGetUtilizationRates.return_value = SimpleNamespace(gpu=30)
    seen = at_start(nvml)
    assert (seen.idle_power_w, seen.idle_power_reason) == (None, "device_busy_at_start")
    assert [f.code for f in findings(seen)] == ["device_busy_at_start"]


def test_memory_of_others_is_seen_where_their_process_ids_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moeprof.capture.devices.gpu._is_ours", lambda pid: None)
    nvml = quiet_nvml()
    nvml.nvmlDeviceGetComputeRunningProcesses.return_value = [SimpleNamespace(pid=77)]
    nvml.nvmlDeviceGetMemoryInfo.return_value = SimpleNamespace(used=30 * GIB, total=100 * GIB)
    found = {f.code: f.text for f in findings(at_start(nvml))}
    assert set(found) == {"device_memory_in_use_at_start", "neighbours_hidden"}
    assert found["device_memory_in_use_at_start"].startswith("30 GiB of the device's memory were in use")


SEEN: dict[str, dict[str, Any]] = {
    "power_limit_lowered": {"power_limit_w": 600.0, "power_limit_default_w": 700.0},
    "mig": {"mig": "on"},
    "mps": {"num_mps_processes": 2},
    "other_processes_at_start": {"num_other_processes": 1},
    "ecc_errors_before": {"ecc_uncorrected_errors": 3, "num_other_processes": 0},
}


@pytest.mark.parametrize("code", SEEN)
def test_what_is_not_as_it_should_be_has_a_code(code: str) -> None:
    assert [f.code for f in findings(DeviceAtStart(**SEEN[code]))] == [code]


def test_a_lowered_power_limit_makes_it_another_device_to_compare_with() -> None:
    def named(**seen: float) -> str:
        experiment = ExperimentHeader(
            workload={},
            environment=EnvironmentHeader(device="cuda:0", device_name="H200"),
            device_at_start=DeviceAtStart(**seen),
            models=(),
        )
        return device(Record(Path("run"), experiment, WorkloadHeader(), "done"))

    assert named(power_limit_w=600.0, power_limit_default_w=700.0) == "1 x H200, limited to 600 W"
    assert named(power_limit_w=700.0, power_limit_default_w=700.0) == named() == "1 x H200"


def test_errors_during_the_run_are_told_from_those_before() -> None:
    nvml = quiet_nvml()
    before = at_start(nvml)
    nvml.nvmlDeviceGetTotalEccErrors.return_value = 2
    meter = GpuMeter(find_gpu("1", nvml))
    timeout = pynvml.NVMLError(pynvml.NVML_ERROR_TIMEOUT)
    nvml.nvmlEventSetWait_v2.side_effect = [SimpleNamespace(eventData=94), timeout]
    after = device_at_end(find_gpu("1", nvml), [meter])
    assert after is not None and after.xids == (94,)
    assert [(f.code, f.severity) for f in findings(before, after)] == [("ecc_errors", "error"), ("xid", "warning")]


# -- throttling --------------------------------------------------------------------------------------------------------


def test_idle_and_asked_clocks_are_no_throttling() -> None:
    assert throttle_codes(0x1 | 0x2) == ()
    assert throttle_codes(0x1 | 0x4 | 0x40) == ("sw_power_cap", "hw_thermal")
    assert throttle_codes(0x200) == ("bit_0x200",)
    assert in_words(("sw_power_cap", "bit_0x200")) == "software power cap, bit 0x200"


def test_throttled_stretches_last_until_the_next_sample() -> None:
    times_s = np.arange(6.0)
    masks = np.array([1.0, 4.0, 4.0, np.nan, 8.0, 0.0])
    assert list(throttled_spans(times_s, masks)) == [
        Throttled(start_s=1, end_s=4, codes=("sw_power_cap",)),
        Throttled(start_s=4, end_s=5, codes=("hw_slowdown",)),
    ]
    assert throttled_ratio(times_s, masks) == pytest.approx(4 / 5)
    assert throttled_ratio(times_s[:1], masks[:1]) is None
