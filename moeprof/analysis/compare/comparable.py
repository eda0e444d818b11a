"""Which facts differ between two runs, and which figures may therefore not be set against each other.

Comparability is per metric: a run on another machine still counts the same parameters. Facts that
are only worth knowing (library versions, the price) forbid nothing.

Facts of a run that decide what may be set against it: plain JSON, so that a saved file holds the same ones.

None says that a fact was not recorded, or has nothing to say: an older record, a model that never loaded.

What a metric needs of two runs before they may be set against each other is the kind of its card.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from moeprof.analysis.metrics.cards import card_for
from moeprof.analysis.metrics.resources.device_state import lowered_power_limit_w
from moeprof.analysis.metrics.summary import ModelSummary
from moeprof.analysis.metrics.tables import is_done
from moeprof.core.baseline.baseline import Baseline
from moeprof.core.errors import InputError, RecordError
from moeprof.core.metric import MetricClass
from moeprof.core.model_facts import ModelFacts
from moeprof.core.record.experiment import DeviceHeader
from moeprof.core.record.launch import EngineHeader
from moeprof.core.record.layout import ModelRecord, Record

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
    return {
        "device": device(record),
        "threads": record.environment.threads,
        "versions": _versions(record),
        "outputs": workload.outputs,
        **{name: workload.engine.get(name) for name in ENGINE_SETTINGS},
        "instruments": workload.instruments.routing,
        "format_version": record.version,
    }


def model_facts(record: Record, model: ModelRecord) -> dict[str, Any]:
    """Facts of one model and of what it was sent, as JSON types.

    ``requests`` is no fact to allow by itself: it tells schedules that differ only by tokenizer (see comparable.py).
    """
    facts, schedule = model.facts, record.schedule(model.name)
    engine = model.launches[0].info.engine if model.launches else EngineHeader()
    return {
        "model": _model(facts),
        "revision": facts and facts.revision,
        "dtype": engine.dtype or (facts and facts.dtype),
        "backend": _backend(engine),
        "routing_policy": facts and facts.routing_policy,
        "tokenizer": schedule.tokenizer_hash,
        "schedule": schedule.sha256 and f"sha256 {schedule.sha256}",
        "requests": [schedule.num_requests, schedule.pattern, schedule.concurrency, schedule.span_s],
    }


def _backend(engine: EngineHeader) -> str | None:
    parts = [part for part in (engine.attention, engine.experts, engine.batching) if part]
    parts += [f"{engine.decode_experts} in decode"] if engine.decode_experts else []
    parts += ["captured decode steps"] if engine.decode == "graph" else []
    parts += [f"compiled {engine.compiled}"] if engine.compiled else []
    parts += ["running ahead"] if engine.run_ahead else []
    parts += [f"CPU kernels: {engine.cpu_kernels}"] if engine.cpu_kernels != "off" else []
    if engine.parallel:
        parts.append(f"{engine.parallel} parallel on {engine.ranks} ranks")
    return ", ".join(parts) or None


def device(record: Record) -> str:
    """Name and number; on a CPU also what it computes with, on a GPU a power limit below its default."""
    environment = record.environment
    name = environment.device_name or "unknown"
    if device_kind(record) == "cpu":
        flags = " ".join(environment.cpu_flags)
        return f"{name}, {environment.cpu_cores} logical" + (f" ({flags})" if flags else "")
    limit_w = lowered_power_limit_w(record.experiment.device_at_start or DeviceHeader())
    limited = "" if limit_w is None else f", limited to {limit_w:.0f} W"
    return f"{environment.num_devices} x {name}{limited}"


def device_kind(record: Record) -> str:
    """``cpu`` or ``cuda``."""
    return (record.environment.device or "unknown").partition(":")[0]


def plain(value: Any) -> Any:
    """As JSON would give it back: tuples are lists, keys are text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def _versions(record: Record) -> str:
    environment = record.environment
    driver = environment.gpu and environment.gpu.driver
    packages = {**environment.packages, "driver": driver}
    named = {"moeprof": environment.moeprof, "python": environment.python, **packages}
    return ", ".join(f"{name} {version}" for name, version in named.items() if version)


def _model(facts: ModelFacts | None) -> str | None:
    if facts is None:
        return None
    return f"{facts.architecture} with {facts.total_params:,} parameters, {facts.weights}"


def classes_of(name: str) -> frozenset[MetricClass]:
    """The classes of a metric, by its full name.

    Raises:
        KeyError: no card has this name.
    """
    return card_for(name).classes


ALL: frozenset[MetricClass] = frozenset({"exact", "routing", "quality", "timed"})
MEASURED: frozenset[MetricClass] = frozenset({"routing", "quality", "timed"})
TIMED: frozenset[MetricClass] = frozenset({"timed"})
PER_TOKEN: frozenset[MetricClass] = frozenset({"routing", "tokens"})
NOTHING: frozenset[MetricClass] = frozenset()

