"""A sweep as a section of a page: where models cross, cost and latency against load, the Pareto front, the experts.

Charts of a sweep: cost and latency against load, the Pareto front, distinct experts against the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from moeprof.analysis.compare.ratios import PAIRED_FLOOR_RATIO
from moeprof.analysis.metrics import sweep as figures
from moeprof.analysis.metrics.cards import card_for
from moeprof.analysis.metrics.slo import NAME as AT_SLO
from moeprof.analysis.metrics.sweep import SweptRound, log_ratio_estimate, to_metric
from moeprof.analysis.metrics.tables import is_done
from moeprof.analysis.report.document import Block, Chart, Paragraph, Section, Series, Table
from moeprof.analysis.report.tables import compared, metric_row
from moeprof.analysis.sparsity.crossover import (
    AXIS_NAMES,
    OPEN_NOTE,
    crossovers,
    paired_ratios,
    pareto,
    pooled_spread,
    why_unlike,
)
from moeprof.analysis.sparsity.sweeps import HIGH_PERCENTILES, ModelSweep, PointResult, SweepResult, sweep_results
from moeprof.analysis.stats.bootstrap import Estimate
from moeprof.analysis.stats.ratio import Ratio
from moeprof.analysis.stats.verdicts import interval_verdict
from moeprof.core import units
from moeprof.core.metric import Better, MetricValue, missing
from moeprof.core.workload.studies import SweepPoint

if TYPE_CHECKING:
    from moeprof.analysis.metrics.summary import Summary

Style = Literal["line", "points", "steps", "dashed"]
AXIS_UNITS = {
    "concurrency": "requests",
    "request_rate": "requests/s",
    "input_tokens": "tokens",
    "max_batch_tokens": "tokens",
}


def sweep_charts(result: SweepResult) -> list[Block]:
    """All charts that have something to draw."""
    billed = "busy seconds billed" if result.is_open else "the window billed"
    charts = [
        _against_load(
            result, "sweep-cost", "Price of 1M tokens against load", f"Mean over rounds, {billed}; the band is 95 %.",
            "price of 1M tokens", "USD", [("", lambda p: p.usd_per_1m_total_tokens, "line")],
        ),
        _ttft_chart(result),
        _itl_chart(result),
        _pareto_chart(result),
        *(_experts_chart(model) for model in result.models if model.is_moe),
    ]  # fmt: skip
    return [chart for chart in charts if chart is not None]


def _ttft_chart(result: SweepResult) -> Chart | None:
    """The median, and the highest percentile that every load supports."""
    points = [point for model in result.models for point in model.points]
    shared = [p for p in HIGH_PERCENTILES if all(_ttft(point, p).value is not None for point in points)]
    figures: list[tuple[str, Of, Style]] = [("p50", lambda p: p.ttft_p50_s, "line")]
    if shared:
        figures.append((shared[0].replace("_", "."), lambda p: _ttft(p, shared[0]), "dashed"))
    caption = "From arrival." + (
        " Dashed: the highest percentile that the sample of every load supports." * bool(shared)
    )
    return _against_load(result, "sweep-ttft", "Time to first token against load", caption, "TTFT", "s", figures)


def _itl_chart(result: SweepResult) -> Chart | None:
    """The median, and p99 where every load supports it."""
    points = [point for model in result.models for point in model.points]
    figures: list[tuple[str, Of, Style]] = [("p50", lambda p: p.itl_p50_s, "line")]
    caption = "Every gap between two tokens of a request."
    if all(point.itl_p99_s.value is not None for point in points):
        figures.append(("p99", lambda p: p.itl_p99_s, "dashed"))
        caption += " Dashed: p99."
    return _against_load(result, "sweep-itl", "Gaps between tokens against load", caption, "ITL", "s", figures)


def _ttft(point: PointResult, percentile: str) -> Estimate:
    return point.ttft_percentiles_s[percentile]


def _against_load(
    result: SweepResult,
    name: str,
    title: str,
    caption: str,
    y_label: str,
    y_unit: str,
    figures: Sequence[tuple[str, Of, Style]],
) -> Chart | None:
    series = [
        line
        for model in result.models
        for row in result.rows
        for label, of, style in figures
        if (line := _line(result, model, row, label, of, style)) is not None
    ]
    if not series:
        return None
    return Chart(
        name=name,
        title=title,
        caption=caption,
        x_label=AXIS_NAMES[result.axis],
        x_unit=AXIS_UNITS[result.axis],
        y_label=y_label,
        y_unit=y_unit,
        series=tuple(series),
        log_x=True,
    )


def _line(result: SweepResult, model: ModelSweep, row: SweepPoint, label: str, of: Of, style: Style) -> Series | None:
    points = [(result.load(p.point), of(p)) for p in result.line(model.model, row) if of(p).value is not None]
    if not points:
        return None
    name = ", ".join(part for part in (model.model, row.label, label) if part)
    return _series(name, points, style)


def _series(name: str, points: Sequence[tuple[float, Estimate]], style: Style) -> Series:
    known = all(estimate.low is not None and estimate.high is not None for _, estimate in points)
    band = [(estimate.low or 0.0, estimate.high or 0.0) for _, estimate in points] if known and style == "line" else []
    return Series(
        name=name,
        x=tuple(load for load, _ in points),
        y=tuple(estimate.value or 0.0 for _, estimate in points),
        style=style,
        band=tuple(band),
    )


def _pareto_chart(result: SweepResult) -> Chart | None:
    points = pareto(result)
    if not points:
        return None
    series = []
    for model in result.models:
        own = [p for p in points if p.model == model.model]
        for label, kept, style in (("front", [p for p in own if p.on_front], "line"), ("all settings", own, "points")):
            if kept:
                series.append(
                    Series(
                        name=f"{model.model}, {label}",
                        x=tuple(p.tokens_per_s_per_user for p in kept),
                        y=tuple(p.tokens_per_s_per_device for p in kept),
                        style="line" if style == "line" else "points",
                    )
                )
    return Chart(
        name="sweep-pareto",
        title="Speed for one user against speed of a device",
        caption="Each point is a setting; right and up is better. The line joins those that no other setting of the "
        "model beats in both.",
        x_label="tokens per second and user",
        x_unit="tokens/s",
        y_label="output tokens per second and device",
        y_unit="tokens/s",
        series=tuple(series),
    )


def _experts_chart(model: ModelSweep) -> Chart | None:
    """Measured against what a router that does not care, and one with the measured popularity, would touch."""
    points = [p for p in model.points if p.distinct_experts.value is not None and p.decode_batch.value]
    points.sort(key=lambda p: p.decode_batch.value or 0.0)
    if not points:
        return None
    batches = [p.decode_batch.value or 0.0 for p in points]
    measured = [(batch, p.distinct_experts) for batch, p in zip(batches, points, strict=True)]
    series = [_series(f"{model.model}, measured", measured, "line")]
    for null, label in (("uniform", "uniform routing"), ("marginal", "same popularity, independent tokens")):
        known = [(batch, p.distinct_nulls[null]) for batch, p in zip(batches, points, strict=True)
                 if null in p.distinct_nulls]  # fmt: skip
        if known:
            x, y = zip(*known, strict=True)
            series.append(Series(name=label, x=x, y=y, style="dashed"))
    return Chart(
        name=f"sweep-experts-{model.model}",
        title=f"Distinct experts per decode step against the batch, {model.model}",
        caption="Mean over layers and steps; dashed: what routing at random would touch at the same batches.",
        x_label="tokens in a decode step",
        x_unit="tokens",
        y_label="distinct experts",
        y_unit="experts",
        series=tuple(series),
        log_x=True,
    )


Of = Callable[[PointResult], Estimate]
OfRound = Callable[[SweptRound], float | None]
COST, EXPERTS = "usd_per_1m_total_tokens", "distinct_experts_per_step"
NO_RATIO = (EXPERTS, "goodput_ratio", "busy_ratio")  # counts of one kind of model, and shares
# title, metric whose card stands for it, figure, and the same of one round where ratios can be paired
TABLES: tuple[tuple[str, str, Of, OfRound | None], ...] = (
    ("Price of 1M tokens", COST, lambda p: p.usd_per_1m_total_tokens, figures.usd_total),
    ("Price of 1M output tokens", "usd_per_1m_output_tokens", lambda p: p.usd_per_1m_output_tokens, figures.usd_output),
    ("Output tokens per second and device", "output_tokens_per_s", lambda p: p.output_tokens_per_s,
     figures.outputs_per_s),
    ("Tokens per second and user", "tokens_per_s_per_user", lambda p: p.tokens_per_s_per_user,
     figures.tokens_per_s_per_user),
    ("Decode step time", "step_mean_s", lambda p: p.decode_step_s, figures.decode_step_s),
    ("TTFT p50", "ttft_p50_s", lambda p: p.ttft_p50_s, None),
    ("ITL p50", "itl_p50_s", lambda p: p.itl_p50_s, None),
    ("ITL p99", "itl_p99_s", lambda p: p.itl_p99_s, None),
    ("Requests within the SLO", "goodput_ratio", lambda p: p.goodput_ratio, None),
    ("Busy", "busy_ratio", lambda p: p.busy_ratio, None),
    ("Distinct experts per decode step", EXPERTS, lambda p: p.distinct_experts, None),
)  # fmt: skip


def sweep_section(summary: Summary, reference: str | None = None) -> Section | None:
    """The sweep of a run; None when it has none.

    Args:
        summary: the run.
        reference: the model in the denominator of the tables' ratios; None: the total-matched twin, else the
            active-matched one, else the first dense model.
    """
    result = sweep_results(summary)
    if result is None:
        return None
    index = _reference(summary, result, reference)
    blocks: list[Block] = [
        Paragraph(text=text) for text in [*answers(result), *prices_at_slo(summary), *sent(summary), *notes(result)]
    ]
    blocks += sweep_charts(result)
    blocks += [table for row in result.rows for table in _tables(result, row, index)]
    return Section(name="sweep", title="Against load", blocks=tuple(blocks))


def sweep_metrics(result: SweepResult) -> tuple[tuple[str, MetricValue], ...]:
    """``crossover_batch`` of each pair and ``tokens_per_s_per_user`` of each point, by model, for data files."""
    found = []
    for one in crossovers(result):
        labels = {"against": one.dense, "axis": one.axis} | ({"sweep": one.row.label} if one.row.label else {})
        value = to_metric("crossover_batch", one.batch, **labels)
        found.append((one.moe, replace(value, reasons=(one.text, *value.reasons))))
    for model in result.models:
        for point in model.points:
            value = to_metric("tokens_per_s_per_user", point.tokens_per_s_per_user, at=point.point.label)
            found.append((model.model, value))
    return tuple(found)


def _lost(point: PointResult) -> tuple[int, int]:
    """Requests that did not end well, of all that were asked for, over all rounds."""
    done = [is_done(one.tables.requests) for one in point.swept.rounds]
    return sum(int((~mask).sum()) for mask in done), sum(len(mask) for mask in done)


def _reference(summary: Summary, result: SweepResult, wanted: str | None) -> int:
    """Index among the models of the sweep."""
    names = [model.model for model in result.models]
    if wanted in names:
        return names.index(wanted)
    facts = [summary.model(name).facts for name in names]
    twins = [(i, f.twin) for i, f in enumerate(facts) if f is not None and f.twin is not None]
    totals = [i for i, twin in twins if twin.is_total_matched]
    actives = [i for i, twin in twins if twin.is_active_matched]
    denses = [i for i, model in enumerate(result.models) if not model.is_moe]
    return (*totals, *actives, *denses, 0)[0]


def answers(result: SweepResult) -> list[str]:
    """Where each MoE crosses each dense model."""
    lines = []
    for one in crossovers(result):
        where = f" ({one.row.label})" if one.row.label else ""
        lines.append(f"In dollars per million tokens, {one.text}{where}.")
    return lines


def prices_at_slo(summary: Summary) -> list[str]:
    """The price at the highest load that meets the SLO, or why there is none."""
    lines = []
    for model in summary.models:
        if not model.sweep:
            continue
        for value in (v for v in model.metrics if v.name == AT_SLO):
            reasons = "; ".join(value.reasons)
            if value.value is None:
                lines.append(f"{model.name} has no price at the SLO: {reasons}.")
            else:
                lines.append(
                    f"{model.name} costs {units.usd(float(value.value))} per 1M tokens at the SLO ({reasons})."
                )
    return lines


def sent(summary: Summary) -> list[str]:
    """How many requests the points sent: figures of a few requests are not those of the run's own rounds."""
    schedules = (summary.record.experiment.get("schedules") or {}).values()
    points: list[dict[str, Any]] = next((schedule["sweep"] for schedule in schedules if schedule.get("sweep")), [])
    numbers = sorted({int(point["num_requests"]) for point in points if "num_requests" in point})
    if not numbers:
        return []
    each = f"{numbers[0]:,}" if len(numbers) == 1 else f"{numbers[0]:,} to {numbers[-1]:,}"
    told = dict.fromkeys(str(n["text"]) for p in points for n in p.get("notes", ()) if n.get("code") == "few_requests")
    return [f"Each load sent {each} requests, apart from the run's rounds{''.join(f'; {text}' for text in told)}."]


