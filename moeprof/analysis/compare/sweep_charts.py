"""Charts of a sweep: cost and latency against load, the Pareto front, distinct experts against the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from moeprof.analysis.compare.crossover import AXIS_NAMES
from moeprof.analysis.compare.estimate import Estimate
from moeprof.analysis.compare.pareto import pareto
from moeprof.analysis.compare.sweeps import HIGH_PERCENTILES, ModelSweep, PointResult, SweepResult
from moeprof.analysis.document import Block, Chart, Series
from moeprof.core.sparsity import SweepPoint

Of = Callable[[PointResult], Estimate]
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
