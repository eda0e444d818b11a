"""Charts of the report, as data. Renderers draw; nothing here knows how."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from moeprof.analysis import report_gap
from moeprof.analysis.document import Block, Chart, HeatMap, HeatMapVariant, Series, StackedBars
from moeprof.analysis.metrics.routing_shift_values import LoadShares, load_shares
from moeprof.analysis.metrics.samples import itl_samples, span_samples
from moeprof.analysis.pick import pick
from moeprof.analysis.report_timeline import device_timelines
from moeprof.analysis.summary import ModelSummary, Summary
from moeprof.analysis.tables import FloatArray, column
from moeprof.core.modelfacts import GROUPS

CDF_POINTS = 400
TIMELINE_BINS = 60


def for_section(name: str, summary: Summary) -> list[Block]:
    """The charts that belong to a section; empty when there is nothing to draw."""
    return [block for build in BUILDERS.get(name, ()) for block in build(summary)]


def _latency_cdfs(summary: Summary) -> list[Block]:
    quantities = (
        ("ttft", "Time to first token", "from the scheduled arrival"),
        ("itl", "Gaps between tokens", "inter-token latency"),
    )
    charts: list[Block] = []
    for quantity, title, caption in quantities:
        series = tuple(s for model in summary.models if (s := _cdf(model, quantity)) is not None)
        if series:
            charts.append(
                Chart(
                    name=f"cdf-{quantity}",
                    title=title,
                    caption=f"Share of samples at or below a time, {caption}; all rounds of the own traffic.",
                    x_label=quantity.upper(),
                    x_unit="s",
                    y_label="share",
                    y_unit="ratio",
                    series=series,
                    log_x=True,
                )
            )
    return charts


def _cdf(model: ModelSummary, quantity: str) -> Series | None:
    samples = [
        itl_samples(tables, None) if quantity == "itl" else span_samples(tables, None, quantity)
        for tables in model.rounds
    ]
    values = np.concatenate([s.values for s in samples]) if samples else np.empty(0)
    weights = np.concatenate([s.weights for s in samples]) if samples else np.empty(0)
    if not len(values):
        return None
    order = np.argsort(values)
    reach = np.cumsum(weights[order]) / weights.sum()
    rows = np.unique(np.searchsorted(reach, np.linspace(0, 1, CDF_POINTS)).clip(0, len(values) - 1))
    return Series(name=model.name, x=_floats(values[order][rows]), y=_floats(reach[rows]), style="steps")


def _step_scatter(summary: Summary) -> list[Block]:
    charts: list[Block] = []
    for model in summary.models:
        for found in model.attributions:
            if found.points is None or found.phase != "decode" or not len(found.points.distinct):
                continue
            points = found.points
            series = [Series(name="steps", x=_floats(points.distinct), y=_floats(points.step_s), style="points")]
            if found.line is not None:
                ends = np.array([points.distinct.min(), points.distinct.max()])
                fitted = found.line.intercept + found.line.slope * ends
                name = f"fit, R2 {found.line.r2:.2f}"
                series.append(Series(name=name, x=_floats(ends), y=_floats(fitted), style="line"))
            told = found.cannot_tell or (
                f"Among steps with equal tokens routing explains {100 * (found.share or 0):.0f} % of the variance "
                f"(p = {found.p_value:.3f})."
            )
            charts.append(
                Chart(
                    name=f"steps-{model.name}",
                    title=f"Step time against distinct experts, {model.name}, decode",
                    caption=f"Each point is a step; experts are summed over layers. {told[0].upper()}{told[1:]}",
                    x_label="distinct experts",
                    x_unit="experts",
                    y_label="step time",
                    y_unit="s",
                    series=tuple(series),
                )
            )
    return charts


def _heat_maps(summary: Summary) -> list[Block]:
    maps: list[Block] = []
    for model in summary.models:
        found = load_shares(model.rounds)
        if found:
            maps.append(
                HeatMap(
                    name=f"load-{model.name}",
                    title=f"Expert load, {model.name}",
                    caption="Tokens of each expert over the mean of its layer; 1 is balanced. First round.",
                    layers=found[0].layer_names,
                    variants=tuple(_variant(one) for one in found),
                )
            )
    return maps


def _variant(one: LoadShares) -> HeatMapVariant:
    loads = one.shares_LE / one.uniform_share
    label = one.phase if one.request_class == "all" else f"{one.phase}, {one.request_class}"
    return HeatMapVariant(
        label=label,
        loads=tuple(tuple(round(float(x), 4) for x in row) for row in loads),
        counts=tuple(tuple(int(x) for x in row) for row in one.counts_LE),
        null_high=_floats(one.uniform_max_over_mean_L),
    )


def _memory(summary: Summary) -> list[Block]:
    models = [model for model in summary.models if model.facts is not None]
    if not models:
        return []
    parts: list[tuple[str, tuple[float | None, ...]]] = []
    for group in GROUPS:
        values = tuple(float(m.facts.bytes_by_group.get(group, 0)) for m in models if m.facts is not None)
        if any(values):
            parts.append((group.replace("_", " "), values))
    for name, label in (("kv_cache_bytes", "KV cache"), ("activation_peak_bytes", "activations (peak)")):
        found = [pick(m, name) for m in models]
        known = tuple(None if v is None or v.value is None else float(v.value) for v in found)
        if any(v is not None for v in known):
            parts.append((label, known))
    return [
        StackedBars(
            name="memory",
            title="Memory by group",
            caption="Weights by what they do, and the KV cache. Unknown parts are left out, not drawn as nothing.",
            bars=tuple(m.name for m in models),
            parts=tuple(parts),
            unit="bytes",
        )
    ]


def _cost(summary: Summary) -> list[Block]:
    models = [model for model in summary.models if model.splits]
    if not models:
        return []

    def usd(model: ModelSummary, side: str) -> float | None:
        values = [getattr(split, side) for split in model.splits]
        return None if any(v is None for v in values) else float(np.mean(values))

    parts = (
        ("prompts (prefill)", tuple(usd(m, "usd_input") for m in models)),
        ("outputs (decode)", tuple(usd(m, "usd_output") for m in models)),
    )
    bars = StackedBars(
        name="cost-by-phase",
        title="The bill of one pass, by phase",
        caption="The same requests for every model; the two parts add up to the bill exactly. Mean over rounds.",
        bars=tuple(m.name for m in models),
        parts=parts,
        unit="USD",
    )
    return [bars, _cost_over_time(models, summary.pricing.usd_per_second)]


def _cost_over_time(models: list[ModelSummary], usd_per_second: float) -> Chart:
    """Dollars of busy time so far, by phase, in the first priced pass of each model."""
    series = []
    for model in models:
        end_s, busy = column(model.priced[0].steps, "end_s"), model.splits[0].busy
        rows = np.unique(np.linspace(0, len(end_s) - 1, CDF_POINTS).astype(np.int64))
        sides: tuple[tuple[str, FloatArray, Literal["line", "dashed"]], ...] = (
            ("prompts", busy.prefill_S, "dashed"),
            ("outputs", busy.decode_S, "line"),
        )
        for side, seconds, style in sides:
            spent = np.cumsum(seconds)[rows] * usd_per_second
            series.append(Series(name=f"{model.name}, {side}", x=_floats(end_s[rows]), y=_floats(spent), style=style))
    return Chart(
        name="cost-over-time",
        title="Dollars spent so far, by phase",
        caption="Busy time of the first priced pass; mixed steps are split between prompts and outputs.",
        x_label="time since the start of the pass",
        x_unit="s",
        y_label="spent",
        y_unit="USD",
        series=tuple(series),
    )


def _timelines(summary: Summary) -> list[Block]:
    charts: list[Block] = []
    specs: tuple[tuple[str, str, str, Callable[[ModelSummary], Series | None]], ...] = (
        ("timeline-rate", "Output tokens per second over time", "tokens / s", _rate_over_time),
        ("timeline-batch", "Requests in a step over time", "requests", _batch_over_time),
    )
    for name, title, unit, build in specs:
        series = tuple(s for model in summary.models if (s := build(model)) is not None)
        if series:
            charts.append(
                Chart(
                    name=name,
                    title=title,
                    caption="First round of the workload's own traffic.",
                    x_label="time since the start of the round",
                    x_unit="s",
                    y_label=unit,
                    y_unit=unit,
                    series=series,
                )
            )
    return charts


def _rate_over_time(model: ModelSummary) -> Series | None:
    if not model.rounds:
        return None
    tables = model.rounds[0]
    edges = np.linspace(0, max(tables.duration_s, 1e-9), TIMELINE_BINS + 1)
    tokens, _ = np.histogram(column(tables.steps, "end_s"), bins=edges, weights=column(tables.steps, "new_tokens"))
    return Series(name=model.name, x=_floats(edges[:-1]), y=_floats(tokens / np.diff(edges)), style="steps")


def _batch_over_time(model: ModelSummary) -> Series | None:
    if not model.rounds:
        return None
    steps = model.rounds[0].steps
    start, size = column(steps, "start_s"), column(steps, "num_requests")
    rows = np.unique(np.linspace(0, len(start) - 1, CDF_POINTS).astype(np.int64))
    return Series(name=model.name, x=_floats(start[rows]), y=_floats(size[rows]), style="steps")


def _floats(values: FloatArray) -> tuple[float, ...]:
    return tuple(float(v) for v in values)


BUILDERS: dict[str, tuple[Callable[[Summary], list[Block]], ...]] = {
    "cost": (_cost,),
    "throughput": (_timelines,),
    "latency": (_latency_cdfs, _step_scatter),
    "routing": (_heat_maps,),
    "memory": (_memory,),
    "energy": (device_timelines,),
    "gap": (report_gap.blocks,),
}
