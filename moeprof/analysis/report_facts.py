"""Tables of plain facts: the machine, the traffic, the models and their engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moeprof.analysis.document import FactTable, Section
from moeprof.analysis.summary import ModelSummary, Summary
from moeprof.core import units
from moeprof.core.hardware import find_datasheet


def machine_section(summary: Summary) -> Section:
    """Everything needed to judge whether another run is comparable."""
    blocks = [_machine(summary), _traffic(summary), *(_engine(model) for model in summary.models if model.launch)]
    return Section(name="machine", title="Machine, traffic and engine", blocks=tuple(blocks))


def _machine(summary: Summary) -> FactTable:
    environment = summary.record.environment
    packages = ", ".join(f"{k} {v}" for k, v in (environment.get("packages") or {}).items() if v)
    gpu = environment.get("gpu") or {}
    rows = {
        "device": environment.get("device_name"),
        "driver": gpu.get("driver"),
        "chosen because": summary.record.experiment.get("device_why"),
        "before the run": _before(summary.record.experiment.get("device_at_start") or {}),
        "processor": f"{environment.get('cpu')}, {environment.get('cpu_cores')} logical",
        "instruction sets": ", ".join(environment.get("cpu_flags") or ()),
        "memory": units.num_bytes(environment["memory_bytes"]) if environment.get("memory_bytes") else None,
        "threads": environment.get("threads"),
        "system": f"{environment.get('system')}, Python {environment.get('python')}",
        "packages": packages,
        "moeprof": environment.get("moeprof"),
        "datasheet": _datasheet(str(environment.get("device_name"))),
        "measured peaks": _peaks(summary),
        "price": f"{units.usd(summary.pricing.usd_per_second * 3600)} per hour: {summary.pricing.source}",
    }
    return _facts("Machine", rows)


def _before(seen: Mapping[str, Any]) -> str | None:
    """What the device did and was allowed to do before anything of ours was on it; None without a look at it."""
    parts = []
    if seen.get("idle_power_w") is not None:
        how = {"instant": " (readings of the moment)", "usage": " (averages of the driver)"}
        parts.append(f"{seen['idle_power_w']:.0f} W{how.get(str(seen.get('power_source')), '')}")
    if seen.get("memory_used_bytes") is not None:
        parts.append(f"{units.num_bytes(seen['memory_used_bytes'])} in use")
    if seen.get("num_other_processes") is not None:
        parts.append(f"{seen['num_other_processes']} other processes")
    if seen.get("power_limit_w") is not None:
        parts.append(f"power limit {seen['power_limit_w']:.0f} W")
    return ", ".join(parts) or None


def _datasheet(device_name: str) -> str | None:
    """Dense figures, beside what was measured; None for devices without a row."""
    found = find_datasheet(device_name)
    if found is None:
        return None
    return (
        f"{found.bf16_flops_per_s / 1e12:.0f} TFLOP/s dense bf16, {found.bandwidth_bytes_per_s / 1e12:.2f} TB/s "
        f"({found.source}, {found.date})"
    )


def _peaks(summary: Summary) -> str | None:
    peaks = next((model.launch["peaks"] for model in summary.models if "peaks" in model.launch), None)
    if peaks is None:
        return None
    parts = []
    if peaks.get("bandwidth_bytes_per_s"):
        parts.append(f"{peaks['bandwidth_bytes_per_s'] / 1e9:.1f} GB/s ({peaks['bandwidth_method'].replace('_', ' ')})")
    parts += [f"{rate / 1e12:.3g} TFLOP/s in {dtype}" for dtype, rate in (peaks.get("flops_per_s") or {}).items()]
    return ", ".join(parts) + f", {peaks.get('threads')} threads"


def _traffic(summary: Summary) -> FactTable:
    schedules = list((summary.record.experiment.get("schedules") or {}).values())
    rows: dict[str, Any] = {}
    for schedule in schedules[:1]:
        rows = {
            "pattern": schedule["pattern"],
            "concurrency": schedule.get("concurrency"),
            "requests": f"{schedule['num_requests']:,}"
            + (f" over {units.seconds(schedule['span_s'])}" if schedule["span_s"] else ""),
            "input tokens": f"{schedule['input_tokens']:,}",
            "output tokens": f"{schedule['output_tokens']:,} ({schedule['outputs'].replace('_', ' ')})",
            "classes": ", ".join(schedule.get("classes") or ()),
            "prompts": schedule["realism"].replace("_", " "),
            "schedule sha256": schedule["sha256"],
        }
    rows["rounds"] = summary.record.workload.get("rounds")
    rows["launches"] = summary.record.workload.get("launches")
    return _facts("Traffic", rows)


def _engine(model: ModelSummary) -> FactTable:
    engine, warmup = model.launch.get("engine") or {}, model.launch.get("warmup") or {}
    check = model.launch.get("self_check") or {}
    rows = {
        "source": None if model.facts is None else f"{model.facts.source} ({model.facts.architecture})",
        "ranks": _ranks(model.launch),
        "batching": engine.get("batching"),
        "attention": engine.get("attention"),
        "experts": engine.get("experts") if model.facts is not None and model.facts.is_moe else None,
        "dtype": f"{engine.get('dtype')} ({model.launch.get('dtype_reason')})",
        "KV cache": f"{engine.get('kv_tokens'):,} tokens" if engine.get("kv_tokens") else None,
        "tokens per step": f"at most {engine.get('max_batch_tokens')}",
        "notes": "; ".join(engine.get("notes") or ()),
        "warm-up": f"{warmup.get('num_requests')} requests, {units.seconds(warmup.get('seconds', 0.0))}, "
        + ("settled" if warmup.get("settled") else "not settled"),
        "tap self-check": {True: "passed", False: "FAILED", None: "; ".join(check.get("notes", []))}[
            check.get("passed")
        ],
    }
    return _facts(f"Engine: {model.name}", rows)


def _ranks(launch: Mapping[str, Any]) -> str | None:
    """Of a model that several processes share: how, and what each of them holds at most."""
    ranks = launch.get("ranks") or {}
    if not ranks:
        return None
    largest = ranks.get("memory_largest") or {}
    peak = largest.get("peak_reserved_bytes") or largest.get("host_rss_peak_bytes")
    text = f"{ranks.get('ranks')}, {ranks.get('plan')} parallel ({ranks.get('backend')})"
    return text if peak is None else f"{text}; the fullest holds {units.num_bytes(peak)} at its peak"


def _facts(title: str, rows: dict[str, Any]) -> FactTable:
    return FactTable(
        title=title, rows=tuple((key, str(value)) for key, value in rows.items() if value not in (None, ""))
    )
