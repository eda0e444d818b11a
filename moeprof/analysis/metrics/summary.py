"""Everything measured of a run: records in, metric values out. The only place that knows which metrics exist.

Headline dollars of an open-loop run come from its capacity passes (same requests, offline): below saturation every
model bills the same window, and dollars would compare utilisation. Dollars at this traffic stand beside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from moeprof.analysis.metrics.attribution import Attribution, attribution_metrics, attributions, placebo_metrics
from moeprof.analysis.metrics.breakdown import gap_metrics
from moeprof.analysis.metrics.cost import cost_metrics
from moeprof.analysis.metrics.cost_bill import CostSplit, cost_splits
from moeprof.analysis.metrics.energy import energy_metrics
from moeprof.analysis.metrics.latency import latency_metrics
from moeprof.analysis.metrics.launches import over_launches
from moeprof.analysis.metrics.memory import memory_metrics
from moeprof.analysis.metrics.overhead import overhead_metrics
from moeprof.analysis.metrics.parameters import parameter_metrics
from moeprof.analysis.metrics.quality import quality_metrics, reference_metrics
from moeprof.analysis.metrics.routing.metrics import routing_metrics
from moeprof.analysis.metrics.routing.picks import margin_metrics
from moeprof.analysis.metrics.slo import with_price_at_slo
from moeprof.analysis.metrics.sweep import SweptPoint, swept_points
from moeprof.analysis.metrics.tables import PassTables
from moeprof.analysis.metrics.throughput import throughput_metrics
from moeprof.analysis.metrics.validity import judged
from moeprof.analysis.metrics.variance import variance_metrics
from moeprof.analysis.metrics.work import peaks_of, work_metrics
from moeprof.core.errors import RecordError
from moeprof.core.metric import MetricValue
from moeprof.core.model_facts import ModelFacts
from moeprof.core.pricing import Pricing
from moeprof.core.record.layout import LaunchRecord, ModelRecord, PassRecord, Record
from moeprof.core.record.picks import load_picks
from moeprof.core.record.tables import read_table
from moeprof.core.workload.workload import Slo


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
        sweep: the model at every setting of the workload's sweep, empty without one.
    """

    record: ModelRecord
    facts: ModelFacts | None
    launch: Mapping[str, Any]
    rounds: tuple[PassTables, ...]
    capacity: tuple[PassTables, ...]
    metrics: tuple[MetricValue, ...]
    attributions: tuple[Attribution, ...] = ()
    launch_splits: tuple[tuple[CostSplit, ...], ...] = ()
    sweep: tuple[SweptPoint, ...] = ()

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

    def model(self, name: str) -> ModelSummary:
        """By name."""
        return next(model for model in self.models if model.name == name)


def summarise(record: Record, pricing: Pricing) -> Summary:
    """Compute every metric of a run. The same record and prices give the same values.

    Raises:
        RecordError: a table is damaged.
    """
    peaks = _device_peaks(record)
    slo = Slo(**(record.workload.get("slo") or {}))
    idle = (record.experiment.get("idle_power_w"), _no_idle_power(record.experiment))
    models = tuple(_model(model, pricing, slo, peaks, idle) for model in record.models)
    return Summary(record=record, pricing=pricing, models=_with_placebo(models))


