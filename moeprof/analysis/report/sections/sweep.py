"""A sweep as a section of a page: where models cross, cost and latency against load, the Pareto front, the experts.

Charts of a sweep: cost and latency against load, the Pareto front, distinct experts against the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from moeprof.analysis.metrics.samples import of_enough_requests
from moeprof.analysis.metrics.sweep import points as figures
from moeprof.analysis.metrics.sweep.points import to_metric
from moeprof.analysis.metrics.sweep.slo import NAME as AT_SLO
from moeprof.analysis.report.document import Block, Chart, Paragraph, Section, Series, Table
from moeprof.analysis.report.tables import compared, metric_row
from moeprof.analysis.sparsity.crossover import (
    AXIS_NAMES,
    COST,
    EXPERTS,
    OPEN_NOTE,
    Of,
    OfRound,
    cell_ratios,
    crossovers,
    pareto,
)
from moeprof.analysis.sparsity.sweeps import (
    HIGH_PERCENTILES,
    ModelSweep,
    PointResult,
    SweepResult,
    lost_requests,
    reference_of,
    sweep_results,
)
from moeprof.analysis.stats.estimate import Estimate
from moeprof.core import units
from moeprof.core.metric import MetricValue, missing
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
    index = reference_of(summary, result, reference)
    texts = [*answers(result), *prices_at_slo(summary), *sent(summary, result), *notes(result)]
    blocks: list[Block] = [Paragraph(text=text) for text in texts]
    blocks += sweep_charts(result)
    blocks += [table for row in result.rows for table in _tables(result, row, index)]
    return Section(name="sweep", title="Against load", blocks=tuple(blocks))


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


def sent(summary: Summary, result: SweepResult) -> list[str]:
    """How many requests the points sent, and where the run's own rounds stand among them."""
    schedules = summary.record.experiment.schedules.values()
    points = next((schedule.sweep for schedule in schedules if schedule.sweep), ())
    numbers = sorted({point.num_requests for point in points if point.num_requests is not None})
    if not numbers:
        return []
    each = f"{numbers[0]:,}" if len(numbers) == 1 else f"{numbers[0]:,} to {numbers[-1]:,}"
    told = dict.fromkeys(n.text for p in points for n in p.notes if n.code == "few_requests")
    lines = [f"Each load sent {each} requests{''.join(f'; {text}' for text in told)}."]
    own = result.own
    if own is not None:
        lines.append(f"Figures at {own.point.label} are of the run's own rounds: {own.num_requests:,} requests.")
    return lines


def notes(result: SweepResult) -> list[str]:
    """What a reader must know: how dollars were billed, where a model saturated or stopped."""
    lines = [f"Dollars: {OPEN_NOTE}."] if result.is_open else []
    for model in result.models:
        for point in model.points:
            lost, asked = lost_requests(point)
            if lost:
                lines.append(f"{model.model} at {point.swept.label}: {lost} of {asked} requests did not end well.")
            if point.swept.set_aside:
                total = len(point.swept.rounds) + point.swept.set_aside
                aside = f"{point.swept.set_aside} of {total} rounds set aside, something else took the processor"
                lines.append(f"{model.model} at {point.swept.label}: {aside}.")
            if point.saturated:
                why = f": {point.saturation_reason}" if point.saturation_reason else ""
                lines.append(f"{model.model} is saturated at {point.swept.label}{why}.")
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
        ratios = cell_ratios(cells, metric, of, figure, reference)
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
    if metric.startswith("usd_"):
        value = of_enough_requests(value, [one.tables for one in point.swept.rounds])
    if metric == EXPERTS and value.value is not None:
        return replace(value, null=dict(point.distinct_nulls))
    return value
