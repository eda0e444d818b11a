"""A sweep as a section of a page: where models cross, cost and latency against load, the Pareto front, the experts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from moeprof.analysis.cards import card_for
from moeprof.analysis.compare import sweep_figures as figures
from moeprof.analysis.compare.crossover import (
    AXIS_NAMES,
    OPEN_NOTE,
    crossovers,
    paired_ratios,
    pooled_spread,
    why_unlike,
)
from moeprof.analysis.compare.estimate import Estimate
from moeprof.analysis.compare.ratios import PAIRED_FLOOR_RATIO
from moeprof.analysis.compare.slo import NAME as AT_SLO
from moeprof.analysis.compare.sweep_charts import sweep_charts
from moeprof.analysis.compare.sweep_points import SweptRound, log_ratio_estimate, to_metric
from moeprof.analysis.compare.sweeps import PointResult, SweepResult, sweep_results
from moeprof.analysis.compare.verdicts import interval_verdict
from moeprof.analysis.document import Block, Paragraph, Ratio, RatioRow, RatioTable, Section
from moeprof.analysis.tables import is_done
from moeprof.core import units
from moeprof.core.metric import Better, MetricValue, missing
from moeprof.core.sparsity import SweepPoint

if TYPE_CHECKING:
    from moeprof.analysis.summary import Summary

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


def _tables(result: SweepResult, row: SweepPoint, reference: int) -> list[RatioTable]:
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
        rows = tuple(
            RatioRow(
                label=f"{AXIS_NAMES[result.axis]} {load:g}" if load else "as the workload has it",
                card=card_for(metric),
                name=metric,
                values=tuple(
                    None if metric == EXPERTS and not model.is_moe else _value(metric, point, of)
                    for model, point in zip(result.models, cell, strict=True)
                ),
                ratios=tuple(column[i] for column in ratios),
            )
            for i, (load, cell) in enumerate(zip(loads, cells, strict=True))
        )
        tables.append(
            RatioTable(title=title + where, columns=names, rows=rows, reference=reference, folded=metric != COST)
        )
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