def _model(
    record: ModelRecord, pricing: Pricing, slo: Slo, peaks: Mapping[str, Any], idle: tuple[float | None, str]
) -> ModelSummary:
    if not record.facts:
        return ModelSummary(record=record, facts=None, launch={}, rounds=(), capacity=(), metrics=())
    facts = ModelFacts.from_json(record.facts)
    parts = [_launch(launch, facts, pricing, slo, peaks, idle) for launch in record.launches]
    if not parts:
        values = tuple(parameter_metrics(facts))
        return ModelSummary(record=record, facts=facts, launch={}, rounds=(), capacity=(), metrics=values)
    first = next((part for part in parts if part.rounds), parts[0])
    measured = [part.metrics for part in parts if part.rounds] or [first.metrics]
    sweep = swept_points(record, facts, pricing, peaks)
    own = (*parameter_metrics(facts), *quality_metrics([launch.info for launch in record.launches]))
    together = (*own, *over_launches(measured), *margin_metrics(record.launches), *gap_metrics(first.launch, facts))
    return ModelSummary(
        record=record,
        facts=facts,
        launch=first.launch,
        rounds=tuple(tables for part in parts for tables in part.rounds),
        capacity=tuple(tables for part in parts for tables in part.capacity),
        metrics=with_price_at_slo(together, sweep, slo),
        attributions=first.attributions,
        launch_splits=tuple(part.splits for part in parts if part.splits and part.traffic == first.traffic),
        sweep=sweep,
    )


def _launch(
    record: LaunchRecord,
    facts: ModelFacts,
    pricing: Pricing,
    slo: Slo,
    peaks: Mapping[str, Any],
    idle: tuple[float | None, str],
) -> _Part:
    """Everything that one fresh process tells."""
    info = {**peaks, **record.info}
    rounds, capacity = _tables(record.rounds), _tables(record.capacity)
    calibration, total = _table(record, "calibration"), (info.get("memory") or {}).get("device_total_bytes")
    values: list[MetricValue] = []
    splits: tuple[CostSplit, ...] = ()
    found: tuple[Attribution, ...] = ()
    for passes in (rounds, capacity):
        if passes:
            values += latency_metrics(passes, slo) + throughput_metrics(passes, slo)
            splits = cost_splits(passes, pricing, calibration, facts=facts, peaks=peaks_of(info, facts))
            values += cost_metrics(passes, pricing, facts, splits=splits, device_memory_bytes=total)
            values += energy_metrics(passes, *idle)
            values += work_metrics(info, facts, passes)
            told = attributions(passes)
            values += variance_metrics(passes) + attribution_metrics(passes, told)
            found = max(found, told, key=lambda results: sum(result.num_steps for result in results))
    if rounds:
        picks = next((found for found in (load_picks(r.path) for r in record.rounds) if found is not None), None)
        values += [*routing_metrics(rounds, facts, picks), *memory_metrics(info, facts, rounds)]
    overhead = _table(record, "overhead")
    values += overhead_metrics([] if overhead is None else [overhead])
    values += reference_metrics([found.info for found in record.passes])
    return _Part(info, rounds, capacity, judged(values, record), found, splits)


@dataclass(frozen=True)
class _Part:
    """One launch of a model."""

    launch: Mapping[str, Any]
    rounds: tuple[PassTables, ...]
    capacity: tuple[PassTables, ...]
    metrics: list[MetricValue]
    attributions: tuple[Attribution, ...]
    splits: tuple[CostSplit, ...]

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
    done = []
    for model in models:
        if model.facts is not None and not model.facts.is_moe and model.priced:
            values, _ = placebo_metrics(model.priced, moe.priced)
            model = replace(model, metrics=(*model.metrics, *values))
        done.append(model)
    return tuple(done)


def _tables(passes: tuple[PassRecord, ...]) -> tuple[PassTables, ...]:
    """Passes with at least one step, in order. A pass that never began is left out."""
    return tuple(tables for tables in map(PassTables.from_record, passes) if len(tables.steps))


def _table(launch: LaunchRecord, name: str) -> pd.DataFrame | None:
    table = read_table(launch.path, name)
    return table if len(table) else None


def _no_idle_power(experiment: Mapping[str, Any]) -> str:
    seen = experiment.get("device_at_start") or {}
    return str(seen.get("idle_power_reason") or "no power meter")


def _device_peaks(record: Record) -> dict[str, Any]:
    """Peaks belong to the device: the first launch measures them for all models of the run."""
    for model in record.models:
        for launch in model.launches:
            try:
                if "peaks" in launch.info:
                    return {"peaks": launch.info["peaks"]}
            except RecordError:
                continue  # a launch that died while writing; its own model will say so
    return {}
