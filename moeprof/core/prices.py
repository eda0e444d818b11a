"""The price book: what an hour of a device costs, from whom, and as of when. Unknown is an error, never 0."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from moeprof.core import yamlfile
from moeprof.core.errors import PriceError, WorkloadError
from moeprof.core.hardware import is_slice
from moeprof.core.yamlfile import more_than_zero

PRICE_BOOK = Path(__file__).resolve().parents[1] / "data" / "prices.yaml"
HOW_TO_GIVE = "give one with --usd-per-device-hour, or prices: {usd_per_device_hour: ...} in the workload"


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceRow:
    """One row of the book; exactly one of the two prices is set.

    Attributes:
        device: short name.
        pattern: regular expression, searched in the device's name without regard to case.
        includes_power: whether the price includes power.
        kind: what sort of price, for example ``list price``.
        source: who asks it.
        date: when it was read.
        usd_per_device_hour: price of a GPU.
        usd_per_vcpu_hour: price of one vCPU of a rented machine.
    """

    device: str
    pattern: str
    includes_power: bool
    kind: str
    source: str
    date: str
    usd_per_device_hour: float | None = None
    usd_per_vcpu_hour: float | None = None

    def __post_init__(self) -> None:
        more_than_zero(usd_per_device_hour=self.usd_per_device_hour, usd_per_vcpu_hour=self.usd_per_vcpu_hour)
        if (self.usd_per_device_hour is None) == (self.usd_per_vcpu_hour is None):
            raise WorkloadError(f"{self.device}: give usd_per_device_hour or usd_per_vcpu_hour, and not both")


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What an hour of one device costs.

    Attributes:
        usd_per_device_hour: for a CPU the whole machine counts as one device.
        includes_power: whether power is in it.
        source: one line for the report, with kind and date.
        date: when it was read.
    """

    usd_per_device_hour: float
    includes_power: bool
    source: str
    date: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    prices: tuple[PriceRow, ...]


@cache
def price_book() -> tuple[PriceRow, ...]:
    """All rows, in order of search."""
    return yamlfile.load(PRICE_BOOK, _File).prices


def find_price(device_name: str, *, num_vcpus: int | None = None) -> Price:
    """The price of a device from the book.

    Args:
        device_name: as the driver or the CPU calls itself.
        num_vcpus: logical processors of the machine, for a CPU.

    Raises:
        PriceError: unknown device, a part of a GPU, or a CPU whose number of processors is unknown.
    """
    if is_slice(device_name):
        raise PriceError(
            f"device {device_name!r}: a part of a GPU, and the price book has whole ones only; {HOW_TO_GIVE}"
        )
    row = next((row for row in price_book() if re.search(row.pattern, device_name, re.IGNORECASE)), None)
    if row is None:
        raise PriceError(f"device {device_name!r}: no price is known for it; {HOW_TO_GIVE}")
    usd = row.usd_per_device_hour
    if usd is None:
        assert row.usd_per_vcpu_hour is not None, "a row has one of the two prices"
        if num_vcpus is None:
            raise PriceError(f"device {device_name!r}: priced per vCPU, and their number is unknown; {HOW_TO_GIVE}")
        usd = row.usd_per_vcpu_hour * num_vcpus
    return Price(
        usd_per_device_hour=usd,
        includes_power=row.includes_power,
        source=f"{row.source} ({row.kind}, {row.date})",
        date=row.date,
    )
