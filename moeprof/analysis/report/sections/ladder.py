"""The sparsity ladder as a section of a page: the answer in words, waterfalls, rungs, taxes, the coverage line.

The sparsity ladder in figures: metrics, tables of rungs and taxes, and the line of step time against experts.

Two runs of one sparsity ladder on a page: every tax beside itself, and whether they agree.
"""

from __future__ import annotations

from collections.abc import Sequence

from moeprof.analysis.metrics.cards import card_for
from moeprof.analysis.metrics.summary import Summary
from moeprof.analysis.metrics.sweep.points import to_metric
from moeprof.analysis.report.document import (
    Block,
    Chart,
    Paragraph,
    Row,
    Section,
    Series,
    Waterfall,
    WaterfallStep,
)
from moeprof.analysis.report.sections.lockstep import NO_OFFSET, offset_text
from moeprof.analysis.report.tables import compared, facts, metric_row
from moeprof.analysis.sparsity.ladder import (
    Agreement,
    LadderResult,
    Rung,
    ladder_cache_note,
    ladder_metrics,
    ladder_results,
    same_taxes,
)
from moeprof.analysis.sparsity.roles import load_text
from moeprof.analysis.stats.estimate import Estimate
from moeprof.core import units
from moeprof.core.pricing import Pricing
from moeprof.core.record.layout import Record

ROLES = {
    "active": "dense, active-matched",
    "concentrated": "MoE, all tokens to the same experts",
    "balanced": "MoE, as many experts as recorded, even load",
    "recorded": "MoE, recorded routing",
    "total": "dense, total-matched",
    "native": "MoE, its own router (beside the ladder)",
}


