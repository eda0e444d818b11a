"""Theory beside measurement as a section of a page: work and time per token of each model by phase, and ratios."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from moeprof.analysis.metrics.sweep.points import to_metric
from moeprof.analysis.metrics.tables import ALL
from moeprof.analysis.report.document import Block, Paragraph, Row, Section, Table
from moeprof.analysis.report.tables import compared, metric_row
from moeprof.analysis.sparsity.theory import (
    PHASES,
    PhaseWork,
    Speedup,
    computed_work,
    missing_twins,
    one_token_steps,
    pairs,
    phase_work,
    theoretical_speedups,
)
from moeprof.analysis.stats.estimate import Estimate, Ratio
from moeprof.core.metric import MetricValue

if TYPE_CHECKING:
    from moeprof.analysis.metrics.summary import ModelSummary, Summary

HOW = (
    "Bound by counting is what FLOPs and bytes of the steps that ran say, and the least time that the device's "
    "measured peaks allow for them. Measured is the time of the same steps. Ratios are to the MoE; above 1 the MoE "
    "should be, or was, the faster one. A least time is a limit for its own model alone: the ratio of two of them is "
    "none for the measured ratio, because one model may run further from its limit than the other."
)
ROWS = (
    ("FLOPs per token", "flops_per_token", "flops"),
    ("bytes moved per token", "bytes_per_token", "num_bytes"),
    ("roofline time per token", "roofline_s_per_token", "roofline"),
    ("measured time per token", "step_s_per_token", "measured"),
)
OVER_LEAST = "measured over its own least time"
PARAMETERS = (("active parameters", "active_params"), ("total parameters", "total_params"))


def theory_section(summary: Summary) -> Section | None:
    """What counting says and what was measured; None without a measured MoE."""
    speedups = theoretical_speedups(summary)
    blocks: list[Block] = [Paragraph(text=text) for text in sentences(speedups)]
    blocks += [Paragraph(text=f"{one.text}.") for one in one_token_steps(summary)]
    for moe, others in pairs(summary):
        for phase in PHASES:
            table = _table(moe, others, phase, [s for s in speedups if s.moe == moe.name and s.phase == phase])
            if table is not None:
                blocks.append(table)
    if not blocks:
        return None
    return Section(name="theory", title="Theory beside measurement", blocks=(Paragraph(text=HOW), *blocks))


def sentences(speedups: Sequence[Speedup]) -> list[str]:
    """One line per pair and pure phase, measured pairs first; all steps together only where no phase is pure."""
    pure = {(s.moe, s.dense) for s in speedups if s.phase != ALL}
    told = [s for s in speedups if s.phase != ALL or (s.moe, s.dense) not in pure]
    told.sort(key=lambda s: s.measured.value is None)
    lines = []
    for one in told:
        phase = "" if one.phase == ALL else f" in {one.phase}"
        lines.append(f"{one.moe} against {one.dense}{phase}: {one.text}.")
    return lines


def _table(
    moe: ModelSummary, others: tuple[ModelSummary, ...], phase: str, speedups: Sequence[Speedup]
) -> Table | None:
    mine = phase_work(moe, phase)
    if mine is None or not speedups:
        return None
    columns = [mine, *(work for other in others if (work := phase_work(other, phase)) is not None)]
    computed = (computed_work(moe, match, phase) for match in missing_twins(moe, others))
    columns += [work for work in computed if work is not None]
    ratios = {one.dense: one for one in speedups}
    rows = [_row(label, name, field, columns, ratios) for label, name, field in ROWS]
    over = [to_metric("time_over_roofline_ratio", column.over_least) for column in columns]
    rows.append(metric_row(OVER_LEAST, "time_over_roofline_ratio", over))
    rows += _in_turn(columns, ratios)
    if phase == ALL:
        rows += [_parameters(label, name, columns, ratios) for label, name in PARAMETERS]
    title = "all steps" if phase == ALL else f"{phase} steps"
    names = [column.model for column in columns]
    return compared(f"{moe.name}: {title}", names, rows, folded=phase != "decode")


def _row(label: str, name: str, field: str, columns: Sequence[PhaseWork], ratios: dict[str, Speedup]) -> Row:
    own = columns[0].model
    values = [to_metric(name, getattr(column, name)) for column in columns]
    return metric_row(
        label, name, values, [None if c.model == own else _ratio(getattr(ratios[c.model], field)) for c in columns]
    )


def _in_turn(columns: Sequence[PhaseWork], ratios: dict[str, Speedup]) -> list[Row]:
    """What lock-step says of the same pairs, where it was measured at this load."""
    name = "measured_speedup"
    values = tuple(
        to_metric(name, ratios[c.model].in_turn) if c.model in ratios and ratios[c.model].in_turn.value else None
        for c in columns
    )
    if not any(values):
        return []
    label = "measured speedup, stepped in turn"
    return [metric_row(label, name, values)]


def _parameters(label: str, name: str, columns: Sequence[PhaseWork], ratios: dict[str, Speedup]) -> Row:
    own = columns[0].model
    values = [MetricValue(name=name, value=getattr(c, name), exact=True) for c in columns]
    return metric_row(
        label, name, values, [None if c.model == own else Ratio(value=getattr(ratios[c.model], name)) for c in columns]
    )


def _ratio(estimate: Estimate) -> Ratio:
    return Ratio(value=estimate.value, low=estimate.low, high=estimate.high, reason=estimate.reason)
