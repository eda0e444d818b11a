"""Power meters as telemetry columns: NVML for the GPU, RAPL for the CPU; what cannot be read is null with a reason."""

from __future__ import annotations

import statistics
import time
from typing import Any

from moeprof.capture.cpu_energy import CpuEnergy
from moeprof.capture.gpu import Gpu
from moeprof.capture.telemetry import Meter

IDLE_SAMPLES = 10
IDLE_EVERY_S = 0.1


class GpuMeter:
    """NVML readings of one device."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu

    def read(self) -> dict[str, Any]:
        """Telemetry columns."""
        reading = self._gpu.read()
        return {
            "power_w": reading.power_w,
            "energy_counter_j": reading.energy_counter_j,
            "temperature_c": reading.temperature_c,
            "sm_clock_mhz": reading.sm_clock_mhz,
            "memory_clock_mhz": reading.memory_clock_mhz,
            "device_utilisation_ratio": reading.utilisation_ratio,
            "device_memory_used_bytes": reading.memory_used_bytes,
            "throttle_reasons": reading.throttle_reasons,
            "num_other_processes": reading.num_other_processes,
        }


class CpuMeter:
    """RAPL package energy."""

    def __init__(self, energy: CpuEnergy) -> None:
        self._energy = energy

    def read(self) -> dict[str, Any]:
        """Telemetry columns."""
        return {"cpu_energy_counter_j": self._energy.read_j()}


def open_meters(gpu: Gpu | None) -> list[Meter]:
    """All meters of this machine."""
    meters: list[Meter] = [] if gpu is None else [GpuMeter(gpu)]
    cpu = CpuEnergy()
    return meters if cpu.reason is not None else [*meters, CpuMeter(cpu)]


def idle_power_w(meters: list[Meter]) -> float | None:
    """Device power before anything runs: the median of a second of samples; None without a GPU meter."""
    gpu = [meter for meter in meters if isinstance(meter, GpuMeter)]
    if not gpu:
        return None
    samples = []
    for _ in range(IDLE_SAMPLES):
        samples.append(gpu[0].read()["power_w"])
        time.sleep(IDLE_EVERY_S)
    known = [sample for sample in samples if sample is not None]
    return statistics.median(known) if known else None
