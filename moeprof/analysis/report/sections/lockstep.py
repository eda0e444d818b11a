"""Models stepped in turn as a section of a page, beside what the same models took alone."""

from __future__ import annotations

from collections.abc import Sequence

from moeprof.analysis.compare.comparable import why_incomparable
from moeprof.analysis.compare.lanes import (
    PHASES,
    LaneOffset,
    LockstepPair,
    lockstep_pairs,
)
from moeprof.analysis.compare.models import cost_ratio
from moeprof.analysis.doubt import Doubt
from moeprof.analysis.metrics.summary import ModelSummary, Summary
from moeprof.analysis.metrics.sweep.points import to_metric
from moeprof.analysis.report.document import Paragraph, Row, Section, Table
from moeprof.analysis.report.tables import compared, metric_row
from moeprof.analysis.stats.estimate import Estimate
from moeprof.core import units

HOW = (
    "The models were stepped in turn in one process, each step of one right after the same step of the others, so "
    "noise of the machine hits all alike. Below 1 the first-named is the faster one. Absolute figures come from models "
    "that ran alone."
)
NO_OFFSET = (
    "No lanes of this run did the same work, so how much lanes differ for no reason of theirs (where their memory "
    "lies) is not known and not in these intervals; a ladder with one request in flight measures it"
)


def lockstep_section(summary: Summary) -> Section | None:
    """Ratios of step times, and whether they agree with the models' lone runs; None without such a measurement."""
    pairs = lockstep_pairs(summary.record)
    if not pairs:
        return None
    texts = [HOW, _offset(pairs[0].offset), *(text for pair in pairs if (text := _checked(summary, pair)[0]))]
    tables = [_table(moe, [pair for pair in pairs if pair.moe == moe]) for moe in dict.fromkeys(p.moe for p in pairs)]
    return Section(
        name="lockstep", title="Stepped in turn", blocks=(*(Paragraph(text=text) for text in texts), *tables)
    )


def _offset(offset: LaneOffset | None) -> str:
    return f"{NO_OFFSET}." if offset is None else f"{offset_text(offset)}."


def offset_text(offset: LaneOffset) -> str:
    """``7 rungs of the ladder did the same work with 1 in flight ... and differ by 0.94 % of a step ...``."""
    load = "all at once" if offset.concurrency is None else f"{offset.concurrency} in flight"
    launches = f" of {offset.num_launches} launches" if offset.num_launches > 1 else ""
    return (
        f"{len(offset.lanes)} rungs of the ladder did the same work with {load} ({offset.num_turns:,} turns{launches}; "
        f"all tokens on the same experts) and differ by {units.significant(100 * offset.sd, 2)} % of a step (standard "
        f"deviation): lanes differ in where their memory lies, which no number of turns tells. Two lanes of the same "
        f"length differ by up to {units.significant(100 * offset.half_width, 2)} % of a step (95 %) for that reason "
        "alone, and every interval here holds it"
    )


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
    moe, dense, told = models.get(pair.moe), models.get(pair.dense), pair.ratios.get(None)
    if moe is None or dense is None or told is None or told.value is None:
        return "", None
    if not _same_load(summary, moe, pair.concurrency) or why_incomparable(moe, dense) is not None:
        return "", None
    alone = cost_ratio(summary, moe, dense)
    text = f"{pair.moe} against {pair.dense}: {ratio_text(told)} stepped in turn, {ratio_text(alone)} alone"
    if alone.low is None or alone.high is None or told.low is None or told.high is None:
        return f"{text}.", None
    agrees = told.low <= alone.high and alone.low <= told.high
    return f"{text}; {'they agree' if agrees else _differ(summary, moe, pair)}.", agrees


def _differ(summary: Summary, moe: ModelSummary, pair: LockstepPair) -> str:
    """What may be behind it; which of the reasons it is was not measured."""
    asked, sent = summary.record.schedule(moe.name).num_requests, pair.num_requests
    few = f", and only the first {sent} of {asked} requests were sent" if sent and asked and sent < asked else ""
    return f"they differ beyond their intervals; in turn, each model finds the caches cold{few}"


def _same_load(summary: Summary, moe: ModelSummary, concurrency: int | None) -> bool:
    schedule = summary.record.schedule(moe.name)
    closed = schedule.concurrency if schedule.pattern == "closed" else None
    return concurrency == closed


def ratio_text(ratio: Estimate) -> str:
    """``0.612x [0.581, 0.643]``, with the digits of the tables."""
    if ratio.value is None:
        return f"n/a ({ratio.reason})"
    ends = "" if ratio.low is None or ratio.high is None else f" [{_bare(ratio.low)}, {_bare(ratio.high)}]"
    return f"{units.times(ratio.value)}{ends}"


def _bare(ratio: float) -> str:
    return units.times(ratio).removesuffix("x")


def _table(moe: str, pairs: Sequence[LockstepPair]) -> Table:
    columns = tuple(dict.fromkeys(pair.dense for pair in pairs))
    rows = []
    for concurrency in dict.fromkeys(pair.concurrency for pair in pairs):
        own = {pair.dense: pair for pair in pairs if pair.concurrency == concurrency}
        for phase in PHASES:
            told = [own.get(name) if name in own and phase in own[name].ratios else None for name in columns]
            if any(told):
                load = "all at once" if concurrency is None else f"{concurrency} in flight"
                label = f"{phase or 'all steps'}, {load}"
                rows.append(_row("lockstep_ratio", label, [p if p is None else p.ratios[phase] for p in told]))
                medians = [p if p is None else p.medians[phase] for p in told]
                rows.append(_row("lockstep_median_ratio", f"{label}, median step", medians))
    return compared(f"Step time of {moe} over that of", columns, rows)


def _row(name: str, label: str, ratios: Sequence[Estimate | None]) -> Row:
    return metric_row(label, name, [None if ratio is None else to_metric(name, ratio) for ratio in ratios])


def parameters_text(value: float) -> str:
    """``4.1 M parameters``."""
    return f"{units.count(value)} parameters"
