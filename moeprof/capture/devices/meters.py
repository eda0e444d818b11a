"""Power meters as telemetry columns (NVML for the GPU, RAPL for the CPU), and what the GPU does before anything runs.

What cannot be read is null with a reason.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from operator import or_
from typing import Any, Protocol

from moeprof.capture.devices.cpu_energy import CpuEnergy
from moeprof.capture.devices.gpu import Gpu, GpuReading

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
    meters: list[Meter] = [] if gpu is None else [GpusMeter([gpu, *others]) if others else GpuMeter(gpu)]
    cpu = CpuEnergy()
    return meters if cpu.reason is not None else [*meters, CpuMeter(cpu)]


def reported_xids(meters: Sequence[Meter]) -> list[int]:
    """Critical errors of the device so far, as the driver numbers them."""
    return [xid for meter in meters if isinstance(meter, GpuMeter) for xid in meter.xids()]


def device_is_lost(meters: Sequence[Meter]) -> bool:
    """Whether a GPU that was there does not answer any more."""
    return any(meter.is_lost() for meter in meters if isinstance(meter, GpuMeter))


LOOK_FOR_S = 2.0  # longer than what drivers average power and utilisation over
LOOK_EVERY_S = 0.1
BUSY_RATIO = 0.05  # more than that, and the power is not that of an idle device


def device_at_start(
    gpu: Gpu | None, *, look_for_s: float | None = None, sleep: Callable[[float], None] = time.sleep
) -> dict[str, Any] | None:
    """Facts of the GPU and two seconds of looking at it; None without a GPU.

    ``idle_power_w`` is the median, or null with ``idle_power_reason``: a busy device has no idle power.
    """
    if gpu is None:
        return None
    look_for_s = LOOK_FOR_S if look_for_s is None else look_for_s
    samples = []
    for _ in range(max(1, round(look_for_s / LOOK_EVERY_S))):
        samples.append(gpu.read())
        sleep(LOOK_EVERY_S)
    memory = [s.memory_used_bytes for s in samples if s.memory_used_bytes is not None]
    load = [s.utilisation_ratio for s in samples if s.utilisation_ratio is not None]
    others = [s.num_other_processes for s in samples if s.num_other_processes is not None]
    found: dict[str, Any] = {
        "looked_for_s": look_for_s,
        "memory_used_bytes": max(memory, default=None),
        "utilisation_ratio": statistics.fmean(load) if load else None,
        "num_other_processes": max(others, default=None),
        "num_other_processes_reason": None if others else samples[-1].reasons.get("num_other_processes"),
    }
    power, reason = _idle_power(samples, found)
    return gpu.facts() | found | {"idle_power_w": power, "idle_power_reason": reason}


def device_at_end(gpu: Gpu | None, meters: Sequence[Meter]) -> dict[str, Any] | None:
    """The same facts after the run, and the critical errors that the driver reported meanwhile."""
    return None if gpu is None else gpu.facts() | {"xids": reported_xids(meters)}


def _idle_power(samples: Sequence[GpuReading], found: dict[str, Any]) -> tuple[float | None, str | None]:
    """W and None, or None and a reason code."""
    power = [s.power_w for s in samples if s.power_w is not None]
    if not power:
        return None, samples[-1].reasons.get("power_w", "no_power")
    if (found["utilisation_ratio"] or 0.0) > BUSY_RATIO:
        return None, "device_busy_at_start"
    return statistics.median(power), None


class Meter(Protocol):
    """Something that reads power and clocks into telemetry columns."""

    def read(self) -> dict[str, Any]:
        """Column name -> value; what cannot be read is left out."""


class GpusMeter(GpuMeter):
    """One telemetry row for the devices of all ranks. A column is None when one device does not tell it."""

    def __init__(self, gpus: Sequence[Gpu]) -> None:
        self._each = [GpuMeter(gpu) for gpu in gpus]  # each listens to its own device's errors

    def read(self) -> dict[str, Any]:
        """Telemetry columns."""
        rows = [meter.read() for meter in self._each]
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        return {n: None if None in values else HOW.get(n, max)(values) for n, values in columns.items()}

    def is_lost(self) -> bool:
        """Whether the driver says that one of the GPUs is gone."""
        return any(meter.is_lost() for meter in self._each)

    def xids(self) -> list[int]:
        """Critical errors of all of them since the run began."""
        return [xid for meter in self._each for xid in meter.xids()]


HOW: dict[str, Callable[[Iterable[Any]], Any]] = {
    "power_w": sum,
    "energy_counter_j": sum,
    "temperature_c": max,
    "sm_clock_mhz": min,
    "memory_clock_mhz": min,
    "device_utilisation_ratio": statistics.fmean,
    "device_memory_used_bytes": sum,
    "throttle_reasons": lambda masks: reduce(or_, masks),
    "num_other_processes": max,
}
