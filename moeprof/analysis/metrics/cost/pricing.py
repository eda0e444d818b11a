"""The prices of a record, with figures given later in their place."""

from __future__ import annotations

from dataclasses import replace

from moeprof.core.errors import PriceError
from moeprof.core.pricing import Pricing, resolve_pricing
from moeprof.core.record.layout import Record
from moeprof.core.workload.workload import Prices


def repriced(
    record: Record, *, usd_per_device_hour: float | None, usd_per_kwh: float | None = None, pue: float | None = None
) -> Pricing:
    """The record's own pricing with the given figures in their place.

    Raises:
        PriceError: the record has no price and none is given, or a figure is out of range.
    """
    checked = Prices(usd_per_device_hour=usd_per_device_hour, usd_per_kwh=usd_per_kwh, pue=1.0 if pue is None else pue)
    pricing = record.experiment.pricing
    if pricing is None:
        environment = record.environment
        pricing = resolve_pricing(
            checked, str(environment.device_name), num_vcpus=environment.cpu_cores, num_devices=environment.num_devices
        )  # fmt: skip
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
