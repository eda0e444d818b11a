"""Models stepped in turn as a section of a page, beside what the same models took alone (METRICS section 1)."""

from __future__ import annotations

from collections.abc import Sequence

from moeprof.analysis.compare.comparable import why_incomparable
from moeprof.analysis.compare.lanes import (
    PHASES,
    LockstepPair,
    PairRatio,
    lockstep_pairs,
)
from moeprof.analysis.compare.ratios import cost_ratio
from moeprof.analysis.doubt import Doubt
from moeprof.analysis.metrics.summary import ModelSummary, Summary
from moeprof.analysis.metrics.sweep import to_metric
from moeprof.analysis.report.document import Paragraph, Row, Section, Table
from moeprof.analysis.report.tables import compared, metric_row
from moeprof.analysis.stats.bootstrap import Estimate
from moeprof.core import units
from moeprof.core.metric import MetricValue

HOW = (
    "The models were stepped in turn in one process, each step of one right after the same step of the others, so "
    "noise of the machine hits all alike. Below 1 the first-named is the faster one. Absolute figures come from models "
    "that ran alone."
)


def lockstep_section(summary: Summary) -> Section | None:
    """Ratios of step times, and whether they agree with the models' lone runs; None without such a measurement."""
    pairs = lockstep_pairs(summary.record)
    if not pairs:
        return None
    texts = [HOW, *(text for pair in pairs if (text := _checked(summary, pair)[0]))]
    tables = [_table(moe, [pair for pair in pairs if pair.moe == moe]) for moe in dict.fromkeys(p.moe for p in pairs)]
    return Section(
        name="lockstep", title="Stepped in turn", blocks=(*(Paragraph(text=text) for text in texts), *tables)
    )


def lockstep_metrics(pairs: Sequence[LockstepPair]) -> tuple[tuple[str, MetricValue], ...]:
    """``lockstep_ratio`` and its median sister by MoE, with the dense model, phase and load as labels."""
    found = []
    for pair in pairs:
        for phase, told in pair.phases.items():
            labels = {"against": pair.dense, "phase": phase or "all", "concurrency": str(pair.concurrency or "offline")}
            found.append((pair.moe, to_metric("lockstep_ratio", told.ratio, **labels)))
            found.append((pair.moe, to_metric("lockstep_median_ratio", told.median_ratio, **labels)))
    return tuple(found)


def lockstep_doubts(summary: Summary, pairs: Sequence[LockstepPair]) -> tuple[Doubt, ...]:
    """Where stepping in turn and running alone do not tell the same."""
    found = []
    for pair in pairs:
        text, agrees = _checked(summary, pair)
        if agrees is False:
            found.append(
                Doubt(code="lockstep_differs", flag="isolation", severity="warning", model=pair.moe, text=text)
            )
    return tuple(found)


def _checked(summary: Summary, pair: LockstepPair) -> tuple[str, bool | None]:
    """The ratio in turn beside the ratio of lone runs under the same load; None where the loads differ."""
    models = {model.name: model for model in summary.models}
    moe, dense, told = models.get(pair.moe), models.get(pair.dense), pair.phases.get(None)
    if moe is None or dense is None or told is None or told.ratio.value is None:
        return "", None
    if not _same_load(summary, moe, pair.concurrency) or why_incomparable(moe, dense) is not None:
        return "", None
    alone, interval = cost_ratio(moe, dense)
    text = (
        f"{pair.moe} against {pair.dense}: {ratio_text(told.ratio)} stepped in turn, "
        f"{ratio_text(Estimate(value=alone, low=interval and interval[0], high=interval and interval[1]))} alone"
    )
    if interval is None or told.ratio.low is None or told.ratio.high is None:
        return f"{text}.", None
    agrees = told.ratio.low <= interval[1] and interval[0] <= told.ratio.high
    return f"{text}; {'they agree' if agrees else _differ(summary, moe, pair)}.", agrees


def _differ(summary: Summary, moe: ModelSummary, pair: LockstepPair) -> str:
    """What may be behind it; which of the reasons it is was not measured."""
    schedule = (summary.record.experiment.get("schedules") or {}).get(moe.name) or {}
    asked, sent = schedule.get("num_requests"), pair.num_requests
    few = f", and only the first {sent} of {asked} requests were sent" if sent and asked and sent < asked else ""
    return f"they differ beyond their intervals; in turn, each model finds the caches cold{few}"


def _same_load(summary: Summary, moe: ModelSummary, concurrency: int | None) -> bool:
    schedule = (summary.record.experiment.get("schedules") or {}).get(moe.name) or {}
    closed = schedule.get("concurrency") if schedule.get("pattern") == "closed" else None
    return concurrency == closed


def ratio_text(ratio: Estimate) -> str:
    """``0.61x [0.58, 0.64]``."""
    if ratio.value is None:
        return f"n/a ({ratio.reason})"
    between = "" if ratio.low is None or ratio.high is None else f" [{ratio.low:.2f}, {ratio.high:.2f}]"
    return f"{ratio.value:.2f}x{between}"


def _table(moe: str, pairs: Sequence[LockstepPair]) -> Table:
    columns = tuple(dict.fromkeys(pair.dense for pair in pairs))
    rows = []
    for concurrency in dict.fromkeys(pair.concurrency for pair in pairs):
        own = {pair.dense: pair for pair in pairs if pair.concurrency == concurrency}
        for phase in PHASES:
            told = [own[name].phases.get(phase) if name in own else None for name in columns]
            if any(told):
                load = "all at once" if concurrency is None else f"{concurrency} in flight"
                rows += _rows(f"{phase or 'all steps'}, {load}", told)
    return compared(f"Step time of {moe} over that of", columns, rows)


def _rows(label: str, told: Sequence[PairRatio | None]) -> list[Row]:
    rows = []
    for name, title in (("lockstep_ratio", label), ("lockstep_median_ratio", f"{label}, median step")):
        values = []
        for pair in told:
            ratio = None if pair is None else pair.ratio if name == "lockstep_ratio" else pair.median_ratio
            values.append(None if ratio is None else to_metric(name, ratio))
        rows.append(metric_row(title, name, values))
    return rows


def parameters_text(value: float) -> str:
    """``4.1 M parameters``."""
    return f"{units.count(value)} parameters"