def coverage_blocks(results: Sequence[LadderResult]) -> list[Block]:
    """Step time against distinct experts, where rungs set their number."""
    drawn = [r for r in results if r.phase == "decode" and len(r.coverage.points) > 2]
    if not drawn:
        return []
    series = tuple(
        Series(
            name=load_text(result.concurrency),
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
            f"decode, {load_text(result.concurrency)}: one more distinct expert in every layer takes "
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


def ladder_tables(results: Sequence[LadderResult], pricing: Pricing, note: str | None = None) -> list[Block]:
    """Seconds of every rung, and every tax, one column per load and phase; ``note``: on realised shares."""
    columns = tuple(f"{result.phase}, {load_text(result.concurrency)}" for result in results)
    rungs = [_rung_row(role, title, [result.rung(role) for result in results]) for role, title in ROLES.items()]
    rungs += _set_by_hand(results)
    metrics = [{value.name: value for value in ladder_metrics([result], pricing, note)} for result in results]
    rows = [metric_row(card_for(name).title, name, [one.get(name) for one in metrics]) for name in metrics[0]]
    return [
        compared(title, columns, [row for row in found if row is not None], folded=folded)
        for title, found, folded in (("Seconds per step of each rung", rungs, False), ("Taxes", rows, True))
    ]


def _set_by_hand(results: Sequence[LadderResult]) -> list[Row | None]:
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


def _rung_row(role: str, title: str, rungs: Sequence[Rung | None]) -> Row | None:
    if not any(rungs):
        return None
    values = [None if rung is None else to_metric("rung_step_s", rung.seconds, rung=role) for rung in rungs]
    return metric_row(title, "rung_step_s", values)


HOW = (
    "All rungs ran the same steps in turn, each one change from the one before. Dispatch: what an MoE takes over a "
    "dense model of its active size when all tokens go to the same experts. Coverage: the tokens of a step choose "
    "different experts, so more weights are read. Imbalance: some experts get more tokens than others; it may be a "
    "gain. Saved: what a dense model with all the experts' width would take more."
)
CHANGES = (
    ("dispatch_tax_s", "dispatch", "concentrated"),
    ("coverage_tax_s", "coverage", "balanced"),
    ("imbalance_tax_s", "imbalance", "recorded"),
    ("sparsity_saved_s", "saved", "total"),
)


NOTHING_BELOW = (
    "No tax is claimed whose interval holds 0 with that. More launches and more rungs (`distinct`) narrow it."
)


def ladder_section(record: Record, pricing: Pricing) -> Section | None:
    """The sparsity ladder; None for a run without one."""
    results = ladder_results(record)
    if not results:
        return None
    blocks: list[Block] = [Paragraph(text=HOW)]
    offset, note = results[0].offset, ladder_cache_note(record)
    offsets = f"{NO_OFFSET}." if offset is None else f"{offset_text(offset)}. {NOTHING_BELOW}"
    blocks += [Paragraph(text=text) for text in (*sentences(results), *realised_sentences(results, note), offsets)]
    blocks += [Paragraph(text=note) for note in (*_disturbed(results), *_notes(record))]
    blocks += [chart for result in results if result.phase in ("decode", "prefill") for chart in _waterfall(result)]
    blocks += coverage_blocks(results)
    blocks += ladder_tables(results, pricing, note)
    return Section(name="ladder", title="The sparsity ladder", blocks=tuple(blocks))


def sentences(results: Sequence[LadderResult]) -> list[str]:
    """One line per load in decode (and prefill): what each change costs as a share of the step."""
    return [text for result in results if result.phase in ("decode", "prefill") and (text := _sentence(result))]


def _sentence(result: LadderResult) -> str | None:
    base = result.rung("recorded")
    if base is None or not base.seconds.value:
        return None
    parts = []
    for name, label, _ in CHANGES[:3]:
        tax = result.tax(name)
        if tax.seconds.value is None:
            continue
        if not tax.told:
            parts.append(f"{label} is not distinguishable from 0")
        else:
            text = f"{label} {'takes' if tax.seconds.value > 0 else 'gains'} {_share(tax.share)}"
            parts.append(text + _of_which(result) if name == "dispatch_tax_s" else text)
    saved = result.tax("sparsity_saved_s")
    if saved.share.value is not None and not saved.told:
        parts.append("the total-matched dense model is not distinguishable from it")
    elif saved.share.value is not None:
        parts.append(f"the total-matched dense model takes {_times(saved.share)} as long")
    where = f"{result.phase}, {load_text(result.concurrency)}"
    if result.phase == "decode" and result.concurrency is not None and result.tokens_per_step < result.concurrency:
        where += f" ({result.tokens_per_step:.1f} tokens a step)"
    return f"{where}: of a step of {units.display(base.seconds.value, 's')} {'; '.join(parts)}." if parts else None


def realised_sentences(results: Sequence[LadderResult], note: str | None) -> list[str]:
    """One line per load in all steps: which share of the saving between the two dense twins is realised."""
    found = []
    for result in results:
        if result.phase == "all" and result.realised.value is not None:
            text = f"all steps, {load_text(result.concurrency)}, stepped in turn: of the saving between the two dense "
            text += f"twins {_text(result.realised)} is realised"
            found.append(f"{text}; {note}." if note else f"{text}.")
    return found


def _of_which(result: LadderResult) -> str:
    """Rungs are overridden and the dense twin is not, so the override's cost is a part of dispatch."""
    override = result.tax("override_cost_s")
    if not override.told or override.seconds.value is None or override.seconds.value < 0:
        return ""
    return f" (of which setting the picks by hand {_share(override.share)})"


def _share(share: Estimate) -> str:
    """A share of the recorded rung's step, without its sign: ``37 % [30, 44]``."""
    assert share.value is not None
    between = ""
    if share.low is not None and share.high is not None:
        low, high = sorted((abs(share.low), abs(share.high)))
        between = f" [{units.significant(100 * low)}, {units.significant(100 * high)}]"
    return f"{units.significant(100 * abs(share.value))} %{between}"


def _times(share: Estimate) -> str:
    """A difference as a share of the recorded rung, as a multiple of it: ``4.4x [4.1, 4.7]``."""
    assert share.value is not None
    between = "" if share.low is None or share.high is None else f" [{1 + share.low:.2f}, {1 + share.high:.2f}]"
    return f"{1 + share.value:.2f}x{between}"


def _waterfall(result: LadderResult) -> list[Block]:
    """Active-matched, then what dispatch, coverage and imbalance add, then what the total-matched model takes."""
    levels = {role: result.rung(role) for role in ("active", "recorded", "total", "concentrated", "balanced")}
    steps: list[WaterfallStep] = []
    first = levels["active"] or levels["concentrated"]
    if first is None or first.seconds.value is None or levels["recorded"] is None:
        return []
    steps.append(_level(first))
    for name, label, _ in CHANGES[:3]:
        if name == "dispatch_tax_s" and levels["active"] is None:
            continue
        steps += _change(result, name, label)
    steps.append(_level(levels["recorded"]))
    if levels["total"] is not None:
        steps += [*_change(result, "sparsity_saved_s", "saved"), _level(levels["total"])]
    caption = (
        f"Seconds of one {result.phase} step, {load_text(result.concurrency)}, {result.tokens_per_step:.1f} tokens a "
        f"step; {result.num_steps:,} turns. Pale changes is not distinguishable from 0."
    )
    name = f"ladder-{result.phase}-{result.concurrency or 'offline'}"
    title = f"Where the step time goes: {result.phase}, {load_text(result.concurrency)}"
    return [Waterfall(name=name, title=title, caption=caption, unit="s", steps=tuple(steps))]


def _level(rung: Rung) -> WaterfallStep:
    assert rung.seconds.value is not None
    label = {
        "active": "active-matched",
        "concentrated": "MoE, same experts",
        "recorded": "MoE",
        "total": "total-matched",
    }
    text = ROLES[rung.role]
    if rung.distinct_per_layer is not None:
        text += f", {units.significant(rung.distinct_per_layer)} distinct experts per layer"
    return WaterfallStep(
        label=label[rung.role], kind="level", value=rung.seconds.value, low=rung.seconds.low, high=rung.seconds.high,
        text=text,
    )  # fmt: skip


def _change(result: LadderResult, name: str, label: str) -> list[WaterfallStep]:
    tax = result.tax(name)
    if tax.seconds.value is None:
        return []
    return [
        WaterfallStep(
            label=label, kind="change", value=tax.seconds.value, low=tax.seconds.low, high=tax.seconds.high,
            told=tax.told, text=tax.note or card_for(name).formula,
        )
    ]  # fmt: skip


def _disturbed(results: Sequence[LadderResult]) -> list[str]:
    """What the machine took away; a phase counts the turns of its whole load, so each load is said once."""
    set_aside = {load_text(result.concurrency): result.set_aside for result in results if result.set_aside}
    return [
        f"{load}: {number} turns were set aside, because the machine took the processor away in one of their lanes."
        for load, number in set_aside.items()
    ]


def _notes(record: Record) -> list[str]:
    """What capture said, and where the rounds alone were routed in another way: the ladder records the own router."""
    names = {lane.model for one in record.ladder for lane in one.info.lanes if lane.rung == "recorded"}
    policies = [(m.name, m.facts.routing_policy) for m in record.models if m.name in names and m.facts]
    other = [
        f"The ladder climbs the routing of {name}'s own router; its runs alone were routed by policy {policy}."
        for name, policy in policies
        if policy != "native"
    ]
    return [*other, *dict.fromkeys(note for one in record.ladder for note in one.info.notes)]


HOW_AGREEMENT = (
    "Taxes as shares of the step with recorded routing, reference first. They agree where the interval of their "
    "difference holds 0; intervals hold steps and lane offsets of one launch each."
)


def agreements(reference: Summary, other: Summary) -> dict[str, tuple[Agreement, ...]]:
    """What two runs' ladders say of each load and phase that both measured; empty where one has no ladder."""
    first = {_title(result): result for result in ladder_results(reference.record)}
    second = {_title(result): result for result in ladder_results(other.record)}
    return {title: same_taxes(first[title], second[title]) for title in first if title in second}


def agreement_sentence(found: dict[str, tuple[Agreement, ...]]) -> str | None:
    """How many taxes agree; None without two ladders."""
    told = [one for taxes in found.values() for one in taxes if one.agree is not None]
    if not told:
        return None
    apart = [
        f"{card_for(one.name).title} ({title})" for title, taxes in found.items() for one in taxes if one.agree is False
    ]
    tail = f"; apart are {', '.join(apart)}" if apart else ""
    return f"The two ladders agree in {len(told) - len(apart)} of {len(told)} figures{tail}."


def agreement_section(other: str, found: dict[str, tuple[Agreement, ...]]) -> Section | None:
    """Every tax of both runs; None without two ladders."""
    if not found:
        return None
    tables = [facts(title, [_agreement_row(one) for one in taxes]) for title, taxes in found.items()]
    return Section(
        name=f"ladders-{other}", title=f"The sparsity ladder, {other} beside the reference",
        blocks=(Paragraph(text=HOW_AGREEMENT), *tables),
    )  # fmt: skip


def _title(result: LadderResult) -> str:
    return f"{result.phase}, {load_text(result.concurrency)}"


def _agreement_row(one: Agreement) -> tuple[str, str]:
    verdict = {True: "agree", False: "apart", None: f"cannot tell ({one.difference.reason})"}[one.agree]
    return card_for(one.name).title, f"{_text(one.first)} and {_text(one.second)}: {verdict}"


def _text(share: Estimate) -> str:
    if share.value is None:
        return "n/a"
    ends: Sequence[float] = [100 * end for end in (share.low, share.high) if end is not None]
    between = f" [{', '.join(units.significant(end) for end in ends)}]" if ends else ""
    return f"{units.significant(100 * share.value)} %{between}"
