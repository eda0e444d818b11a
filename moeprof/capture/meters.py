"""Power meters as telemetry columns: NVML for the GPU, RAPL for the CPU; what cannot be read is null with a reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moeprof.capture.cpu_energy import CpuEnergy
from moeprof.capture.gpu import Gpu
from moeprof.capture.telemetry import Meter


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

    def is_lost(self) -> bool:
        """Whether the driver says that the GPU is gone."""
        return "gpu_lost" in self._gpu.read().reasons.values()


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


def device_is_lost(meters: Sequence[Meter]) -> bool:
    """Whether a GPU that was there does not answer any more."""
    return any(meter.is_lost() for meter in meters if isinstance(meter, GpuMeter))
