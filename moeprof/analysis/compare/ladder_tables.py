"""The sparsity ladder in figures: metrics, tables of rungs and taxes, and the line of step time against experts."""

from __future__ import annotations

from collections.abc import Sequence

from moeprof.analysis.cards import card_for
from moeprof.analysis.compare.ladder import LadderResult, Rung, usd_per_1m_tokens
from moeprof.analysis.compare.sweep_points import to_metric
from moeprof.analysis.document import Block, Chart, Paragraph, RatioRow, RatioTable, Series
from moeprof.analysis.pricing import Pricing
from moeprof.core import units
from moeprof.core.metric import MetricValue

ROLES = {
    "active": "dense, active-matched",
    "concentrated": "MoE, all tokens to the same experts",
    "balanced": "MoE, as many experts as recorded, even load",
    "recorded": "MoE, recorded routing",
    "total": "dense, total-matched",
    "native": "MoE, its own router (beside the ladder)",
}
DOLLARS = {
    "dispatch_tax_s": "dispatch_tax_usd_per_1m_tokens",
    "coverage_tax_s": "coverage_tax_usd_per_1m_tokens",
    "imbalance_tax_s": "imbalance_tax_usd_per_1m_tokens",
    "sparsity_saved_s": "sparsity_saved_usd_per_1m_tokens",
}


def ladder_metrics(results: Sequence[LadderResult], pricing: Pricing) -> tuple[MetricValue, ...]:
    """Every tax, with phase and concurrency as labels; what was not measured has its reason."""
    found = []
    for result in results:
        labels = labels_of(result)
        for tax in result.taxes:
            found.append(to_metric(tax.name, tax.seconds, **labels))
            if tax.name in DOLLARS:
                dollars = usd_per_1m_tokens(tax.seconds, result.tokens_per_step, pricing)
                found.append(to_metric(DOLLARS[tax.name], dollars, **labels))
        found.append(to_metric("sparsity_realised_ratio", result.realised, **labels, measured="lock-step"))
        found.append(to_metric("seconds_per_distinct_expert", result.coverage.slope, **labels))
    return tuple(found)


def labels_of(result: LadderResult) -> dict[str, str]:
    """Phase and load, as metric labels."""
    return {"phase": result.phase, "concurrency": str(result.concurrency or "offline")}


def load_text(result: LadderResult) -> str:
    """The load, for people."""
    return "all at once" if result.concurrency is None else f"{result.concurrency} in flight"


def coverage_blocks(results: Sequence[LadderResult]) -> list[Block]:
    """Step time against distinct experts, where rungs set their number."""
    drawn = [r for r in results if r.phase == "decode" and len(r.coverage.points) > 2]
    if not drawn:
        return []
    series = tuple(
        Series(
            name=load_text(result),
            x=tuple(point.distinct_per_layer for point in result.coverage.points),
            y=tuple(point.seconds.value or 0.0 for point in result.coverage.points),
        )
        for result in drawn
    )
    blocks: list[Block] = []
    for result in drawn:
        slope = result.coverage.slope
        if slope.value is None or slope.low is None or slope.high is None:
            continue
        grows = "so coverage costs time" if slope.low > 0 else "so no cost of coverage is shown"
        text = (
            f"decode, {load_text(result)}: one more distinct expert in every layer takes "
            f"{units.display(slope.value, 's')} a step [{units.interval(slope.low, slope.high, 's')}], {grows}."
        )
        blocks.append(Paragraph(text=text))
    chart = Chart(
        name="coverage",
        title="What one more expert costs",
        caption="Seconds of a decode step against the experts that its tokens share out evenly; the batch is the same.",
        x_label="distinct experts per layer and step",
        x_unit="experts",
        y_label="step time",
        y_unit="s",
        series=series,
    )
    return [*blocks, chart]


def ladder_tables(results: Sequence[LadderResult], pricing: Pricing) -> list[Block]:
    """Seconds of every rung, and every tax, one column per load and phase."""
    columns = tuple(f"{result.phase}, {load_text(result)}" for result in results)
    rungs = [_rung_row(role, title, [result.rung(role) for result in results]) for role, title in ROLES.items()]
    rungs += _set_by_hand(results)
    metrics = [{value.name: value for value in ladder_metrics([result], pricing)} for result in results]
    rows = [_metric_row(name, [one.get(name) for one in metrics]) for name in metrics[0]]
    return [
        RatioTable(title=title, columns=columns, rows=tuple(row for row in found if row is not None), folded=folded)
        for title, found, folded in (("Seconds per step of each rung", rungs, False), ("Taxes", rows, True))
    ]


def _set_by_hand(results: Sequence[LadderResult]) -> list[RatioRow | None]:
    """The rungs whose number of distinct experts the workload gave, by lane."""
    lanes = dict.fromkeys(r.name for result in results for r in result.rungs if r.role == "distinct")
    rows = []
    for lane in lanes:
        rungs = [next((r for r in result.rungs if r.name == lane), None) for result in results]
        touched = [r.distinct_per_layer for r in rungs if r is not None and r.distinct_per_layer is not None]
        span = (
            " to ".join(units.significant(n) for n in dict.fromkeys((min(touched), max(touched)))) if touched else "?"
        )
        rows.append(_rung_row("distinct", f"MoE, picks by hand ({lane}): {span} experts per layer", rungs))
    return rows


def _rung_row(role: str, title: str, rungs: Sequence[Rung | None]) -> RatioRow | None:
    if not any(rungs):
        return None
    values = [None if rung is None else to_metric("rung_step_s", rung.seconds, rung=role) for rung in rungs]
    return _row(title, "rung_step_s", values)


def _metric_row(name: str, values: Sequence[MetricValue | None]) -> RatioRow | None:
    return _row(card_for(name).title, name, values)


def _row(label: str, name: str, values: Sequence[MetricValue | None]) -> RatioRow:
    return RatioRow(label=label, card=card_for(name), name=name, values=tuple(values), ratios=(None,) * len(values))
