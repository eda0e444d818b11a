"""What the GPU does before anything of ours is on it: idle power, and what others hold and run there."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from moeprof.capture.gpu import Gpu, GpuReading
from moeprof.capture.meters import reported_xids
from moeprof.capture.telemetry import Meter

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
