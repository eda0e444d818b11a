"""Everything measured of a run: records in, metric values out, as the table of subjects says.

Headline dollars of an open-loop run come from its capacity passes (same requests, offline): below saturation every
model bills the same window, and dollars would compare utilisation. Dollars at this traffic stand beside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, TypeVar, cast

from moeprof.analysis.metrics import SUBJECTS, Scope
from moeprof.analysis.metrics.attribution import Attribution, attributions_of, placebo_metrics
from moeprof.analysis.metrics.context import Context, Subject
from moeprof.analysis.metrics.cost.bill import CostSplit
from moeprof.analysis.metrics.cost.metrics import splits_of
from moeprof.analysis.metrics.launches import over_launches
from moeprof.analysis.metrics.load.interruptions import undisturbed_rounds
from moeprof.analysis.metrics.resources.parameters import parameter_metrics
from moeprof.analysis.metrics.sweep.points import SweptPoint, swept_points
from moeprof.analysis.metrics.sweep.slo import with_price_at_slo
from moeprof.analysis.metrics.tables import PassTables
from moeprof.analysis.metrics.validity import judged
from moeprof.core.errors import RecordError
from moeprof.core.metric import MetricValue
from moeprof.core.model_facts import ModelFacts
from moeprof.core.pricing import Pricing
from moeprof.core.record.experiment import ExperimentHeader, ModelFit, ScheduleHeader
from moeprof.core.record.launch import LaunchHeader, PeaksHeader, with_peaks
from moeprof.core.record.layout import LaunchRecord, ModelRecord, PassRecord, Record
from moeprof.core.workload.workload import Slo

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ModelSummary:
    """One model: its tables, and every metric.

    Attributes:
        record: the model's part of the record.
        facts: what it is, or None when it never loaded.
        launch: launch.json of the first launch (memory, engine, peaks).
        rounds: the workload's own traffic, all launches.
        capacity: offline passes of an open-loop run.
        metrics: every value.
        attributions: step time against routing, per phase, of the traffic with more such steps, for the chart.
        launch_splits: cost split of the passes that headline dollars come from, per launch.
        set_aside: passes that the machine disturbed, which no figure is of, and the share of time that each lost.
        sweep: the model at every setting of the workload's sweep, empty without one.
    """

    record: ModelRecord
    facts: ModelFacts | None
    launch: LaunchHeader
    rounds: tuple[PassTables, ...]
    capacity: tuple[PassTables, ...]
    metrics: tuple[MetricValue, ...]
    attributions: tuple[Attribution, ...] = ()
    launch_splits: tuple[tuple[CostSplit, ...], ...] = ()
    sweep: tuple[SweptPoint, ...] = ()
    set_aside: tuple[tuple[str, float], ...] = ()

    @property
    def splits(self) -> tuple[CostSplit, ...]:
        """Of all launches."""
        return tuple(split for splits in self.launch_splits for split in splits)

    @property
    def name(self) -> str:
        """The workload's name for it."""
        return self.record.name

    @property
    def priced(self) -> tuple[PassTables, ...]:
        """The passes that headline dollars and tokens per second come from."""
        return self.capacity or self.rounds


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A whole run."""

    record: Record
    pricing: Pricing
    models: tuple[ModelSummary, ...]
    _made: dict[Callable[[Summary], Any], Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def once(self, make: Callable[[Summary], T]) -> T:
        """What several pages need and only one should work out: it is the same object on each of them."""
        if make not in self._made:
            self._made[make] = make(self)
        return cast(T, self._made[make])

    def model(self, name: str) -> ModelSummary:
        """By name."""
        return next(model for model in self.models if model.name == name)


def summarise(record: Record, pricing: Pricing) -> Summary:
    """Compute every metric of a run. The same record and prices give the same values.

    Raises:
        RecordError: a table is damaged.
    """
    idle = (record.experiment.idle_power_w, _no_idle_power(record.experiment))
    schedules = record.experiment.schedules
    fits = {} if record.experiment.fit is None else record.experiment.fit.models
    run = _Run(
        pricing=pricing, slo=record.slo, peaks=_device_peaks(record), idle_power=idle, schedules=schedules, fits=fits
    )
    models = tuple(_model(model, run) for model in record.models)
    return Summary(record=record, pricing=pricing, models=_with_placebo(models))


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What all models of a run share."""

    pricing: Pricing
    slo: Slo
    peaks: PeaksHeader | None
    idle_power: tuple[float | None, str]
    schedules: Mapping[str, ScheduleHeader]
    fits: Mapping[str, ModelFit]

    def context(self, facts: ModelFacts, launches: tuple[LaunchRecord, ...], info: LaunchHeader) -> Context:
        """Without passes."""
        return Context(
            facts=facts, pricing=self.pricing, slo=self.slo, idle_power=self.idle_power, launches=launches, info=info,
            fit=self.fits.get(launches[0].path.parent.name) if launches else None,
        )  # fmt: skip


