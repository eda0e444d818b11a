"""The door to NVML: found by UUID, every field on its own, no exception gets out."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import psutil
import pynvml
import pytest

from moeprof.capture.devices.choose import choose_device
from moeprof.capture.devices.cpu_energy import CpuEnergy
from moeprof.capture.devices.gpu import REASONS, find_gpu
from moeprof.capture.devices.meters import GpuMeter, device_is_lost
from moeprof.core.errors import InputError


def fake_nvml(**failures: int) -> Any:
    """pynvml with one GPU of round numbers; ``failures`` maps a function to the NVML error code it raises."""
    nvml = create_autospec(pynvml)
    nvml.NVMLError = pynvml.NVMLError
    nvml.NVML_TEMPERATURE_GPU, nvml.NVML_CLOCK_SM, nvml.NVML_CLOCK_MEM = 0, 1, 2
    nvml.nvmlDeviceGetCount.return_value = 1
    nvml.nvmlDeviceGetUUID.return_value = "GPU-1"
    nvml.nvmlDeviceGetName.return_value = "NVIDIA H200"
    nvml.nvmlSystemGetDriverVersion.return_value = b"570.1"
    nvml.nvmlDeviceGetPowerUsage.return_value = 350_000
    nvml.nvmlDeviceGetTotalEnergyConsumption.return_value = 5_000
    nvml.nvmlDeviceGetTemperature.return_value = 40
    nvml.nvmlDeviceGetClockInfo.side_effect = lambda handle, kind: {1: 1980, 2: 3201}[kind]
    nvml.nvmlDeviceGetUtilizationRates.return_value = SimpleNamespace(gpu=50)
    nvml.nvmlDeviceGetMemoryInfo.return_value = SimpleNamespace(used=1000, total=4000)
    nvml.nvmlDeviceGetCurrentClocksThrottleReasons.return_value = 4
    nvml.nvmlDeviceGetComputeRunningProcesses.return_value = [SimpleNamespace(pid=os.getpid())]
    nvml.nvmlDeviceGetFieldValues.return_value = [SimpleNamespace(nvmlReturn=3)]  # not supported
    nvml.nvmlDeviceGetEnforcedPowerLimit.return_value = nvml.nvmlDeviceGetPowerManagementDefaultLimit.return_value = 7e5
    nvml.nvmlDeviceGetMaxClockInfo.return_value = 1980
    nvml.nvmlDeviceIsMigDeviceHandle.return_value, nvml.nvmlDeviceGetMigMode.return_value = 0, [0, 0]
    nvml.nvmlDeviceGetMPSComputeRunningProcesses.return_value = []
    nvml.nvmlDeviceGetTotalEccErrors.return_value = 0
    nvml.nvmlEventSetWait_v2.side_effect = pynvml.NVMLError(pynvml.NVML_ERROR_TIMEOUT)
    for name, code in failures.items():
        getattr(nvml, name).side_effect = pynvml.NVMLError(code)
    return nvml


def test_a_reading_is_in_si_units() -> None:
    gpu = find_gpu("1", fake_nvml())
    reading = gpu.read()
    assert (gpu.uuid, gpu.name, gpu.driver, gpu.reason) == ("GPU-1", "NVIDIA H200", "570.1", None)
    assert (reading.power_w, reading.energy_counter_j) == (350.0, 5.0)
    assert (reading.sm_clock_mhz, reading.memory_clock_mhz, reading.temperature_c) == (1980, 3201, 40)
    assert (reading.utilisation_ratio, reading.memory_used_bytes, reading.memory_total_bytes) == (0.5, 1000, 4000)
    assert (reading.throttle_reasons, reading.num_other_processes) == (4, 0)
    assert not reading.reasons


@pytest.mark.parametrize(("given", "asked"), [("abc", "GPU-abc"), ("GPU-abc", "GPU-abc"), ("MIG-abc", "MIG-abc")])
def test_a_gpu_is_found_by_its_uuid(given: str, asked: str) -> None:
    nvml = fake_nvml()
    find_gpu(given, nvml)
    nvml.nvmlDeviceGetHandleByUUID.assert_called_once_with(asked)
    nvml.nvmlDeviceGetHandleByIndex.assert_not_called()


def test_without_a_uuid_the_visible_devices_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = fake_nvml()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-7,GPU-8")
    find_gpu(None, nvml)
    nvml.nvmlDeviceGetHandleByUUID.assert_called_once_with("GPU-7")


UUIDS = ("GPU-af7b61d8-21af-baea", "GPU-af7b0000-77aa-0000", "GPU-1c5e0000-0000-0000")


def three_gpus() -> Any:
    """NVML with three equal GPUs, whose handles hold their UUIDs."""
    nvml = fake_nvml()

    def by_uuid(uuid: str) -> SimpleNamespace:
        if uuid not in UUIDS:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return SimpleNamespace(uuid=uuid)

    nvml.nvmlDeviceGetCount.return_value = 3
    nvml.nvmlDeviceGetHandleByIndex.side_effect = lambda i: SimpleNamespace(uuid=UUIDS[i])
    nvml.nvmlDeviceGetUUID.side_effect = lambda handle: handle.uuid
    nvml.nvmlDeviceGetHandleByUUID.side_effect = by_uuid
    return nvml


@pytest.mark.parametrize(("shown", "found"), [("GPU-af7b6", 0), ("GPU-af7b0000", 1), ("GPU-1", 2), (UUIDS[1], 1)])
@pytest.mark.parametrize("asked", ["auto", "cuda"])
def test_the_beginning_of_a_uuid_is_that_gpu(
    shown: str, found: int, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    choice = choose_device(asked, three_gpus(), has_cuda_build=True)
    assert choice.device == "cuda:0" and choice.gpu is not None and choice.gpu.uuid == UUIDS[found]


def test_a_beginning_of_two_uuids_is_refused_and_one_of_none_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1c5e,GPU-af7b")
    with pytest.raises(InputError, match=r"CUDA_VISIBLE_DEVICES: GPU-af7b is the beginning of the UUIDs of several"):
        choose_device("auto", three_gpus(), has_cuda_build=True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-ffff")
    choice = choose_device("auto", three_gpus(), has_cuda_build=True)
    assert choice.device == "cpu" and "GPU-ffff, which is no GPU of this machine" in str(choice.why)
    with pytest.raises(InputError, match="no NVIDIA driver or GPU was found"):
        choose_device("cuda", three_gpus(), has_cuda_build=True)


def test_an_index_is_used_only_where_both_count_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = fake_nvml()
    nvml.nvmlDeviceGetCount.return_value = 2
    nvml.nvmlDeviceGetHandleByIndex.side_effect = lambda index: index
    nvml.nvmlDeviceGetName.side_effect = lambda handle: ("NVIDIA H200", "NVIDIA T4")[handle]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    assert find_gpu(None, nvml).reason == "ambiguous_index"
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert find_gpu(None, nvml).name == "NVIDIA T4"
    assert find_gpu(None, nvml, position=1).name == "NVIDIA H200"


def test_equal_gpus_are_counted_alike_and_the_device_number_counts_visible_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nvml = fake_nvml()
    nvml.nvmlDeviceGetCount.return_value = 4
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,2")
    assert find_gpu(None, nvml, position=1).reason is None
    nvml.nvmlDeviceGetHandleByIndex.assert_called_with(2)


def test_hidden_gpus_and_absent_drivers_are_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_gpu(None, fake_nvml(nvmlInit=pynvml.NVML_ERROR_DRIVER_NOT_LOADED)).reason == "no_driver"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert find_gpu(None, fake_nvml()).reason == "hidden"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert find_gpu(None, fake_nvml(), position=5).reason == "hidden"


def test_facts_say_what_the_gpu_is_and_leave_out_what_it_does_not_tell() -> None:
    nvml = fake_nvml(nvmlDeviceGetPersistenceMode=pynvml.NVML_ERROR_NOT_SUPPORTED)
    nvml.nvmlDeviceGetEnforcedPowerLimit.return_value = 700_000
    nvml.nvmlDeviceGetMaxClockInfo.return_value = 1980
    facts = find_gpu("1", nvml).facts()
    assert (facts["power_limit_w"], facts["max_sm_clock_mhz"], facts["persistence"]) == (700.0, 1980, None)


def test_power_is_that_of_the_moment_where_the_driver_tells_it() -> None:
    nvml = fake_nvml()
    nvml.nvmlDeviceGetFieldValues.return_value = [SimpleNamespace(nvmlReturn=0, value=SimpleNamespace(uiVal=410_000))]
    gpu = find_gpu("1", nvml)
    assert (gpu.power_source, gpu.read().power_w) == ("instant", 410.0)
    nvml.nvmlDeviceGetPowerUsage.assert_not_called()
    older = find_gpu("1", fake_nvml(nvmlDeviceGetFieldValues=pynvml.NVML_ERROR_NOT_SUPPORTED))
    assert (older.power_source, older.read().power_w) == ("usage", 350.0)


def test_facts_tell_of_modes_limits_and_memory_errors() -> None:
    nvml = fake_nvml(nvmlDeviceGetMigDeviceHandleByIndex=pynvml.NVML_ERROR_NOT_FOUND)
    nvml.nvmlDeviceGetMigMode.return_value = [1, 1]
    nvml.nvmlDeviceGetTotalEccErrors.side_effect = lambda handle, kind, counter: {0: 5, 1: 2}[kind]
    nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 0, 1
    facts = find_gpu("1", nvml).facts()
    assert (facts["mig"], facts["num_mps_processes"], facts["power_limit_default_w"]) == ("on", 0, 700.0)
    assert (facts["ecc_corrected_errors"], facts["ecc_uncorrected_errors"]) == (5, 2)
    nvml.nvmlDeviceIsMigDeviceHandle.return_value = 1
    assert find_gpu("1", nvml).facts()["mig"] == "slice"


def test_of_a_gpu_that_is_cut_into_parts_the_first_part_is_read() -> None:
    nvml = fake_nvml()
    nvml.nvmlDeviceGetMigMode.return_value = [1, 1]
    nvml.nvmlDeviceGetMigDeviceHandleByIndex.return_value = "part"
    nvml.nvmlDeviceGetName.side_effect = {"part": "NVIDIA H200 MIG 1g.18gb"}.get
    assert find_gpu("1", nvml).name == "NVIDIA H200 MIG 1g.18gb"


def test_critical_errors_of_the_device_are_heard_once() -> None:
    nvml = fake_nvml()
    meter = GpuMeter(find_gpu("1", nvml))
    assert not meter.is_lost()
    timeout = pynvml.NVMLError(pynvml.NVML_ERROR_TIMEOUT)
    nvml.nvmlEventSetWait_v2.side_effect = [
        SimpleNamespace(eventData=31),
        timeout,
        SimpleNamespace(eventData=79),
        timeout,
    ]
    assert meter.xids() == [31]
    assert meter.is_lost()  # 79: it fell off the bus
    nvml.nvmlEventSetWait_v2.side_effect = timeout
    assert meter.xids() == [31, 79]


def test_a_device_that_does_not_answer_is_lost() -> None:
    gone = fake_nvml(nvmlDeviceGetPowerUsage=pynvml.NVML_ERROR_GPU_IS_LOST)
    assert device_is_lost([GpuMeter(find_gpu("1", gone))])
    assert not device_is_lost([])


def test_without_a_driver_every_field_is_null_with_the_reason() -> None:
    gpu = find_gpu(None, fake_nvml(nvmlInit=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND))
    reading = gpu.read()
    assert gpu.reason == "no_driver"
    assert reading.power_w is None
    assert set(reading.reasons.values()) == {"no_driver"}
    gpu.close()


def test_this_machine_is_read_without_an_exception() -> None:
    gpu = find_gpu(None)
    assert gpu.read() is not None
    gpu.close()


def test_one_field_that_is_refused_leaves_the_others() -> None:
    failing = fake_nvml(nvmlDeviceGetTotalEnergyConsumption=pynvml.NVML_ERROR_NOT_SUPPORTED)
    reading = find_gpu("1", failing).read()
    assert reading.energy_counter_j is None
    assert reading.reasons == {"energy_counter_j": "not_supported"}
    assert reading.power_w == 350.0


def test_processes_of_others_are_counted_and_our_family_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml, me = fake_nvml(), os.getpid()
    parents = {me: [], 101: [me], 102: [7], 103: [102, 7]}  # a child, a stranger, and the stranger's child

    def process(pid: int = me) -> Any:
        return SimpleNamespace(pid=pid, parents=lambda: [SimpleNamespace(pid=parent) for parent in parents[pid]])

    monkeypatch.setattr(psutil, "Process", process)
    nvml.nvmlDeviceGetComputeRunningProcesses.return_value = [SimpleNamespace(pid=pid) for pid in parents]
    assert find_gpu("1", nvml).read().num_other_processes == 2


def test_process_ids_of_another_namespace_are_not_guessed() -> None:
    nvml = fake_nvml()
    nvml.nvmlDeviceGetComputeRunningProcesses.return_value = [SimpleNamespace(pid=2**22 + 1)]
    reading = find_gpu("1", nvml).read()
    assert reading.num_other_processes is None
    assert reading.reasons == {"num_other_processes": "other_namespace"}


@pytest.mark.parametrize("name", REASONS)
def test_every_reason_belongs_to_an_error_that_pynvml_has(name: str) -> None:
    assert issubclass(getattr(pynvml, name), pynvml.NVMLError)


def rapl(root: Path, counters_uj: dict[str, int], limit_uj: int = 999) -> Path:
    for number, (name, value) in enumerate(counters_uj.items()):
        zone = root / f"intel-rapl:{number}"
        zone.mkdir(parents=True, exist_ok=True)
        (zone / "name").write_text(name)
        (zone / "energy_uj").write_text(str(value))
        (zone / "max_energy_range_uj").write_text(str(limit_uj))
    return root


def test_rapl_sums_packages_and_unwraps(tmp_path: Path) -> None:
    energy = CpuEnergy(rapl(tmp_path, {"package-0": 900, "package-1": 0, "psys": 0}))
    rapl(tmp_path, {"package-0": 100, "package-1": 300, "psys": 700})  # 900 -> 1000 wraps to 0 -> 100
    assert energy.read_j() == pytest.approx((200 + 300) * 1e-6)
    assert energy.read_j() == pytest.approx((200 + 300) * 1e-6)


def test_without_rapl_there_is_a_reason(tmp_path: Path) -> None:
    energy = CpuEnergy(tmp_path)
    assert energy.read_j() is None
    assert energy.reason == "no_rapl"


def test_a_counter_that_disappears_ends_the_readings(tmp_path: Path) -> None:
    energy = CpuEnergy(rapl(tmp_path, {"package-0": 1}))
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    assert energy.read_j() is None
    assert energy.reason == "unreadable"
