"""NVML's bit mask of reasons why a clock is not the highest: which are throttling, in words, and when.

``gpu_idle`` and ``applications_clocks_setting`` are no throttling: nothing to do, and a clock that somebody asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from moeprof.analysis.tables import FloatArray

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
