"""Facts of a run that decide what may be set against it: plain JSON, so that a saved file holds the same ones.

None says that a fact was not recorded, or has nothing to say: an older record, a model that never loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moeprof.analysis.device_state import lowered_power_limit_w
from moeprof.core.baseline import Baseline
from moeprof.core.record import ModelRecord, Record

ENGINE_SETTINGS = ("prefix_cache", "max_batch_tokens", "max_batch", "kv_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything of a run that :func:`moeprof.analysis.compare.comparable.differences` looks at.

    Attributes:
        run: facts of the run by name.
        models: facts of each model by name, models in the workload's order.
        device_kind: ``cpu``, ``cuda`` or ``unknown``.
    """

    run: Mapping[str, Any]
    models: Mapping[str, Mapping[str, Any]]
    device_kind: str


def facts_of(run: Record | Baseline) -> Facts:
    """Of a record, or as a baseline keeps them."""
    if isinstance(run, Baseline):
        models = {model.name: model.facts for model in run.models}
        return Facts(run=run.facts, models=models, device_kind=run.device_kind)
    return Facts(
        run=run_facts(run),
        models={model.name: model_facts(run, model) for model in run.models},
        device_kind=device_kind(run),
    )


def run_facts(record: Record) -> dict[str, Any]:
    """Facts of the whole run: of machine, settings and record, as JSON types."""
    workload = record.workload
    engine: Mapping[str, Any] = workload.get("engine") or {}
    return {
        "device": device(record),
        "threads": record.environment.get("threads"),
        "versions": _versions(record),
        "outputs": workload.get("outputs"),
        **{name: engine.get(name) for name in ENGINE_SETTINGS},
        "instruments": (workload.get("instruments") or {}).get("routing"),
        "format_version": record.experiment.get("format_version"),
    }


def model_facts(record: Record, model: ModelRecord) -> dict[str, Any]:
    """Facts of one model and of what it was sent, as JSON types.

    ``requests`` is no fact to allow by itself: it tells schedules that differ only by tokenizer (see comparable.py).
    """
    facts, engine = model.facts, _engine(model)
    schedule: Mapping[str, Any] = (record.experiment.get("schedules") or {}).get(model.name) or {}
    sha256 = schedule.get("sha256")
    return {
        "model": _model(facts),
        "revision": facts.get("revision"),
        "dtype": engine.get("dtype") or facts.get("dtype"),
        "backend": _backend(engine),
        "routing_policy": facts.get("routing_policy"),
        "tokenizer": schedule.get("tokenizer_hash"),
        "schedule": None if sha256 is None else f"sha256 {sha256}",
        "requests": [schedule.get(key) for key in ("num_requests", "pattern", "concurrency", "span_s")],
    }


def _backend(engine: Mapping[str, Any]) -> str | None:
    parts = [str(engine[key]) for key in ("attention", "experts", "batching") if engine.get(key)]
    parts += [f"{engine['decode_experts']} in decode"] if engine.get("decode_experts") else []
    parts += ["captured decode steps"] if engine.get("decode") == "graph" else []
    parts += [f"compiled {engine['compiled']}"] if engine.get("compiled") else []
    parts += ["running ahead"] if engine.get("run_ahead") else []
    parts += [f"CPU kernels: {engine['cpu_kernels']}"] if engine.get("cpu_kernels", "off") != "off" else []
    if engine.get("parallel"):
        parts.append(f"{engine['parallel']} parallel on {engine.get('ranks')} ranks")
    return ", ".join(parts) or None


def device(record: Record) -> str:
    """Name and number; on a CPU also what it computes with, on a GPU a power limit below its default."""
    environment = record.environment
    name = environment.get("device_name") or "unknown"
    if device_kind(record) == "cpu":
        flags = " ".join(environment.get("cpu_flags") or ())
        return f"{name}, {environment.get('cpu_cores')} logical" + (f" ({flags})" if flags else "")
    limit_w = lowered_power_limit_w(record.experiment.get("device_at_start") or {})
    limited = "" if limit_w is None else f", limited to {limit_w:.0f} W"
    return f"{environment.get('num_devices', 1)} x {name}{limited}"


def device_kind(record: Record) -> str:
    """``cpu`` or ``cuda``."""
    return str(record.environment.get("device") or "unknown").partition(":")[0]


def plain(value: Any) -> Any:
    """As JSON would give it back: tuples are lists, keys are text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def _versions(record: Record) -> str:
    environment = record.environment
    packages: Mapping[str, Any] = environment.get("packages") or {}
    driver = (environment.get("gpu") or {}).get("driver")
    named = {"moeprof": environment.get("moeprof"), "python": environment.get("python"), **packages, "driver": driver}
    return ", ".join(f"{name} {version}" for name, version in named.items() if version)


def _model(facts: Mapping[str, Any]) -> str | None:
    if not facts:
        return None
    return f"{facts['architecture']} with {facts['total_params']:,} parameters, {facts.get('weights', 'checkpoint')}"


def _engine(model: ModelRecord) -> Mapping[str, Any]:
    return (model.launches[0].info.get("engine") or {}) if model.launches else {}
