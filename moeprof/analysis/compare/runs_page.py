"""The page for several runs: each against the reference, model by model, and what differs between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from moeprof.analysis.compare.agreement import Agreement
from moeprof.analysis.compare.agreement_page import agreement_section, agreement_sentence, agreements
from moeprof.analysis.compare.comparable import banners
from moeprof.analysis.compare.page import Page
from moeprof.analysis.compare.runs import MetricComparison, RunsComparison, run_tables
from moeprof.analysis.document import Doubt, FactTable, ModelColumn, RatioTable, Section
from moeprof.analysis.doubts import find_doubts
from moeprof.analysis.headline import banners as run_banners
from moeprof.analysis.headline import subtitle
from moeprof.analysis.report_facts import machine_section
from moeprof.analysis.summary import Summary

STATUSES = ("failed", "interrupted", "started", "done")


def runs_page(reference: Summary, others: Sequence[Summary], found: Sequence[RunsComparison]) -> Page:
    """Runs against the reference run; ``found`` stands in the order of ``others``."""
    summaries = (reference, *others)
    ladders = [agreements(reference, other) for other in others]
    twice = (agreement_section(one.other, told) for one, told in zip(found, ladders, strict=True))
    return Page(
        title=f"{' and '.join(one.other for one in found)} against {found[0].reference}",
        run=" ".join(summary.record.run for summary in summaries),
        status=min((summary.record.status for summary in summaries), key=STATUSES.index),
        started_at=str(reference.record.experiment.get("started_at", "")),
        headline=" ".join(_verdict(one, told) for one, told in zip(found, ladders, strict=True)),
        subtitle=subtitle(reference),
        notes=tuple(_notes(found, ladders)),
        banners=tuple(dict.fromkeys(_banners(summaries, found))),
        columns=tuple(_column(summary) for summary in summaries),
        reference=reference.record.run,
        tables=tuple(_named(table, one, len(found)) for one in found for table in run_tables(one)),
        sections=(
            *(section for section in twice if section is not None),
            _differences(found),
            *(_machine(summary) for summary in summaries),
        ),
        doubts=tuple(doubt for summary in summaries for doubt in _doubts(summary)),
        workload_text=str(reference.record.experiment.get("workload_text", "")),
    )


def _verdict(one: RunsComparison, ladders: dict[str, tuple[Agreement, ...]]) -> str:
    """One run in one sentence: the worst verdict of its gates, with the figure."""
    if one.is_same_run:
        return f"{one.other} and {one.reference} are the same run: every ratio is 1."
    ladder, gates = agreement_sentence(ladders), _judged(one)
    if not gates and ladder is not None:
        return ladder
    for kind, verb in (("worse", "is worse than"), ("better", "is better than")):
        own = [(name, gate) for name, gate in gates if gate.ratio.verdict == kind]
        if own:
            return f"{one.other} {verb} {one.reference}: {'; '.join(_said(*pair) for pair in own)}."
    if gates and all(gate.ratio.verdict == "no difference shown" for _, gate in gates):
        return f"No difference is shown between {one.other} and {one.reference}."
    undecided = [(name, gate) for name, gate in gates if gate.ratio.verdict != "no difference shown"]
    reason = next((gate.ratio.reason for _, gate in undecided if gate.ratio.reason), "no timed figure stands in both")
    text = f"Whether {one.other} differs from {one.reference} cannot be told: {reason}"
    shown = len(gates) - len(undecided)
    if not shown:
        return f"{text}."
    said = "; ".join(_said(*pair) for pair in undecided)
    return f"{text}, for {said}; in {shown} of {len(gates)} deciding figures no difference is shown."


def _notes(found: Sequence[RunsComparison], ladders: Sequence[dict[str, tuple[Agreement, ...]]]) -> list[str]:
    said = [text for one in found for text in _gates(one)]
    return said + [text for told in ladders if (text := agreement_sentence(told)) is not None]


def _gates(one: RunsComparison) -> list[str]:
    if one.is_same_run:
        return []
    return [f"{_said(name, gate)} ({gate.ratio.verdict})." for name, gate in _judged(one)]


def _judged(one: RunsComparison) -> list[tuple[str, MetricComparison]]:
    """Every model's deciding figures, decode before prefill."""
    gates = [(model.name, gate) for model in one.models for gate in model.gates]
    return sorted(gates, key=lambda pair: (pair[0], dict(pair[1].key[1]).get("phase", "")))


def _said(name: str, gate: MetricComparison) -> str:
    labels = dict(gate.key[1])
    what = " ".join(
        part for part in (labels.get("phase", ""), gate.name.removesuffix("_mean_s").replace("_", " ")) if part
    )
    ratio = gate.ratio
    if ratio.value is None:
        return f"{name}: {what} has no ratio"
    between = "" if ratio.low is None or ratio.high is None else f" [{ratio.low:.3f}, {ratio.high:.3f}]"
    return f"{name}: {what} {ratio.value:.3f}x{between}"


def _banners(summaries: Sequence[Summary], found: Sequence[RunsComparison]) -> list[str]:
    said = [text for one in found for text in banners(one.differences, one.allow)]
    for summary in summaries:
        said += [f"{summary.record.run}: {text}" for text in run_banners(summary)]
    for one in found:
        for run, names in ((one.reference, one.only_in_reference), (one.other, one.only_in_other)):
            if names:
                said.append(f"Only {run} has {', '.join(names)}, so nothing is said of it.")
    return said


def _column(summary: Summary) -> ModelColumn:
    names = ", ".join(model.name for model in summary.models)
    return ModelColumn(name=summary.record.run, status=summary.record.status, subtitle=names)


def _named(table: RatioTable, one: RunsComparison, runs: int) -> RatioTable:
    return replace(table, title=f"{one.other}: {table.title}") if runs > 1 else table


def _differences(found: Sequence[RunsComparison]) -> Section:
    rows = []
    for one in found:
        for difference in one.differences:
            label = difference.name.replace("_", " ") + (f" of {difference.model}" if difference.model else "")
            label = f"{one.other}: {label}" if len(found) > 1 else label
            rows.append((label, f"{difference.first} in the reference, {difference.second} in the other"))
    table = FactTable(title="What differs", rows=tuple(rows or [("nothing", "all facts of the runs are equal")]))
    return Section(name="differences", title="What differs between the runs", blocks=(table,))


def _machine(summary: Summary) -> Section:
    section = machine_section(summary)
    return replace(section, name=f"machine-{summary.record.run}", title=f"{summary.record.run}: {section.title}")


def _doubts(summary: Summary) -> list[Doubt]:
    run = summary.record.run
    return [replace(doubt, model=f"{run}: {doubt.model}" if doubt.model else run) for doubt in find_doubts(summary)]
