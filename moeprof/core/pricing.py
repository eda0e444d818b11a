"""What an hour of the machine costs: rent or amortised capital, with or without power, and from what source."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from moeprof.core.errors import PriceError
from moeprof.core.prices import HOW_TO_GIVE, find_price
from moeprof.core.workload.workload import ApiPrices, Prices

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
        api_usd_per_1m_cached_input_tokens: likewise for prompt tokens that the API has in its cache.
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
    api_usd_per_1m_cached_input_tokens: float | None = None
    source: str = "given by the user"
    date: str = ""

    def __post_init__(self) -> None:
        if (self.usd_per_device_hour is None) == (self.capital is None):
            raise ValueError("neither rent nor capital (or both)")

    def with_api(self, api: ApiPrices | None) -> Pricing:
        """This price beside that of an API; None leaves it alone."""
        if api is None:
            return self
        return replace(
            self,
            api_usd_per_1m_input_tokens=api.input,
            api_usd_per_1m_output_tokens=api.output,
            api_usd_per_1m_cached_input_tokens=api.cached_input,
        )

    @property
    def usd_per_second(self) -> float:
        """Price of one second of all devices, without power that is billed apart."""
        hourly = self.usd_per_device_hour if self.capital is None else self.capital.usd_per_hour
        assert hourly is not None, "a Pricing has rent or capital"
        return hourly * self.num_devices / 3600.0


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
        "api_usd_per_1m_input_tokens": prices.api.input if prices.api else prices.api_usd_per_1m_input_tokens,
        "api_usd_per_1m_output_tokens": prices.api.output if prices.api else prices.api_usd_per_1m_output_tokens,
        "api_usd_per_1m_cached_input_tokens": prices.api.cached_input if prices.api else None,
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
