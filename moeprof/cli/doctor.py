"""``moeprof doctor``: what this machine can measure, and what it cannot, with the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from moeprof.cli.options import ListFormat
from moeprof.core.record.experiment import EnvironmentHeader
from moeprof.render import TABLE

if TYPE_CHECKING:
    from moeprof.capture.devices.gpu import Gpu


def doctor(
    format: ListFormat = TABLE,
    coverage: Annotated[
        bool,
        typer.Option("--coverage", help="Run a tiny model of every MoE architecture through the engine (a minute)."),
    ] = False,
) -> None:
    """Look at device, driver, energy counters, price and versions; say what would be n/a and why."""
    from moeprof.analysis.report.result import Listing
    from moeprof.cli.output import print_result

    print_result(Listing(rows=_coverage() if coverage else _findings()), format)


def _coverage() -> list[dict[str, Any]]:
    from dataclasses import asdict

    from moeprof.capture.coverage import coverage
    from moeprof.capture.engines.hf import build_engine
    from moeprof.core.workload.engine import TransformersSettings

    settings = TransformersSettings(kv_tokens=256, max_batch=2, max_batch_tokens=64)
    return [asdict(row) for row in coverage(lambda model, listeners: build_engine(model, settings, listeners))]


IN_WORDS = {
    "no_driver": "no_driver: no NVIDIA driver is loaded here",
    "driver_mismatch": "driver_mismatch: the NVIDIA library and the loaded driver differ; restart the machine",
    "no_permission": "no_permission: this user may not read it",
    "not_supported": "not_supported: this device does not have it",
    "driver_too_old": "driver_too_old: a newer NVIDIA driver has it",
    "no_rapl": "no_rapl: the kernel shows no RAPL counters (virtual machines seldom do)",
    "instant": "instant: at the moment of reading",
    "usage": "usage: averaged by the driver, over 1 s on recent GPUs",
    "unreadable": "unreadable: the counter is there and gives no number",
}


def _findings() -> list[dict[str, Any]]:
    from moeprof.capture.devices.choose import choose_device
    from moeprof.capture.devices.cpu_energy import CpuEnergy
    from moeprof.capture.devices.environment import environment
    from moeprof.capture.devices.gpu import find_gpu

    choice = choose_device("auto")
    gpu, device = choice.gpu or find_gpu(None), choice.device
    facts = environment(choice.gpu, device, None)
    reading = gpu.read()
    rapl = CpuEnergy().reason
    rows = [
        _row("device", facts.device_name, choice.why or ("the GPU" if choice.gpu else "no GPU that torch can use")),
        _row("gpu", gpu.name, gpu.reason),
        _row("driver", gpu.driver, gpu.reason),
        _row("energy counter", _yes(reading.energy_counter_j), reading.reasons.get("energy_counter_j")),
        _row("power", _yes(reading.power_w), reading.reasons.get("power_w") or gpu.power_source),
        _row("clocks", _yes(reading.sm_clock_mhz), reading.reasons.get("sm_clock_mhz")),
        _row("cpu energy (RAPL)", "readable" if rapl is None else None, rapl),
        _row("processor", f"{facts.cpu}, {facts.cpu_cores} logical", ", ".join(facts.cpu_flags) or None),
        _price(facts),
    ]
    rows[1:1] = _gpu_rows(choice.gpu)
    rows += [_row(name, version, None if version else "not installed") for name, version in facts.packages.items()]
    return rows


def _gpu_rows(gpu: Gpu | None) -> list[dict[str, Any]]:
    """What is not as it should be with the GPU that a run would take."""
    from moeprof.analysis.metrics.resources.device_state import findings
    from moeprof.capture.devices.meters import device_at_start

    seen = device_at_start(gpu)
    if seen is None:
        return []
    rows = [_row(finding.code, finding.severity, finding.text) for finding in findings(seen)]
    return rows or [_row("gpu state", "fine", "idle, no neighbours, power limit at its default")]


def _row(what: str, found: Any, note: str | None) -> dict[str, Any]:
    return {"what": what, "found": "n/a" if found is None else found, "note": IN_WORDS.get(note or "", note or "")}


def _yes(value: Any) -> str | None:
    return None if value is None else "readable"


def _price(facts: EnvironmentHeader) -> dict[str, Any]:
    from moeprof.core.errors import PriceError
    from moeprof.core.pricing import resolve_pricing
    from moeprof.core.units import usd
    from moeprof.core.workload.workload import Prices

    try:
        pricing = resolve_pricing(Prices(), str(facts.device_name), num_vcpus=facts.cpu_cores)
    except PriceError as error:
        return _row("price", None, str(error))
    return _row("price", f"{usd(pricing.usd_per_second * 3600)} per hour", pricing.source)