# fact -> what it forbids where it differs
RUN_FACTS: dict[str, frozenset[MetricClass]] = {
    "device": TIMED,
    "threads": TIMED,
    "versions": NOTHING,
    "outputs": MEASURED,
    "prefix_cache": MEASURED,
    "max_batch_tokens": MEASURED,
    "max_batch": MEASURED,
    "kv_tokens": MEASURED,
    "instruments": TIMED,
    "format_version": MEASURED,  # figures are made anew from what is recorded, and that was another thing
}
MODEL_FACTS: dict[str, frozenset[MetricClass]] = {
    "model": ALL,
    "revision": MEASURED,
    "dtype": MEASURED,
    "backend": MEASURED,
    "routing_policy": MEASURED,
    "tokenizer": PER_TOKEN,
    "schedule": MEASURED,
}
# `workload`: a check may judge a run of another workload. `models`: it may do without a model that the new run lacks.
# `metrics`: it may do without a baseline's figures that this version does not know.
FACTS: tuple[str, ...] = ("workload", *RUN_FACTS, *MODEL_FACTS, "models", "metrics")
_LONG_HASH = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{20,}\b")


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
        """What to add to the command to compare nevertheless; None where nothing is forbidden, or nothing allows it."""
        return f"--allow {self.name}" if self.forbids and self.name in FACTS else None

    @property
    def text(self) -> str:
        """One line for people."""
        whose = f" of {self.model}" if self.model else ""
        return f"{self.name.replace('_', ' ')}{whose}: {self.first} against {self.second}"


def differences(first: Facts, second: Facts) -> tuple[Difference, ...]:
    """Every fact that differs, facts of the run before those of each model that both hold.

    A fact of the run that a side does not know at all (a file of before the fact existed) is no difference; neither is
    a fact of a model that a side did not record.
    """
    found = [
        Difference(name=name, first=fact_text(first.run[name]), second=fact_text(second.run[name]), forbids=forbids)
        for name, forbids in RUN_FACTS.items()
        if name in first.run and name in second.run and plain(first.run[name]) != plain(second.run[name])
    ]
    if first.device_kind != second.device_kind:  # then kernels differ too, and with them where tokens go
        found = [
            replace(difference, forbids=MEASURED) if difference.name == "device" else difference for difference in found
        ]
    both = [name for name in first.models if name in second.models]
    of_models = [one for name in both for one in _of_model(name, first.models[name], second.models[name])]
    return (*found, *_merged(of_models, len(both)))


def workload_difference(first: Baseline, second: Baseline, found: Iterable[Difference]) -> Difference | None:
    """The workload as a fact, where the names differ and so does what they send or which model they send it to.

    A workload that only got another name is the same one. It forbids what depends on the schedule; what is counted of a
    model needs the same model only.
    """
    if not first.workload or not second.workload or first.workload == second.workload:
        return None
    if not any(one.name in ("model", "schedule") for one in found):
        return None
    return Difference(name="workload", first=first.workload, second=second.workload, forbids=MEASURED)


class Priced(Protocol):
    """A pricing, or a baseline."""

    @property
    def usd_per_second(self) -> float:
        """What the machine costs."""


def price_difference(first: Priced, second: Priced) -> Difference | None:
    """What an hour costs, where the two runs are billed at different prices; forbids nothing, but must be said."""
    prices = [f"{3600 * priced.usd_per_second:.4g} USD/h" for priced in (first, second)]
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


def _of_model(model: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> list[Difference]:
    found = []
    for name, forbids in MODEL_FACTS.items():
        facts = plain(one.get(name)), plain(other.get(name))
        if None not in facts and facts[0] != facts[1] and not (name == "schedule" and _same_requests(one, other)):
            found.append(
                Difference(
                    name=name, first=fact_text(facts[0]), second=fact_text(facts[1]), forbids=forbids, model=model
                )
            )
    return found


def _same_requests(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Under different tokenizers the same requests have other ids, and so another hash."""
    requests = [plain(facts.get("requests")) for facts in (one, other)]
    return one.get("tokenizer") != other.get("tokenizer") and requests[0] == requests[1]


def _merged(found: list[Difference], num_models: int) -> list[Difference]:
    """What differs alike for every model of several becomes one difference of the run."""
    groups: dict[tuple[str, str, str], list[Difference]] = {}
    for difference in found:
        groups.setdefault((difference.name, difference.first, difference.second), []).append(difference)
    merged: list[Difference] = []
    for group in groups.values():
        merged += [replace(group[0], model=None)] if len(group) == num_models > 1 else group
    return merged


def fact_text(value: Any) -> str:
    """A fact for people: long hashes are cut to twelve digits."""
    return "not recorded" if value in (None, "") else _LONG_HASH.sub(r"\1", str(value))


def why_incomparable(first: ModelSummary, second: ModelSummary) -> str | None:
    """Why dollars of two models must not be set against each other, or None (docs/metrics.md#busy-and-billed)."""
    if "failed" in (first.record.status, second.record.status):
        return "one of them failed"
    traffics = {tables.traffic for model in (first, second) for tables in model.priced}
    if len(traffics) != 1:
        return "their dollars come from different traffic"
    if "open" in traffics:
        return "open-loop dollars compare utilisation, not models"
    tokens = [{int(tables.requests["output_tokens"].sum()) for tables in model.priced} for model in (first, second)]
    done = [{int(is_done(tables.requests).sum()) for tables in model.priced} for model in (first, second)]
    if tokens[0] != tokens[1] or done[0] != done[1] or len(done[0]) != 1:
        return "they did not do the same work"
    return None
