"""What an hour of the machine costs: rent or amortised capital, with or without power, and from what source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from moeprof.core.errors import PriceError, RecordError
from moeprof.core.prices import HOW_TO_GIVE, find_price
from moeprof.core.record.layout import Record
from moeprof.core.workload.workload import Prices

HOURS_PER_YEAR = 8766.0  # 365.25 days


@dataclass(frozen=True, slots=True, kw_only=True)
class CapitalCost:
    """Owned hardware: price / (life * share of the life in which it is used), per device."""

    usd_per_device: float
    years: float
    utilisation_ratio: float

    @property
    def usd_per_hour(self) -> float:
        """Amortised price of one hour of use of one device."""
        return self.usd_per_device / (self.years * HOURS_PER_YEAR * self.utilisation_ratio)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pricing:
    """The price of a run. Exactly one of ``usd_per_device_hour`` and ``capital`` is set.

    Attributes:
        usd_per_device_hour: rent.
        capital: owned hardware.
        num_devices: billed devices.
        includes_power: whether the price includes power; if not, measured energy * pue * usd_per_kwh is added.
        usd_per_kwh: power price.
        pue: power usage effectiveness of the building.
        api_usd_per_1m_input_tokens: an API price to break even with.
        api_usd_per_1m_output_tokens: likewise for output.
        source: where the price comes from, one line.
        date: of that source.
    """

    usd_per_device_hour: float | None = None
    capital: CapitalCost | None = None
    num_devices: int = 1
    includes_power: bool = True
    usd_per_kwh: float | None = None
    pue: float = 1.0
    api_usd_per_1m_input_tokens: float | None = None
    api_usd_per_1m_output_tokens: float | None = None
    source: str = "given by the user"
    date: str = ""

    @property
    def usd_per_second(self) -> float:
        """Price of one second of all devices, without power that is billed apart."""
        hourly = self.usd_per_device_hour if self.capital is None else self.capital.usd_per_hour
        assert hourly is not None, "a Pricing has rent or capital"
        return hourly * self.num_devices / 3600.0

    def to_json(self) -> dict[str, Any]:
        """As JSON types, for the record."""
        return asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> Pricing:
        """The inverse of :meth:`to_json`.

        Raises:
            RecordError: it is not what :meth:`to_json` made.
        """
        capital = value.get("capital")
        try:
            pricing = Pricing(**{**value, "capital": None if capital is None else CapitalCost(**capital)})
        except TypeError as error:
            raise RecordError(f"experiment.json: damaged pricing ({error})") from error
        if (pricing.usd_per_device_hour is None) == (pricing.capital is None):
            raise RecordError("experiment.json: damaged pricing, neither rent nor capital (or both)")
        return pricing


def price_of_machine(prices: Prices, machine: Mapping[str, Any]) -> Pricing:
    """The price of a machine as the ``environment`` of a record describes it; see :func:`resolve_pricing`."""
    return resolve_pricing(
        prices, str(machine.get("device_name")), num_devices=machine.get("num_devices", 1),
        num_vcpus=machine.get("cpu_cores"),
    )  # fmt: skip


def resolve_pricing(prices: Prices, device_name: str, *, num_devices: int = 1, num_vcpus: int | None = None) -> Pricing:
    """The workload's prices, completed from the price book where they say nothing.

    Args:
        prices: from the workload or the command line.
        device_name: as the driver or the CPU calls itself.
        num_devices: billed devices.
        num_vcpus: logical processors, for a CPU.

    Raises:
        PriceError: no price is given and the book does not know the device; or power is billed apart without a price.
    """
    if not prices.includes_power and prices.usd_per_kwh is None:
        raise PriceError("prices: includes_power is false, so usd_per_kwh is needed; add it")
    common: dict[str, Any] = {
        "num_devices": num_devices,
        "usd_per_kwh": prices.usd_per_kwh,
        "pue": prices.pue,
        "api_usd_per_1m_input_tokens": prices.api_usd_per_1m_input_tokens,
        "api_usd_per_1m_output_tokens": prices.api_usd_per_1m_output_tokens,
    }
    if prices.capital is not None:
        owned = prices.capital
        capital = CapitalCost(
            usd_per_device=owned.usd_per_device, years=owned.years, utilisation_ratio=owned.utilisation_ratio
        )
        source = prices.source or f"{owned.usd_per_device:g} USD per device over {owned.years:g} years"
        return Pricing(capital=capital, includes_power=prices.includes_power, source=source, **common)
    if prices.usd_per_device_hour is not None:
        source = prices.source or "given by the user"
        rent = prices.usd_per_device_hour
        return Pricing(usd_per_device_hour=rent, includes_power=prices.includes_power, source=source, **common)
    price = find_price(device_name, num_vcpus=num_vcpus)
    if not price.includes_power and prices.usd_per_kwh is None:
        raise PriceError(f"device {device_name!r}: its price excludes power; give usd_per_kwh too, or {HOW_TO_GIVE}")
    return Pricing(
        usd_per_device_hour=price.usd_per_device_hour,
        includes_power=price.includes_power and prices.includes_power,
        source=price.source,
        date=price.date,
        **common,
    )


def repriced(
    record: Record, *, usd_per_device_hour: float | None, usd_per_kwh: float | None = None, pue: float | None = None
) -> Pricing:
    """The record's own pricing with the given figures in their place.

    Raises:
        PriceError: the record has no price and none is given, or a figure is out of range.
    """
    checked = Prices(usd_per_device_hour=usd_per_device_hour, usd_per_kwh=usd_per_kwh, pue=1.0 if pue is None else pue)
    stored = record.experiment.get("pricing")
    pricing = Pricing.from_json(stored) if stored else price_of_machine(checked, record.environment)
    if usd_per_device_hour is not None:
        pricing = replace(
            pricing, usd_per_device_hour=usd_per_device_hour, capital=None, source="given on the command line", date=""
        )
    if usd_per_kwh is not None:
        if pricing.includes_power and usd_per_device_hour is None:
            raise PriceError(
                "--usd-per-kwh: the record's price includes power already; give --usd-per-device-hour without power too"
            )
        pricing = replace(pricing, usd_per_kwh=usd_per_kwh, includes_power=False)
    return pricing if pue is None else replace(pricing, pue=pue)
