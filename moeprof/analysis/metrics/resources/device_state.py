"""What is not as it should be with a GPU: neighbours, limits, modes, errors. Codes and sentences, from the record.

Read by the report's doubts and by ``moeprof doctor``; ``at_start`` and ``at_end`` are those of experiment.json.

NVML's bit mask of reasons why a clock is not the highest: which are throttling, in words, and when.

``gpu_idle`` and ``applications_clocks_setting`` are no throttling: nothing to do, and a clock that somebody asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from moeprof.analysis.doubt import Severity
from moeprof.analysis.stats.arrays import FloatArray
from moeprof.core import units
from moeprof.core.record.experiment import DeviceAtEnd, DeviceAtStart, DeviceHeader

# An idle GPU holds some hundred MiB of the driver's own; more than this before we begin is somebody's.
MEMORY_IN_USE_BYTES, MEMORY_IN_USE_RATIO = 2**30, 0.01
BUSY_RATIO = 0.05
LIMIT_LOWERED = 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
        code: stable identifier.
        severity: as of a doubt.
        text: what was seen.
    """

    code: str
    severity: Severity
    text: str


def findings(at_start: DeviceAtStart, at_end: DeviceAtEnd | None = None) -> Iterator[Finding]:
    """Everything that is wrong, or should be known."""
    yield from _neighbours(at_start)
    yield from _limits(at_start)
    yield from _errors(at_start, at_end or DeviceAtEnd())


def _neighbours(device: DeviceAtStart) -> Iterator[Finding]:
    used, total = device.memory_used_bytes, device.memory_bytes or 0
    if used is not None and used > max(MEMORY_IN_USE_BYTES, MEMORY_IN_USE_RATIO * total):
        text = f"{units.display(used, 'B')} of the device's memory were in use before anything of this run was there"
        yield Finding(code="device_memory_in_use_at_start", severity="warning", text=text)
    load = device.utilisation_ratio
    if load is not None and load > BUSY_RATIO:
        text = f"the device was busy {100 * load:.0f} % of the time before the run: something else runs on it"
        yield Finding(code="device_busy_at_start", severity="warning", text=text)
    others = device.num_other_processes
    if others:
        text = f"{others} other process{'es' if others > 1 else ''} used the device before the run"
        yield Finding(code="other_processes_at_start", severity="warning", text=text)
    elif others is None and device.num_other_processes_reason == "other_namespace":
        text = "process ids of the device are hidden (a container): neighbours are judged by memory and load before it"
        yield Finding(code="neighbours_hidden", severity="note", text=text)
    if device.num_mps_processes:
        text = "the device is shared through MPS: processes of others run in the same moments"
        yield Finding(code="mps", severity="warning", text=text)


def lowered_power_limit_w(device: DeviceHeader) -> float | None:
    """The power limit where somebody set it below its default, else None."""
    limit, default = device.power_limit_w, device.power_limit_default_w
    is_lowered = limit is not None and default is not None and limit < LIMIT_LOWERED * default
    return float(limit) if limit is not None and is_lowered else None


def _limits(device: DeviceHeader) -> Iterator[Finding]:
    limit, default = lowered_power_limit_w(device), device.power_limit_default_w
    if limit is not None:
        text = f"the device's power limit is {limit:.0f} W, below its default of {default:.0f} W"
        yield Finding(code="power_limit_lowered", severity="warning", text=text)
    if device.mig in ("slice", "on"):
        text = "the device is cut into parts (MIG): power, energy, clocks and throttling are those of the whole of it"
        yield Finding(code="mig", severity="warning", text=text)


def _errors(at_start: DeviceHeader, at_end: DeviceAtEnd) -> Iterator[Finding]:
    before, after = at_start.ecc_uncorrected_errors, at_end.ecc_uncorrected_errors
    if before is not None and after is not None and after > before:
        text = f"{after - before} memory errors were not corrected during the run: figures and outputs may be wrong"
        yield Finding(code="ecc_errors", severity="error", text=text)
    elif before:
        text = f"{before} memory errors were not corrected since the driver was loaded: the device may need service"
        yield Finding(code="ecc_errors_before", severity="warning", text=text)
    if at_end.xids:
        text = f"the driver reported errors of the device during the run: Xid {', '.join(map(str, at_end.xids))}"
        yield Finding(code="xid", severity="warning", text=text)


GPU_IDLE = 0x1
# bit -> code (nvmlClocksThrottleReasons in nvml.h)
CODES = {
    GPU_IDLE: "gpu_idle",
    0x2: "applications_clocks_setting",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal",
    0x40: "hw_thermal",
    0x80: "hw_power_brake",
    0x100: "display",
}
WORDS = {
    "sw_power_cap": "software power cap",
    "hw_slowdown": "hardware slowdown",
    "sync_boost": "synchronised clocks",
    "sw_thermal": "software thermal slowdown",
    "hw_thermal": "hardware thermal slowdown",
    "hw_power_brake": "hardware power brake",
    "display": "display clock setting",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Throttled:
    """A stretch of time in which the device ran slower than it could. Seconds from the start of the pass."""

    start_s: float
    end_s: float
    codes: tuple[str, ...]


def throttle_codes(mask: int) -> tuple[str, ...]:
    """Codes of the throttling in a mask, in the order of bits; bits that are not known are ``bit_0x200``."""
    known = [code for bit, code in CODES.items() if mask & bit and code in WORDS]
    unknown = mask & ~sum(CODES)
    return (*known, *(f"bit_{hex(1 << i)}" for i in range(unknown.bit_length()) if unknown >> i & 1))


def in_words(codes: tuple[str, ...]) -> str:
    """``software power cap, hardware slowdown``."""
    return ", ".join(WORDS.get(code, code.replace("_", " ")) for code in codes)


def throttled_spans(times_s: FloatArray, masks: FloatArray) -> Iterator[Throttled]:
    """Stretches with the same reasons; a sample speaks from itself to the next one, the last for itself alone.

    Args:
        times_s: of the samples, rising.
        masks: NVML's masks as numbers; NaN where nothing was read.
    """
    known = np.isfinite(masks)
    times_s, codes = times_s[known], [throttle_codes(int(mask)) for mask in masks[known]]
    begin = 0
    for i in range(1, len(codes) + 1):
        if i == len(codes) or codes[i] != codes[begin]:
            if codes[begin]:
                end = float(times_s[min(i, len(codes) - 1)])
                yield Throttled(start_s=float(times_s[begin]), end_s=end, codes=codes[begin])
            begin = i


def throttled_ratio(times_s: FloatArray, masks: FloatArray) -> float | None:
    """Share of the sampled time that was throttled; None without two readings."""
    known = times_s[np.isfinite(masks)]
    if len(known) < 2 or known[-1] <= known[0]:
        return None
    spans = throttled_spans(times_s, masks)
    return float(sum(span.end_s - span.start_s for span in spans) / (known[-1] - known[0]))