def _model(record: ModelRecord, run: _Run) -> ModelSummary:
    facts = record.facts
    if facts is None:
        return ModelSummary(record=record, facts=None, launch=LaunchHeader(), rounds=(), capacity=(), metrics=())
    parts = [_launch(launch, facts, run) for launch in record.launches]
    if not parts:
        values = tuple(parameter_metrics(facts))
        return ModelSummary(record=record, facts=facts, launch=LaunchHeader(), rounds=(), capacity=(), metrics=values)
    first = next((part for part in parts if part.rounds), parts[0])
    measured = [part.metrics for part in parts if part.rounds] or [first.metrics]
    sweep = swept_points(record, facts, run.pricing, run.peaks, run.schedules.get(record.name))
    metrics = _in_order(over_launches(measured), run.context(facts, record.launches, first.launch))
    return ModelSummary(
        record=record,
        facts=facts,
        launch=first.launch,
        rounds=tuple(tables for part in parts for tables in part.rounds),
        capacity=tuple(tables for part in parts for tables in part.capacity),
        metrics=with_price_at_slo(metrics, sweep, run.slo),
        attributions=first.attributions,
        launch_splits=tuple(part.splits for part in parts if part.splits and part.traffic == first.traffic),
        sweep=sweep,
        set_aside=tuple(one for part in parts for one in part.set_aside),
    )


def _in_order(of_launches: list[MetricValue], context: Context) -> list[MetricValue]:
    """Values of launches, and around them those of the model, as the table of subjects has them."""
    names = [name for name, scope in SUBJECTS.items() if scope is not None]
    num_before = next(number for number, name in enumerate(names) if SUBJECTS[name] != "model")
    before, after = (_computed("model", context, among) for among in (names[:num_before], names[num_before:]))
    return [*before, *of_launches, *after]


def _computed(scope: Scope, context: Context, names: Iterable[str] = SUBJECTS) -> list[MetricValue]:
    """All values of the subjects of this scope."""
    subjects = [cast(Subject, import_module(name)) for name in names if SUBJECTS[name] == scope]
    return [value for subject in subjects for value in subject.compute(context)]


def _launch(record: LaunchRecord, facts: ModelFacts, run: _Run) -> _Part:
    """Everything that one fresh process tells."""
    info = with_peaks(record.info, run.peaks)
    context = run.context(facts, (record,), info)
    read = (_tables(passes, stepped="steps" not in info.lacks) for passes in (record.rounds, record.capacity))
    both = [undisturbed_rounds(passes) for passes in read]
    rounds, capacity = (replace(context, passes=kept) for kept, _ in both)
    measured = [one for one in (rounds, capacity) if one.passes]
    values = [value for one in measured for value in _computed("traffic", one)]
    values += _computed("rounds", rounds) if rounds.passes else []
    values += _computed("launch", context)
    found = (one.once(attributions_of) for one in measured)
    return _Part(
        launch=info,
        rounds=rounds.passes,
        capacity=capacity.passes,
        metrics=judged(values, record),
        attributions=max(found, key=lambda results: sum(result.num_steps for result in results), default=()),
        splits=measured[-1].once(splits_of) if measured else (),
        set_aside=tuple(one for _, aside in both for one in aside),
    )


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One launch of a model."""

    launch: LaunchHeader
    rounds: tuple[PassTables, ...]
    capacity: tuple[PassTables, ...]
    metrics: list[MetricValue]
    attributions: tuple[Attribution, ...]
    splits: tuple[CostSplit, ...]
    set_aside: tuple[tuple[str, float], ...]

    @property
    def traffic(self) -> str | None:
        """Of the passes that dollars come from."""
        main = self.capacity or self.rounds
        return main[0].traffic if main else None


def _with_placebo(models: tuple[ModelSummary, ...]) -> tuple[ModelSummary, ...]:
    """The MoE's routing as an explanation of a dense model's step times, where both ran the same batches."""
    moe = next((m for m in models if m.facts is not None and m.facts.is_moe and m.priced), None)
    if moe is None or moe.priced[0].traffic == "open":
        return models
    dense = {m.name: m.priced for m in models if m.facts is not None and not m.facts.is_moe and m.priced}
    found = placebo_metrics(dense, moe.priced)
    return tuple(replace(model, metrics=(*model.metrics, *found.get(model.name, ()))) for model in models)


def _tables(passes: tuple[PassRecord, ...], *, stepped: bool) -> tuple[PassTables, ...]:
    """Passes with at least one step, or token where an engine steps itself. A pass that never began is left out."""
    found = map(PassTables.from_record, passes)
    return tuple(t for t in found if (len(t.steps) if stepped else t.requests["output_tokens"].sum()) > 0)


def _no_idle_power(experiment: ExperimentHeader) -> str:
    seen = experiment.device_at_start
    return (seen and seen.idle_power_reason) or "no power meter"


def _device_peaks(record: Record) -> PeaksHeader | None:
    """Peaks belong to the device: the first launch measures them for all models of the run."""
    for model in record.models:
        for launch in model.launches:
            try:
                if launch.info.peaks is not None:
                    return launch.info.peaks
            except RecordError:
                continue  # a launch that died while writing; its own model will say so
    return None