def notes(result: SweepResult) -> list[str]:
    """What a reader must know: how dollars were billed, where a model saturated or stopped."""
    lines = [f"Dollars: {OPEN_NOTE}."] if result.is_open else []
    for model in result.models:
        for point in model.points:
            lost, asked = _lost(point)
            if lost:
                lines.append(f"{model.model} at {point.point.label}: {lost} of {asked} requests did not end well.")
            if point.saturated:
                why = f": {point.saturation_reason}" if point.saturation_reason else ""
                lines.append(f"{model.model} is saturated at {point.point.label}{why}.")
        if model.stopped:
            lines.append(f"The sweep of {model.model} stopped early: {model.stopped}.")
    return lines


def _tables(result: SweepResult, row: SweepPoint, reference: int) -> list[Table]:
    """One table per figure, one line per load, one column per model."""
    names = tuple(model.model for model in result.models)
    lines = [{result.load(p.point): p for p in result.line(name, row)} for name in names]
    loads = sorted({load for line in lines for load in line})
    cells = [tuple(line.get(load) for line in lines) for load in loads]
    where = f", {row.label}" if row.label else ""
    tables = []
    for title, metric, of, figure in TABLES:
        if not any(p is not None and of(p).value is not None for cell in cells for p in cell):
            continue
        ratios = _ratios(cells, metric, of, figure, reference)
        rows = [
            metric_row(
                f"{AXIS_NAMES[result.axis]} {load:g}" if load else "as the workload has it",
                metric,
                (
                    None if metric == EXPERTS and not model.is_moe else _value(metric, point, of)
                    for model, point in zip(result.models, cell, strict=True)
                ),
                (column[i] for column in ratios),
            )
            for i, (load, cell) in enumerate(zip(loads, cells, strict=True))
        ]
        tables.append(compared(title + where, names, rows, reference=reference, folded=metric != COST))
    return tables


