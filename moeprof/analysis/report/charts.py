"""Charts of the report, as data. Renderers draw; nothing here knows how.

What the device did during the passes: power, clock, temperature, memory, and when it was throttled. As data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from moeprof.analysis.metrics.lookup import pick
from moeprof.analysis.metrics.resources.device_state import in_words, throttled_spans
from moeprof.analysis.metrics.routing.shift import LoadShares, load_shares
from moeprof.analysis.metrics.samples import itl_samples, span_samples
from moeprof.analysis.metrics.summary import ModelSummary, Summary
from moeprof.analysis.metrics.tables import PassTables, column
from moeprof.analysis.report.document import (
    Block,
    Chart,
    HeatMap,
    HeatMapVariant,
    Paragraph,
    Series,
    StackedBars,
    Timeline,
    TimelineLine,
    TimelinePanel,
    TimelineSpan,
)
from moeprof.analysis.report.sections import breakdown
from moeprof.analysis.stats.arrays import FloatArray
from moeprof.core.model_facts import GROUPS, OTHER_MODALITIES

MOST_PASSES = 12
GAP_RATIO = 0.02  # of the whole axis, between two passes
Style = Literal["line", "dashed"]
# panel -> unit and its lines: column, name, style
PANELS: tuple[tuple[str, str, tuple[tuple[str, str, Style], ...]], ...] = (
    ("power", "W", (("power_w", "", "line"),)),
    ("SM clock", "MHz", (("sm_clock_mhz", "", "line"),)),
    ("temperature", "°C", (("temperature_c", "", "line"),)),
    (
        "device memory",
        "bytes",
        (
            ("device_memory_used_bytes", "used on the device", "line"),
            ("reserved_bytes", "reserved by the allocator", "line"),
            ("allocated_bytes", "allocated", "dashed"),
        ),
    ),
)


def device_timelines(summary: Summary) -> list[Block]:
    """One timeline per model whose device was read; else a sentence that says why there is none."""
    drawn: list[Block] = [found for model in summary.models if (found := _timeline(model)) is not None]
    return drawn or [Paragraph(text=f"No timeline of power, clocks, temperature and memory: {_why_not(summary)}.")]


def _why_not(summary: Summary) -> str:
    if not summary.record.workload.instruments.power:
        return "instruments.power is off"
    if (summary.record.environment.device or "").startswith("cpu"):
        return "the run was on a CPU, which tells none of them"
    return "the device told none of them"


def _timeline(model: ModelSummary) -> Timeline | None:
    """The passes of a model laid end to end."""
    passes = [tables for tables in (*model.rounds, *model.capacity) if len(tables.telemetry)]
    shown = passes[:MOST_PASSES]
    total_s = sum(tables.duration_s for tables in shown)
    starts_s = np.cumsum([0.0, *(tables.duration_s + GAP_RATIO * total_s for tables in shown)])
    panels = tuple(panel for spec in PANELS if (panel := _panel(spec, shown, starts_s)) is not None)
    if not panels:
        return None
    spans = tuple(span for tables, start_s in zip(shown, starts_s, strict=False) for span in _spans(tables, start_s))
    left_out = f" The first {MOST_PASSES} of {len(passes)} passes." if len(passes) > MOST_PASSES else ""
    return Timeline(
        name=f"device-{model.name}",
        title=f"The device during the passes, {model.name}",
        caption=f"Passes are laid end to end, with gaps between them.{left_out} {_told(spans, total_s)}",
        panels=panels,
        spans=spans,
        passes=tuple((float(start_s), tables.name) for tables, start_s in zip(shown, starts_s, strict=False)),
        end_s=float(starts_s[-1] - GAP_RATIO * total_s),
    )


def _panel(
    spec: tuple[str, str, tuple[tuple[str, str, Style], ...]], passes: list[PassTables], starts_s: FloatArray
) -> TimelinePanel | None:
    label, unit, quantities = spec
    lines = tuple(line for quantity in quantities if (line := _line(*quantity, passes, starts_s)) is not None)
    return TimelinePanel(label=label, unit=unit, lines=lines) if lines else None


def _line(name: str, label: str, style: Style, passes: list[PassTables], starts_s: FloatArray) -> TimelineLine | None:
    stretches = []
    for tables, start_s in zip(passes, starts_s, strict=False):
        time, value = column(tables.telemetry, "t_s"), column(tables.telemetry, name)
        known = np.isfinite(value) & (time >= 0) & (time <= tables.duration_s)
        if known.any():
            stretches.append((_floats(time[known] + start_s), _floats(value[known])))
    return TimelineLine(name=label, stretches=tuple(stretches), style=style) if stretches else None


def _spans(tables: PassTables, start_s: float) -> list[TimelineSpan]:
    """Throttled stretches inside the pass."""
    found = []
    for span in throttled_spans(column(tables.telemetry, "t_s"), column(tables.telemetry, "throttle_reasons")):
        begin, end = max(0.0, span.start_s), min(tables.duration_s, span.end_s)
        if end > begin:
            found.append(TimelineSpan(start_s=begin + start_s, end_s=end + start_s, label=in_words(span.codes)))
    return found


def _told(spans: tuple[TimelineSpan, ...], total_s: float) -> str:
    if not spans or total_s <= 0:
        return "The device was not throttled."
    share = 100 * sum(span.end_s - span.start_s for span in spans) / total_s
    why = ", ".join(dict.fromkeys(word for span in spans for word in span.label.split(", ")))
    return f"Throttled for {share:.0f} % of the time (marked): {why}."


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
    for group in (*GROUPS, OTHER_MODALITIES):
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
        if not len(end_s):
            continue  # an engine that steps itself
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
    if len(tables.steps):
        at_s, count = column(tables.steps, "end_s"), column(tables.steps, "new_tokens")
    else:  # an engine that steps itself tells when each token came
        at_s = np.concatenate([np.asarray(times, dtype=float) for times in tables.requests["token_times_s"]])
        count = np.ones(len(at_s))
    tokens, _ = np.histogram(at_s, bins=edges, weights=count)
    return Series(name=model.name, x=_floats(edges[:-1]), y=_floats(tokens / np.diff(edges)), style="steps")


def _batch_over_time(model: ModelSummary) -> Series | None:
    if not model.rounds or not len(model.rounds[0].steps):
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
    "gap": (breakdown.blocks,),
}
