"""Which facts differ between two runs, and which figures may therefore not be set against each other.

Comparability is per metric (METRICS section 9): a run on another machine still counts the same parameters. Facts that
are only worth knowing (library versions, the price) forbid nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from moeprof.analysis.compare.metric_classes import MetricClass
from moeprof.analysis.pricing import Pricing
from moeprof.core.errors import InputError, RecordError
from moeprof.core.record import ModelRecord, Record

ALL: frozenset[MetricClass] = frozenset({"exact", "routing", "quality", "timed"})
MEASURED: frozenset[MetricClass] = frozenset({"routing", "quality", "timed"})
TIMED: frozenset[MetricClass] = frozenset({"timed"})
PER_TOKEN: frozenset[MetricClass] = frozenset({"routing", "tokens"})
NOTHING: frozenset[MetricClass] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A fact that is not the same in two runs.

    Attributes:
        name: of the fact: one of FACTS.
        first, second: what each run says, as text.
        forbids: classes of metrics that may not be compared because of it; empty for what is only worth knowing.
        model: the model that it is about, or None for the whole run.
    """

    name: str
    first: str
    second: str
    forbids: frozenset[MetricClass]
    model: str | None = None

    @property
    def flag_to_allow(self) -> str | None:
        """What to add to the command to compare nevertheless; None where nothing is forbidden."""
        return f"--allow {self.name}" if self.forbids else None

    @property
    def text(self) -> str:
        """One line for people."""
        whose = f" of {self.model}" if self.model else ""
        return f"{self.name.replace('_', ' ')}{whose}: {self.first} against {self.second}"


def differences(first: Record, second: Record) -> tuple[Difference, ...]:
    """Every fact that differs, facts of the run before those of each model that both hold."""
    found = [
        Difference(name=name, first=_said(read(first)), second=_said(read(second)), forbids=forbids)
        for name, (read, forbids) in RUN_FACTS.items()
        if read(first) != read(second)
    ]
    if device_kind(first) != device_kind(second):  # then kernels differ too, and with them where tokens go
        found = [
            replace(difference, forbids=MEASURED) if difference.name == "device" else difference for difference in found
        ]
    models = {model.name: model for model in second.models}
    both = [(model, models[model.name]) for model in first.models if model.name in models]
    of_models = [difference for one, other in both for difference in _of_model(first, second, one, other)]
    return (*found, *_merged(of_models, len(both)))


def price_difference(first: Pricing, second: Pricing) -> Difference | None:
    """What an hour costs, where the two runs are billed at different prices; forbids nothing, but must be said."""
    prices = [f"{3600 * pricing.usd_per_second:.4g} USD/h" for pricing in (first, second)]
    if first.usd_per_second == second.usd_per_second:
        return None
    return Difference(name="price", first=prices[0], second=prices[1], forbids=NOTHING)


def forbidden_by(
    found: Iterable[Difference], classes: Collection[MetricClass], *, model: str, allow: Collection[str] = ()
) -> tuple[Difference, ...]:
    """The differences that stand between two values of a metric with these classes."""
    return tuple(
        difference
        for difference in found
        if difference.forbids & frozenset(classes)
        and difference.name not in allow
        and difference.model in (None, model)
    )


def check_allow(names: Iterable[str]) -> frozenset[str]:
    """The facts that the user allows to differ.

    Raises:
        InputError: no such fact.
    """
    asked = frozenset(name.strip() for name in names if name.strip())
    unknown = sorted(asked - set(FACTS))
    if unknown:
        raise InputError(f"--allow: {unknown[0]!r} is no fact of a run; allowed: {', '.join(FACTS)}")
    return asked


def refuse(found: Iterable[Difference], allow: Collection[str] = ()) -> None:
    """Refuse runs whose timings may not be compared.

    Raises:
        RecordError: facts differ that were not allowed to; the message names each, and the flag.
    """
    against = [difference for difference in found if "timed" in difference.forbids and difference.name not in allow]
    if against:
        flags = ",".join(sorted({difference.name for difference in against} | set(allow)))
        said = "; ".join(difference.text for difference in against)
        raise RecordError(f"the runs are not comparable: {said}; to compare them nevertheless add --allow {flags}")


def banners(found: Iterable[Difference], allow: Collection[str] = ()) -> tuple[str, ...]:
    """What must stand above everything when a difference was allowed, or forbids nothing but must be known."""
    said = []
    for difference in found:
        if not difference.forbids:
            said.append(f"Note: {difference.text}.")
        elif difference.name in allow:
            said.append(f"Compared although the runs differ in {difference.text}.")
    return tuple(said)


def _of_model(first: Record, second: Record, one: ModelRecord, other: ModelRecord) -> list[Difference]:
    found = []
    for name, (read, forbids) in MODEL_FACTS.items():
        said = read(first, one), read(second, other)
        if None not in said and said[0] != said[1] and not (name == "schedule" and _same_requests(first, second, one)):
            found.append(
                Difference(name=name, first=_said(said[0]), second=_said(said[1]), forbids=forbids, model=one.name)
            )
    return found


