"""Power meters as telemetry columns: NVML for the GPU, RAPL for the CPU; what cannot be read is null with a reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moeprof.capture.cpu_energy import CpuEnergy
from moeprof.capture.gpu import Gpu
from moeprof.capture.telemetry import Meter

# Errors after which the device runs nothing until it is reset: uncorrected memory, off the bus, its processor hangs
LOST_XIDS = {48, 62, 79, 95, 119, 120}


class GpuMeter:
    """NVML readings of one device."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._events = gpu.open_events()
        self._xids: list[int] = []

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
        """Whether the driver says that the GPU is gone, or reported an error that only a reset mends."""
        return "gpu_lost" in self._gpu.read().reasons.values() or bool(LOST_XIDS & set(self.xids()))

    def xids(self) -> list[int]:
        """Numbers of the critical errors that the driver has reported since the run began."""
        self._xids += self._gpu.new_xids(self._events)
        return self._xids


class CpuMeter:
    """RAPL package energy."""

    def __init__(self, energy: CpuEnergy) -> None:
        self._energy = energy

    def read(self) -> dict[str, Any]:
        """Telemetry columns."""
        return {"cpu_energy_counter_j": self._energy.read_j()}


def open_meters(gpu: Gpu | None, others: Sequence[Gpu] = ()) -> list[Meter]:
    """All meters of this machine; ``others`` are GPUs that share the model with the first one."""
    meters: list[Meter] = [] if gpu is None else [_gpu_meter(gpu, others)]
    cpu = CpuEnergy()
    return meters if cpu.reason is not None else [*meters, CpuMeter(cpu)]


def _gpu_meter(gpu: Gpu, others: Sequence[Gpu]) -> GpuMeter:
    from moeprof.capture.parallel.meters import GpusMeter  # it imports this file

    return GpusMeter([gpu, *others]) if others else GpuMeter(gpu)


def reported_xids(meters: Sequence[Meter]) -> list[int]:
    """Critical errors of the device so far, as the driver numbers them."""
    return [xid for meter in meters if isinstance(meter, GpuMeter) for xid in meter.xids()]


def device_is_lost(meters: Sequence[Meter]) -> bool:
    """Whether a GPU that was there does not answer any more."""
    return any(meter.is_lost() for meter in meters if isinstance(meter, GpuMeter))
