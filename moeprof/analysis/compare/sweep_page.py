"""A sweep as a section of a page: where models cross, cost and latency against load, the Pareto front, the experts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from moeprof.analysis.cards import card_for
from moeprof.analysis.compare.crossover import AXIS_NAMES, OPEN_NOTE, crossovers, paired_ratios, pooled_spread
from moeprof.analysis.compare.estimate import Estimate
from moeprof.analysis.compare.slo import NAME as AT_SLO
from moeprof.analysis.compare.sweep_charts import sweep_charts
from moeprof.analysis.compare.sweep_points import log_ratio_estimate, to_metric
from moeprof.analysis.compare.sweeps import PointResult, SweepResult, sweep_results
from moeprof.analysis.document import Block, Paragraph, Ratio, RatioRow, RatioTable, Section
from moeprof.core import units
from moeprof.core.metric import MetricValue, missing
from moeprof.core.sparsity import SweepPoint

if TYPE_CHECKING:
    from moeprof.analysis.summary import Summary

Of = Callable[[PointResult], Estimate]
COST = "usd_per_1m_total_tokens"
# title, metric whose card stands for it, figure
TABLES: tuple[tuple[str, str, Of], ...] = (
    ("Price of 1M tokens", COST, lambda p: p.usd_per_1m_total_tokens),
    ("Price of 1M output tokens", "usd_per_1m_output_tokens", lambda p: p.usd_per_1m_output_tokens),
    ("Output tokens per second and device", "output_tokens_per_s", lambda p: p.output_tokens_per_s),
    ("Tokens per second and user", "tokens_per_s_per_user", lambda p: p.tokens_per_s_per_user),
    ("TTFT p50", "ttft_p50_s", lambda p: p.ttft_p50_s),
    ("ITL p50", "itl_p50_s", lambda p: p.itl_p50_s),
    ("ITL p99", "itl_p99_s", lambda p: p.itl_p99_s),
    ("Decode step time", "step_mean_s", lambda p: p.decode_step_s),
    ("Requests within the SLO", "goodput_ratio", lambda p: p.goodput_ratio),
    ("Busy", "busy_ratio", lambda p: p.busy_ratio),
    ("Distinct experts per decode step", "distinct_experts_per_step", lambda p: p.distinct_experts),
)


def sweep_section(summary: Summary) -> Section | None:
    """The sweep of a run; None when it has none."""
    result = sweep_results(summary)
    if result is None:
        return None
    blocks: list[Block] = [Paragraph(text=text) for text in [*answers(result), *prices_at_slo(summary), *notes(result)]]
    blocks += sweep_charts(result)
    blocks += [table for row in result.rows for table in _tables(result, row)]
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


def notes(result: SweepResult) -> list[str]:
    """What a reader must know: how dollars were billed, where a model saturated or stopped."""
    lines = [f"Dollars: {OPEN_NOTE}."] if result.is_open else []
    for model in result.models:
        for point in model.points:
            if point.saturated:
                why = f": {point.saturation_reason}" if point.saturation_reason else ""
                lines.append(f"{model.model} is saturated at {point.point.label}{why}.")
        if model.stopped:
            lines.append(f"The sweep of {model.model} stopped early: {model.stopped}.")
    return lines


def _tables(result: SweepResult, row: SweepPoint) -> list[RatioTable]:
    """One table per figure, one line per load, one column per model."""
    names = tuple(model.model for model in result.models)
    reference = next((i for i, model in enumerate(result.models) if not model.is_moe), 0)
    lines = [{result.load(p.point): p for p in result.line(name, row)} for name in names]
    loads = sorted({load for line in lines for load in line})
    tables = []
    for title, metric, of in TABLES:
        cells = [[line.get(load) for line in lines] for load in loads]
        if not any(p is not None and of(p).value is not None for cell in cells for p in cell):
            continue
        rows = [_row(result.axis, load, metric, of, cell, reference) for load, cell in zip(loads, cells, strict=True)]
        if metric == COST:
            rows = _with_cost_ratios(rows, cells, reference)
        where = f", {row.label}" if row.label else ""
        tables.append(
            RatioTable(title=title + where, columns=names, rows=tuple(rows), reference=reference, folded=metric != COST)
        )
    return tables


def _row(axis: str, load: float, metric: str, of: Of, cell: Sequence[PointResult | None], reference: int) -> RatioRow:
    values = tuple(_value(metric, point, of) for point in cell)
    base = values[reference]
    return RatioRow(
        label=f"{AXIS_NAMES[axis]} {load:g}" if load else "as the workload has it",
        card=card_for(metric),
        name=metric,
        values=values,
        ratios=tuple(None if i == reference else _ratio(value, base) for i, value in enumerate(values)),
    )


def _value(metric: str, point: PointResult | None, of: Of) -> MetricValue:
    if point is None:
        return missing(metric, "this load did not run")
    value = to_metric(metric, of(point), **({"phase": "decode"} if metric == "step_mean_s" else {}))
    null = dict(point.distinct_nulls) if metric == "distinct_experts_per_step" and value.value is not None else {}
    return MetricValue(
        name=value.name, value=value.value, n=value.n, ci_low=value.ci_low, ci_high=value.ci_high,
        labels=value.labels, reasons=value.reasons, null=null,
    )  # fmt: skip


def _ratio(value: MetricValue, base: MetricValue) -> Ratio:
    """Of two means, without an interval: only dollars are paired by round."""
    if value.value is None or not base.value:
        return Ratio(value=None, reason="; ".join(value.reasons or base.reasons) or "not measured")
    return Ratio(value=float(value.value) / float(base.value), reason="not paired by round")


def _with_cost_ratios(
    rows: Sequence[RatioRow], cells: Sequence[Sequence[PointResult | None]], reference: int
) -> list[RatioRow]:
    """Ratios of dollars with intervals: paired by round, the spread pooled over loads, as the crossover takes them."""
    columns: list[list[Ratio | None]] = [list(row.ratios) for row in rows]
    for position in range(len(rows[0].values)):
        if position == reference:
            continue
        pairs = {i: (cell[position], cell[reference]) for i, cell in enumerate(cells)}
        found = {i: paired_ratios(a.swept, b.swept)[0] for i, (a, b) in pairs.items() if a and b}
        spread = pooled_spread([ratios for ratios in found.values() if ratios])
        for i, ratios in found.items():
            if ratios:
                columns[i][position] = _judged(log_ratio_estimate(ratios, spread))
    return [
        RatioRow(label=row.label, card=row.card, name=row.name, values=row.values, ratios=tuple(ratios))
        for row, ratios in zip(rows, columns, strict=True)
    ]


def _judged(ratio: Estimate) -> Ratio:
    verdict = "cannot tell"
    if ratio.value is not None and ratio.excludes(1.0):
        verdict = "better" if ratio.value < 1 else "worse"
    return Ratio(value=ratio.value, low=ratio.low, high=ratio.high, verdict=verdict, reason=ratio.reason)
