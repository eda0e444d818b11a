"""What datasheets say about devices: dense matrix rate, bandwidth, memory, each with its source and date."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from moeprof.core import yamlfile

DATASHEETS = Path(__file__).resolve().parents[1] / "data" / "hardware.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Datasheet:
    """One device.

    Attributes:
        name: short name.
        pattern: regular expression, searched in the device's name without regard to case.
        bf16_flops_per_s: dense matrix rate in bfloat16; 2:4-sparse figures are never used.
        bandwidth_bytes_per_s: memory bandwidth.
        memory_bytes: memory.
        source: where the figures stand.
        date: of the source.
    """

    name: str
    pattern: str
    bf16_flops_per_s: float
    bandwidth_bytes_per_s: float
    memory_bytes: float
    source: str
    date: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    devices: tuple[Datasheet, ...]


@cache
def datasheets() -> tuple[Datasheet, ...]:
    """All rows, in order of search."""
    return yamlfile.load(DATASHEETS, _File).devices


def find_datasheet(device_name: str) -> Datasheet | None:
    """The row of a device, or None for an unknown device or a MIG slice (a part of a device has no datasheet)."""
    if is_slice(device_name):
        return None
    return next((row for row in datasheets() if re.search(row.pattern, device_name, re.IGNORECASE)), None)


def is_slice(device_name: str) -> bool:
    """True for a part of a GPU (MIG)."""
    return re.search(r"\bMIG\b", device_name) is not None
