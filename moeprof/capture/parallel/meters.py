"""NVML readings of several devices as one: what adds up is summed, else the worst of them counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from operator import or_
from typing import Any

from moeprof.capture.devices.gpu import Gpu
from moeprof.capture.devices.meters import GpuMeter


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


HOW: dict[str, Callable[[Iterable[Any]], Any]] = {
    "power_w": sum,
    "energy_counter_j": sum,
    "temperature_c": max,
    "sm_clock_mhz": min,
    "memory_clock_mhz": min,
    "device_utilisation_ratio": _mean,
    "device_memory_used_bytes": sum,
    "throttle_reasons": lambda masks: reduce(or_, masks),
    "num_other_processes": max,
}


class GpusMeter(GpuMeter):
    """One telemetry row for the devices of all ranks. A column is None when one device does not tell it."""

    def __init__(self, gpus: Sequence[Gpu]) -> None:
        self._each = [GpuMeter(gpu) for gpu in gpus]  # each listens to its own device's errors

    def read(self) -> dict[str, Any]:
        """Telemetry columns."""
        rows = [meter.read() for meter in self._each]
        return {name: self._combined(name, [row[name] for row in rows]) for name in rows[0]}

    def is_lost(self) -> bool:
        """Whether the driver says that one of the GPUs is gone."""
        return any(meter.is_lost() for meter in self._each)

    def xids(self) -> list[int]:
        """Critical errors of all of them since the run began."""
        return [xid for meter in self._each for xid in meter.xids()]

    def _combined(self, name: str, values: list[Any]) -> Any:
        if any(value is None for value in values):
            return None
        return HOW.get(name, max)(values)
