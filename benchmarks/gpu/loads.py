"""Every model of a record at every load: speed, latency, cost, energy; from its sweep, else from its rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moeprof.analysis.metrics.cost.bill import CostSplit, cost_split
from moeprof.analysis.metrics.resources.energy import pass_energy
from moeprof.analysis.metrics.resources.work import peaks_of
from moeprof.analysis.metrics.sweep.objectives import meets_slo
from moeprof.analysis.metrics.tables import PassTables, column, is_phase
from moeprof.analysis.stats.arrays import FloatArray
from moeprof.core.errors import RecordError
from moeprof.core.model_facts import ModelFacts
from moeprof.core.pricing import Pricing
from moeprof.core.record.launch import PeaksHeader, with_peaks
from moeprof.core.record.layout import LaunchRecord, ModelRecord, PassRecord, Record, open_record
from moeprof.core.record.tables import read_table
from moeprof.core.workload.workload import Slo


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One model at one load. None where it was not measured.

    Attributes:
        model: its name in the workload.
        concurrency: requests in flight; None for an open loop.
        is_capacity: the offline pass of an open loop, from which its dollars come.
        output_tokens_per_s: output tokens over the whole pass.
        decode_step_s: median of the pure decode steps that held as many requests as were in flight.
        ttft_p50_s, ttft_p90_s, itl_p50_s: of the requests.
        goodput_ratio: share of requests within the SLO, or None without one.
        usd_per_1m_tokens: billed dollars over input and output tokens.
        usd_per_1m_output_tokens: the output's part of the bill.
        energy_j_per_output_token: device energy of the pass over its output tokens.
    """

    model: str
    concurrency: int | None
    is_capacity: bool
    output_tokens_per_s: float | None
    decode_step_s: float | None
    ttft_p50_s: float | None
    ttft_p90_s: float | None
    itl_p50_s: float | None
    goodput_ratio: float | None
    usd_per_1m_tokens: float | None
    usd_per_1m_output_tokens: float | None
    energy_j_per_output_token: float | None


def read_loads(record: Path) -> list[Load]:
    """All loads of all models, by model and load; sweeps first, rounds where a model has none.

    Raises:
        RecordError: no record, or a damaged one.
    """
    opened = open_record(record)
    pricing, peaks = opened.experiment.pricing, _peaks(opened)
    if pricing is None:
        raise RecordError(f"{record}: without pricing")
    return [load for model in opened.models for load in _of_model(model, pricing, opened.slo, peaks)]


def _peaks(record: Record) -> PeaksHeader | None:
    found = (launch.info.peaks for model in record.models for launch in model.launches)
    return next((peaks for peaks in found if peaks is not None), None)


def _of_model(model: ModelRecord, pricing: Pricing, slo: Slo, peaks: PeaksHeader | None) -> list[Load]:
    if model.facts is None:
        return []
    facts, found = model.facts, list[Load]()
    for launch in model.launches:
        passes: Sequence[PassRecord] = launch.sweep or launch.passes
        for one in passes:
            if len(one.steps) and len(one.requests):
                found.append(_load(model.name, one, launch, facts, pricing, slo, peaks))
    return found


def _load(
    name: str, one: PassRecord, launch: LaunchRecord, facts: ModelFacts, pricing: Pricing, slo: Slo,
    peaks: PeaksHeader | None,
) -> Load:  # fmt: skip
    tables, calibration = PassTables.from_record(one), read_table(launch.path, "calibration")
    limits = peaks_of(with_peaks(launch.info, peaks), facts)
    split = cost_split(tables, pricing, calibration if len(calibration) else None, facts=facts, peaks=limits)
    outputs = float(tables.requests["output_tokens"].sum())
    has_slo = any(value is not None for value in (slo.ttft_s, slo.tpot_s, slo.e2e_s))
    concurrency = one.info.sweep.concurrency if one.info.sweep is not None else None
    first = column(tables.requests, "first_token_s") - column(tables.requests, "arrival_s")
    joules = pass_energy(tables).joules
    return Load(
        model=name,
        concurrency=concurrency,
        is_capacity=one.is_capacity,
        output_tokens_per_s=outputs / tables.duration_s if tables.duration_s > 0 else None,
        decode_step_s=_decode_step_s(tables, concurrency),
        ttft_p50_s=_quantile(first, 0.5),
        ttft_p90_s=_quantile(first, 0.9),
        itl_p50_s=_quantile(_gaps(tables), 0.5),
        goodput_ratio=float(meets_slo(tables, slo).mean()) if has_slo else None,
        usd_per_1m_tokens=_per_million(split, split.input_tokens + split.output_tokens),
        usd_per_1m_output_tokens=None if split.usd_per_output_token is None else 1e6 * split.usd_per_output_token,
        energy_j_per_output_token=None if joules is None or not outputs else joules / outputs,
    )


def _decode_step_s(tables: PassTables, concurrency: int | None) -> float | None:
    steps = tables.steps
    mask = is_phase(steps, "decode")
    if concurrency is not None:
        mask = mask & (column(steps, "decode_tokens") == concurrency)
    end = column(steps, "end_s")
    own = np.diff(end, prepend=np.nan)  # from end to end: an engine that runs ahead starts steps early
    return _quantile(own[mask], 0.5)


def _gaps(tables: PassTables) -> FloatArray:
    lists = [np.diff(np.asarray(t, dtype=np.float64)) for t in tables.requests["token_times_s"] if t is not None]
    return np.concatenate(lists) if lists else np.empty(0)


def _quantile(values: FloatArray, share: float) -> float | None:
    known = values[np.isfinite(values)]
    return float(np.quantile(known, share)) if len(known) else None


def _per_million(split: CostSplit, tokens: float) -> float | None:
    return None if tokens <= 0 else 1e6 * split.run_cost_usd / tokens
