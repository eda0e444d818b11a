"""Figures of the targets, read from records and from the JSON files of the probes.

A decode figure takes the pure decode steps of a sweep's point that held exactly the batch in question, a prefill figure
the pure prefill steps with that many whole prompts. Both are sums over sums, with 95 % intervals over blocks of
consecutive steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.goals import DECODE_BATCHES, LONG_TOKENS, MODELS, PREFILL_BATCHES, SHORT_TOKENS, Figure
from moeprof.analysis.metrics.resources.work import Limits, StepWork, limits_of, step_work
from moeprof.analysis.metrics.tables import BoolArray, PassTables, column
from moeprof.analysis.stats import intervals
from moeprof.analysis.stats.arrays import FloatArray
from moeprof.core.errors import MoeprofError
from moeprof.core.model_facts import ModelFacts
from moeprof.core.record.launch import EngineHeader
from moeprof.core.record.layout import LaunchRecord, PassRecord, open_record

LEAST_STEPS = 3
OVERHEAD = ("overhead", "save-detailed")


def roofline_figures(model: str, record: Path) -> list[Figure]:
    """All decode, prefill and loading figures of one roofline record; a broken record gives the reason to each."""
    keys = [f"decode-over-roofline/{model}/{batch}" for batch in DECODE_BATCHES]
    keys += [f"prefill-of-matmul/{model}/{batch}" for batch in PREFILL_BATCHES]
    source = record.name
    try:
        opened = open_record(record)
        found = opened.models[0]
        if not found.launches or not found.facts:
            reason = found.error or "the run left nothing of this model"
            return [Figure(key=key, reason=reason, source=source) for key in (*keys, f"load-peak/{model}")]
        launch, facts = found.launches[0], found.facts
        figures = [_load_peak(model, launch, facts, source)]
        points = _by_point(launch)
        for batch in DECODE_BATCHES:
            figures.append(_decode(f"decode-over-roofline/{model}/{batch}", points, batch, launch, facts, source))
        for batch in PREFILL_BATCHES:
            figures.append(_prefill(f"prefill-of-matmul/{model}/{batch}", points, batch, launch, facts, source))
    except (MoeprofError, OSError, KeyError, ValueError, IndexError) as error:
        return [Figure(key=key, reason=f"record {source} cannot be read: {error}", source=source) for key in keys]
    return figures


def record_figures(root: Path) -> list[Figure]:
    """Figures of every roofline record under ``root``; folders are called ``roofline-<model>`` or with ``-<card>``."""
    figures: list[Figure] = []
    for model in MODELS:
        for file in sorted(root.glob(f"roofline-{model}*/experiment.json")):
            figures += roofline_figures(model, file.parent)
    return figures


def probe_figures(probe: Mapping[str, Any]) -> list[Figure]:
    """What a probe wrote under ``figures``."""
    return [Figure.from_json(value) for value in probe.get("figures", [])]


Points = dict[tuple[int | None, int | None], PassTables]


def _by_point(launch: LaunchRecord) -> Points:
    return {(point.concurrency, point.input_tokens): tables for point, tables in _swept(launch.sweep)}


def _swept(passes: tuple[PassRecord, ...]) -> Iterator[tuple[Any, PassTables]]:
    for one in passes:
        if one.info.sweep is not None and len(one.steps):
            yield one.info.sweep, PassTables.from_record(one)


def _decode(key: str, points: Points, batch: int, launch: LaunchRecord, facts: ModelFacts, source: str) -> Figure:
    tables = points.get((batch, SHORT_TOKENS)) or _shortest(points, batch)
    if tables is None:
        return Figure(key=key, reason=f"no pass with {batch} requests in flight", source=source)
    # Each distinct expert counts once whatever the kernel fetched: the floor is not lowered by a wasteful one.
    work = step_work(tables, facts, EngineHeader())
    if isinstance(work, str):
        return Figure(key=key, reason=work, source=source)
    limits = limits_of(launch.info, facts)
    if limits.bandwidth_bytes_per_s is None:
        return Figure(key=key, reason=limits.bandwidth_reason, source=source)
    floor = work.bytes_S / limits.bandwidth_bytes_per_s
    mask = work.phase_mask(tables, "decode") & (work.tokens_S == batch)
    if (cached := limits.cached(work.bytes_S[mask])) is not None:
        return Figure(key=key, reason=cached, source=source)
    return _ratio(key, _own_s(tables, work)[mask], floor[mask], f"no decode step held {batch} requests", source)


def _own_s(tables: PassTables, work: StepWork) -> FloatArray:
    """Seconds that no other step is charged with: an engine that runs ahead starts a step before the last one ends."""
    start, end = column(tables.steps, "start_s"), column(tables.steps, "end_s")
    before = np.concatenate([[-np.inf], np.maximum.accumulate(end)[:-1]])
    own: FloatArray = (end - np.maximum(start, before))[work.kept_S]
    return own


def _shortest(points: Points, batch: int) -> PassTables | None:
    """A record with other lengths (a tiny one): the shortest prompts at that load."""
    loads = [(tokens or 0, tables) for (concurrency, tokens), tables in points.items() if concurrency == batch]
    return min(loads, key=lambda pair: pair[0])[1] if loads else None


def _prefill(key: str, points: Points, batch: int, launch: LaunchRecord, facts: ModelFacts, source: str) -> Figure:
    tables = points.get((batch, LONG_TOKENS))
    if tables is None:
        return Figure(key=key, reason=f"no pass with {_prompts(batch)} at once", source=source)
    work = step_work(tables, facts, launch.info.engine)
    if isinstance(work, str):
        return Figure(key=key, reason=work, source=source)
    limits: Limits = limits_of(launch.info, facts)
    if limits.flops_per_s is None:
        return Figure(key=key, reason=limits.flops_reason, source=source)
    mask = _whole_prompts(tables, work, batch)
    if not mask.any():
        return Figure(key=key, reason=f"no step held {_prompts(batch)} whole and nothing else", source=source)
    least_s = work.flops_S / limits.flops_per_s
    return _ratio(key, least_s[mask], _own_s(tables, work)[mask], "", source)


def _prompts(batch: int) -> str:
    return f"{batch} prompt{'s' * (batch > 1)} of {LONG_TOKENS:,} tokens"


def _whole_prompts(tables: PassTables, work: StepWork, batch: int) -> BoolArray:
    prompts = column(tables.steps, "num_prefill_requests")[work.kept_S] == batch
    tokens = work.tokens_S == batch * LONG_TOKENS
    found: BoolArray = work.phase_mask(tables, "prefill") & prompts & tokens
    return found


def _ratio(key: str, above_S: FloatArray, below_S: FloatArray, none: str, source: str) -> Figure:
    """Sum over sum; the interval resamples blocks of consecutive steps, weighted by the lower sum."""
    if len(above_S) == 0:
        return Figure(key=key, reason=none, source=source)
    value, num = float(above_S.sum() / below_S.sum()), len(above_S)
    if num < LEAST_STEPS:
        return Figure(key=key, value=value, n=num, reason=f"{num} steps only", source=source)
    sample = intervals.BlockSample(values=above_S / below_S, weights=below_S, blocks=intervals.blocks_of(num))
    low, high = intervals.bootstrap_mean(sample) or (None, None)
    return Figure(key=key, value=value, low=low, high=high, n=num, source=source)


def _load_peak(model: str, launch: LaunchRecord, facts: ModelFacts, source: str) -> Figure:
    key, memory = f"load-peak/{model}", launch.info.memory
    if memory.kind != "device":
        return Figure(key=key, reason="the host's memory holds more than the model", source=source)
    peak, weights = memory.load_peak_bytes, sum(facts.bytes_by_group.values())
    if not peak or not weights:
        return Figure(key=key, reason="the peak while loading was not recorded", source=source)
    return Figure(key=key, value=float(np.float64(peak) / weights), n=1, source=source)