def _merged(found: list[Difference], num_models: int) -> list[Difference]:
    """What differs alike for every model of several becomes one difference of the run."""
    groups: dict[tuple[str, str, str], list[Difference]] = {}
    for difference in found:
        groups.setdefault((difference.name, difference.first, difference.second), []).append(difference)
    merged: list[Difference] = []
    for group in groups.values():
        merged += [replace(group[0], model=None)] if len(group) == num_models > 1 else group
    return merged


def _said(value: Any) -> str:
    return "not recorded" if value in (None, "") else str(value)


# -- facts of a run ----------------------------------------------------------------------------------------------------


def _device(record: Record) -> str:
    """Kind, name and number; on a CPU also what it computes with."""
    environment = record.environment
    name, kind = environment.get("device_name") or "unknown", device_kind(record)
    if kind == "cpu":
        flags = " ".join(environment.get("cpu_flags") or ())
        return f"{name}, {environment.get('cpu_cores')} logical" + (f" ({flags})" if flags else "")
    return f"{environment.get('num_devices', 1)} x {name}"


def device_kind(record: Record) -> str:
    """``cpu`` or ``cuda``."""
    return str(record.environment.get("device") or "unknown").partition(":")[0]


def _versions(record: Record) -> str:
    environment = record.environment
    packages: Mapping[str, Any] = environment.get("packages") or {}
    driver = (environment.get("gpu") or {}).get("driver")
    named = {"moeprof": environment.get("moeprof"), "python": environment.get("python"), **packages, "driver": driver}
    return ", ".join(f"{name} {version}" for name, version in named.items() if version)


def _engine_setting(name: str) -> Callable[[Record], Any]:
    return lambda record: (record.workload.get("engine") or {}).get(name)


RUN_FACTS: dict[str, tuple[Callable[[Record], Any], frozenset[MetricClass]]] = {
    "device": (_device, TIMED),
    "threads": (lambda record: record.environment.get("threads"), TIMED),
    "versions": (_versions, NOTHING),
    "outputs": (lambda record: record.workload.get("outputs"), MEASURED),
    "prefix_cache": (_engine_setting("prefix_cache"), MEASURED),
    "max_batch_tokens": (_engine_setting("max_batch_tokens"), MEASURED),
    "max_batch": (_engine_setting("max_batch"), MEASURED),
    "kv_tokens": (_engine_setting("kv_tokens"), MEASURED),
    "instruments": (lambda record: (record.workload.get("instruments") or {}).get("routing"), TIMED),
}


# -- facts of a model --------------------------------------------------------------------------------------------------


def _fact(name: str) -> Callable[[Record, ModelRecord], Any]:
    return lambda record, model: model.facts.get(name)


def _model(record: Record, model: ModelRecord) -> str | None:
    facts = model.facts
    if not facts:
        return None
    return f"{facts['architecture']} with {facts['total_params']:,} parameters, {facts.get('weights', 'checkpoint')}"


def _engine(record: Record, model: ModelRecord) -> Mapping[str, Any]:
    return (model.launches[0].info.get("engine") or {}) if model.launches else {}


def _backend(record: Record, model: ModelRecord) -> str | None:
    engine = _engine(record, model)
    parts = [str(engine[key]) for key in ("attention", "experts", "batching") if engine.get(key)]
    return ", ".join(parts) or None


def _schedule(record: Record, model: ModelRecord, key: str) -> Any:
    return ((record.experiment.get("schedules") or {}).get(model.name) or {}).get(key)


def _requests(record: Record, model_name: str) -> tuple[Any, ...]:
    """What a schedule asks for, whatever the tokenizer."""
    schedule = (record.experiment.get("schedules") or {}).get(model_name) or {}
    return tuple(schedule.get(key) for key in ("num_requests", "pattern", "concurrency", "span_s"))


def _same_requests(first: Record, second: Record, model: ModelRecord) -> bool:
    """Under different tokenizers the same requests have other ids, and so another hash."""
    hashes = {_schedule(record, model, "tokenizer_hash") for record in (first, second)}
    return len(hashes) > 1 and _requests(first, model.name) == _requests(second, model.name)


def _sha256(record: Record, model: ModelRecord) -> str | None:
    sha256 = _schedule(record, model, "sha256")
    return None if sha256 is None else f"sha256 {str(sha256)[:12]}"


MODEL_FACTS: dict[str, tuple[Callable[[Record, ModelRecord], Any], frozenset[MetricClass]]] = {
    "model": (_model, ALL),
    "dtype": (lambda record, model: _engine(record, model).get("dtype") or model.facts.get("dtype"), MEASURED),
    "backend": (_backend, MEASURED),
    "routing_policy": (_fact("routing_policy"), MEASURED),
    "tokenizer": (lambda record, model: _schedule(record, model, "tokenizer_hash"), PER_TOKEN),
    "schedule": (_sha256, MEASURED),
}
FACTS: tuple[str, ...] = (*RUN_FACTS, *MODEL_FACTS)
