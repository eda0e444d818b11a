"""Everything measured of a run: records in, metric values out. The only place that knows which metrics exist.

Headline dollars of an open-loop run come from its capacity passes (same requests, offline): below saturation every
model bills the same window, and dollars would compare utilisation. Dollars at this traffic stand beside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from moeprof.analysis.cost import CostSplit, cost_metrics, cost_splits
from moeprof.analysis.metrics.attribution import Attribution, attribution_metrics, attributions, placebo_metrics
from moeprof.analysis.metrics.energy import energy_metrics
from moeprof.analysis.metrics.latency import latency_metrics
from moeprof.analysis.metrics.memory import memory_metrics
from moeprof.analysis.metrics.overhead import overhead_metrics
from moeprof.analysis.metrics.parameters import parameter_metrics
from moeprof.analysis.metrics.routing import routing_metrics
from moeprof.analysis.metrics.throughput import throughput_metrics
from moeprof.analysis.metrics.variance import variance_metrics
from moeprof.analysis.metrics.work import limits_of, work_metrics
from moeprof.analysis.pricing import Pricing
from moeprof.analysis.tables import PassTables
from moeprof.core.errors import RecordError
from moeprof.core.metric import MetricValue
from moeprof.core.modelfacts import ModelFacts
from moeprof.core.record import LaunchRecord, ModelRecord, PassRecord, Record, read_table
from moeprof.core.workload import Slo


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
        attributions: step time against routing, per phase, for the chart.
        splits: cost split of the passes that headline dollars come from, for the chart.
    """

    record: ModelRecord
    facts: ModelFacts | None
    launch: Mapping[str, Any]
    rounds: tuple[PassTables, ...]
    capacity: tuple[PassTables, ...]
    metrics: tuple[MetricValue, ...]
    attributions: tuple[Attribution, ...] = ()
    splits: tuple[CostSplit, ...] = ()

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
    placebo: tuple[MetricValue, ...] = field(default_factory=tuple)

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
    idle_power_w = record.experiment.get("idle_power_w")
    models = tuple(_model(model, pricing, slo, peaks, idle_power_w) for model in record.models)
    return Summary(record=record, pricing=pricing, models=_with_placebo(models))


def _model(
    record: ModelRecord, pricing: Pricing, slo: Slo, peaks: Mapping[str, Any], idle_power_w: float | None
) -> ModelSummary:
    if not record.facts:
        return ModelSummary(record=record, facts=None, launch={}, rounds=(), capacity=(), metrics=())
    facts = ModelFacts.from_json(record.facts)
    launch = {**peaks, **(record.launches[0].info if record.launches else {})}
    rounds = _tables(record, lambda launch: launch.rounds)
    capacity = _tables(record, lambda launch: launch.capacity)
    found = attributions(capacity or rounds)
    calibration, limits = _calibration(record), _limits(launch, facts)
    splits: tuple[CostSplit, ...] = ()
    values = [*parameter_metrics(facts)]
    for passes in (rounds, capacity):
        if passes:
            values += latency_metrics(passes, slo if passes is rounds else None)
            values += throughput_metrics(passes, slo if passes is rounds else None)
            splits = cost_splits(passes, pricing, calibration, facts=facts, peaks=limits)
            values += cost_metrics(passes, pricing, facts, splits=splits, device_memory_bytes=_memory_total(launch))
            values += energy_metrics(passes, idle_power_w)
            values += work_metrics(launch, facts, passes)
    main = capacity or rounds
    if main:
        values += variance_metrics(main)
        values += attribution_metrics(main, found)
    if rounds:
        values += routing_metrics(rounds, facts)
        values += memory_metrics(launch, facts, rounds)
    values += overhead_metrics(_overhead_tables(record))
    return ModelSummary(
        record=record,
        facts=facts,
        launch=launch,
        rounds=rounds,
        capacity=capacity,
        metrics=tuple(values),
        attributions=found,
        splits=splits,
    )


def _limits(launch: Mapping[str, Any], facts: ModelFacts) -> tuple[float, float] | None:
    """Measured bandwidth and matrix rate, for splitting mixed steps by the roofline where nothing better is known."""
    limits = limits_of(launch, facts)
    if limits.bandwidth_bytes_per_s is None or limits.flops_per_s is None:
        return None
    return limits.bandwidth_bytes_per_s, limits.flops_per_s


def _memory_total(launch: Mapping[str, Any]) -> int | None:
    total = (launch.get("memory") or {}).get("device_total_bytes")
    return None if total is None else int(total)


def _with_placebo(models: tuple[ModelSummary, ...]) -> tuple[ModelSummary, ...]:
    """The MoE's routing as an explanation of a dense model's step times, where both ran the same batches."""
    from dataclasses import replace

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


def _tables(record: ModelRecord, passes: Callable[[LaunchRecord], tuple[PassRecord, ...]]) -> tuple[PassTables, ...]:
    """Passes with at least one step, of all launches, in order. A pass that never began is left out."""
    found = [PassTables.from_record(p) for launch in record.launches for p in passes(launch)]
    return tuple(tables for tables in found if len(tables.steps))


def _calibration(record: ModelRecord) -> pd.DataFrame | None:
    tables = [read_table(launch.path, "calibration") for launch in record.launches]
    tables = [table for table in tables if len(table)]
    return pd.concat(tables, ignore_index=True) if tables else None


def _overhead_tables(record: ModelRecord) -> tuple[pd.DataFrame, ...]:
    tables = [read_table(launch.path, "overhead") for launch in record.launches]
    return tuple(table for table in tables if len(table))


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