def _value(metric: str, point: PointResult | None, of: Of) -> MetricValue:
    if point is None:
        return missing(metric, "this load did not run")
    value = to_metric(metric, of(point), **({"phase": "decode"} if metric == "step_mean_s" else {}))
    if metric == EXPERTS and value.value is not None:
        return replace(value, null=dict(point.distinct_nulls))
    return value


def _ratios(
    cells: Sequence[tuple[PointResult | None, ...]], metric: str, of: Of, figure: OfRound | None, reference: int
) -> list[list[Ratio | None]]:
    """Per model, per load: paired by round with the spread pooled over loads; of two means where that cannot be."""
    better = card_for(metric).better
    columns: list[list[Ratio | None]] = []
    for position in range(len(cells[0])):
        if position == reference or metric in NO_RATIO:
            columns.append([None] * len(cells))
            continue
        pairs = [(cell[position], cell[reference]) for cell in cells]
        paired = [paired_ratios(a.swept, b.swept, figure)[0] if a and b and figure else [] for a, b in pairs]
        spread = pooled_spread([ratios for ratios in paired if ratios])
        columns.append(
            [
                _judged(log_ratio_estimate(ratios, spread), better) if ratios else _plain(a, b, of)
                for ratios, (a, b) in zip(paired, pairs, strict=True)
            ]
        )
    return columns


def _plain(first: PointResult | None, second: PointResult | None, of: Of) -> Ratio:
    """Of two means, without an interval or a verdict."""
    if first is None or second is None:
        return Ratio(value=None, reason="this load did not run")
    unlike = why_unlike(first.swept, second.swept)
    if unlike is not None:
        return Ratio(value=None, verdict="incomparable", reason=unlike)
    above, below = of(first), of(second)
    if above.value is None or not below.value:
        return Ratio(value=None, reason=above.reason if above.value is None else below.reason)
    return Ratio(value=above.value / below.value)


def _judged(ratio: Estimate, better: Better) -> Ratio:
    """Two processes: what differs by less than the floor may be the machine (METRICS section 9)."""
    if better == "neither":
        return Ratio(value=ratio.value, low=ratio.low, high=ratio.high, reason=ratio.reason)
    told = interval_verdict(ratio, better=better, floor_ratio=PAIRED_FLOOR_RATIO)
    return Ratio(value=ratio.value, low=ratio.low, high=ratio.high, verdict=told.kind, reason=told.reason)
