"""The sparsity ladder as a section of a page: the answer in words, waterfalls, rungs, taxes, the coverage line."""

from __future__ import annotations

from collections.abc import Sequence

from moeprof.analysis.cards import card_for
from moeprof.analysis.compare.estimate import Estimate
from moeprof.analysis.compare.ladder import LadderResult, Rung, control, ladders
from moeprof.analysis.compare.ladder_tables import (
    ROLES,
    coverage_blocks,
    ladder_tables,
    load_text,
)
from moeprof.analysis.document import (
    Block,
    Paragraph,
    Section,
    Waterfall,
    WaterfallStep,
)
from moeprof.analysis.pricing import Pricing
from moeprof.core import units
from moeprof.core.record import Record

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


def ladder_results(record: Record) -> tuple[LadderResult, ...]:
    """Every ladder of a run; empty without one."""
    return ladders(record.ladder, num_moe_layers=_num_moe_layers(record)) if record.ladder else ()


def ladder_section(record: Record, pricing: Pricing) -> Section | None:
    """The sparsity ladder; None for a run without one."""
    results = ladder_results(record)
    if not results:
        return None
    blocks: list[Block] = [Paragraph(text=HOW)]
    blocks += [Paragraph(text=text) for text in (*sentences(results), *controls(results))]
    blocks += [Paragraph(text=note) for note in (*_disturbed(results), *_notes(record))]
    blocks += [chart for result in results if result.phase in ("decode", "prefill") for chart in _waterfall(result)]
    blocks += coverage_blocks(results)
    blocks += ladder_tables(results, pricing)
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
            parts.append(f"{label} cannot be told from 0")
        else:
            text = f"{label} {'takes' if tax.seconds.value > 0 else 'gains'} {_share(tax.share)}"
            parts.append(text + _of_which(result) if name == "dispatch_tax_s" else text)
    saved = result.tax("sparsity_saved_s")
    if saved.share.value is not None:
        parts.append(f"the total-matched dense model takes {_times(saved.share)} as long")
    where = f"{result.phase}, {load_text(result)}"
    if result.phase == "decode" and result.concurrency is not None and result.tokens_per_step < result.concurrency:
        where += f" ({result.tokens_per_step:.1f} tokens a step)"
    return f"{where}: of a step of {units.display(base.seconds.value, 's')} {'; '.join(parts)}." if parts else None


def controls(results: Sequence[LadderResult]) -> list[str]:
    """Where two rungs do the same work, at one token a step, and were nevertheless measured apart."""
    found = []
    for result in results:
        tax = control(result)
        if tax is not None and tax.share.value is not None:
            found.append(
                f"Control, {result.phase}, {load_text(result)}: the balanced and the recorded rung do the same work "
                f"there and were measured {_share(tax.share)} of a step apart. Lanes differ in where their memory "
                "lies, which no interval of one launch holds: no tax of that size is claimed."
            )
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
        f"Seconds of one {result.phase} step, {load_text(result)}, {result.tokens_per_step:.1f} tokens a step; "
        f"{result.num_steps:,} turns. Pale changes cannot be told from 0."
    )
    name = f"ladder-{result.phase}-{result.concurrency or 'offline'}"
    title = f"Where the step time goes: {result.phase}, {load_text(result)}"
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
    set_aside = {load_text(result): result.set_aside for result in results if result.set_aside}
    return [
        f"{load}: {number} turns were set aside, because the machine took the processor away in one of their lanes."
        for load, number in set_aside.items()
    ]


def _num_moe_layers(record: Record) -> int:
    """Of the MoE that the ladder ran."""
    lanes = [lane for one in record.ladder for lane in one.lanes]
    names = [lane.get("model") for lane in lanes if lane.get("rung") != "dense"]
    counts = [len(model.facts.get("moe_layers", ())) for model in record.models if model.name in names]
    return max(counts, default=0)


def _notes(record: Record) -> list[str]:
    """What capture said, and where the rounds alone were routed in another way: the ladder records the own router."""
    names = {lane.get("model") for one in record.ladder for lane in one.lanes if lane.get("rung") == "recorded"}
    policies = [(m.name, m.facts.get("routing_policy", "native")) for m in record.models if m.name in names]
    other = [
        f"The ladder climbs the routing of {name}'s own router; its runs alone were routed by policy {policy}."
        for name, policy in policies
        if policy != "native"
    ]
    return [*other, *dict.fromkeys(str(note) for one in record.ladder for note in one.info.get("notes", ()))]
