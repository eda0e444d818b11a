"""What an hour of the machine costs: rent or amortised capital, with or without power, and from what source."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from moeprof.core import units
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
    """The price of a run. Exactly one of ``usd_per_device_hour``, ``capital``, ``per_token`` and ``unknown`` is set.

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
        per_token: a hosted API bills each token at its ``api_...`` prices, and no hour.
        unknown: why nothing can be billed.
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
    per_token: bool = False
    unknown: str | None = None

    def __post_init__(self) -> None:
        given = (self.usd_per_device_hour, self.capital, self.per_token or None, self.unknown)
        if sum(one is not None for one in given) != 1:
            raise ValueError("neither rent, capital, prices of tokens nor a reason (or several)")

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
        hourly = self.usd_per_hour
        assert hourly is not None, "no hour is billed"
        return hourly / 3600.0

    @property
    def usd_per_hour(self) -> float | None:
        """Price of an hour of all devices, likewise; None where no hour is billed."""
        hourly = self.usd_per_device_hour if self.capital is None else self.capital.usd_per_hour
        return None if hourly is None else hourly * self.num_devices

    @property
    def words(self) -> str:
        """What is billed, and from what source."""
        if self.unknown is not None:
            return f"n/a ({self.unknown})"
        hourly = self.usd_per_hour
        if hourly is not None:
            return f"{units.usd(hourly)} per hour ({self.source})"
        sides = (self.api_usd_per_1m_input_tokens or 0.0, self.api_usd_per_1m_output_tokens or 0.0)
        return f"{units.usd(sides[0])} per 1M input tokens, {units.usd(sides[1])} per 1M output tokens ({self.source})"


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
    given = _given(prices, num_devices)
    if given is not None:
        return given
    price = find_price(device_name, num_vcpus=num_vcpus)
    if not price.includes_power and prices.usd_per_kwh is None:
        raise PriceError(f"device {device_name!r}: its price excludes power; give usd_per_kwh too, or {HOW_TO_GIVE}")
    return Pricing(
        usd_per_device_hour=price.usd_per_device_hour,
        includes_power=price.includes_power and prices.includes_power,
        source=price.source,
        date=price.date,
        **_common(prices, num_devices),
    )


def served_pricing(prices: Prices, devices: int | None) -> Pricing:
    """Of a deployment that is elsewhere: its devices at the price that is given, or the prices of an API.

    The price book knows this machine, not that one, so it is not asked.
    """
    common = _common(prices, devices or 1)
    if devices is not None:
        unknown = "no price of the deployment's devices was given; give prices: {usd_per_device_hour: ...}"
        return _given(prices, devices) or Pricing(unknown=unknown, **common)
    if common["api_usd_per_1m_input_tokens"] and common["api_usd_per_1m_output_tokens"]:
        return Pricing(per_token=True, source=prices.source or "prices of an API, given by the user", **common)
    unknown = "how many devices the deployment has was not said; give engine.devices, or prices.api for a hosted API"
    return Pricing(unknown=unknown, **common)


def _common(prices: Prices, num_devices: int) -> dict[str, Any]:
    return {
        "num_devices": num_devices,
        "usd_per_kwh": prices.usd_per_kwh,
        "pue": prices.pue,
        "api_usd_per_1m_input_tokens": prices.api.input if prices.api else prices.api_usd_per_1m_input_tokens,
        "api_usd_per_1m_output_tokens": prices.api.output if prices.api else prices.api_usd_per_1m_output_tokens,
        "api_usd_per_1m_cached_input_tokens": prices.api.cached_input if prices.api else None,
    }


def _given(prices: Prices, num_devices: int) -> Pricing | None:
    """Capital or rent that the workload states, or None."""
    common = _common(prices, num_devices)
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
    return None
