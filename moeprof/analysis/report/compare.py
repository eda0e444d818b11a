"""The page of ``moeprof compare``: models of one run beside each other, or runs against a reference run.

For one run the answer, every metric with its ratio, theory, ladder, load, memory, variance, quality; for several each
against the reference, model by model, and what differs. Figures that everybody asks for stand before every metric.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from moeprof.analysis.compare.comparable import banners as difference_banners
from moeprof.analysis.compare.comparable import refuse
from moeprof.analysis.compare.lanes import LockstepPair, lockstep_metrics, lockstep_pairs
from moeprof.analysis.compare.models import compare_models, index_of
from moeprof.analysis.compare.runs import MetricComparison, RunsComparison, compare_runs
from moeprof.analysis.compare.tables import Compared, headline_keys
from moeprof.analysis.doubt import Doubt
from moeprof.analysis.metrics.summary import Summary
from moeprof.analysis.report.answer import answer_of
from moeprof.analysis.report.document import Document, ModelColumn, Section, Table
from moeprof.analysis.report.doubts import disturbed, find_doubts
from moeprof.analysis.report.headline import banners, headline, subtitle, with_reservations
from moeprof.analysis.report.headline import banners as run_banners
from moeprof.analysis.report.result import Comparison
from moeprof.analysis.report.run import machine_section, model_column
from moeprof.analysis.report.saving import Saving, saving
from moeprof.analysis.report.sections.ladder import (
    agreement_section,
    agreement_sentence,
    agreements,
    ladder_section,
    sentences,
)
from moeprof.analysis.report.sections.lockstep import lockstep_doubts, lockstep_section
from moeprof.analysis.report.sections.memory import memory_section, quality_section, variance_section
from moeprof.analysis.report.sections.sweep import answers, sweep_section
from moeprof.analysis.report.sections.theory import sentences as theory_sentences
from moeprof.analysis.report.sections.theory import theory_section
from moeprof.analysis.report.tables import compared, facts, headline_table, section_tables
from moeprof.analysis.sparsity.claims import claim_notes
from moeprof.analysis.sparsity.crossover import sweep_metrics
from moeprof.analysis.sparsity.ladder import Agreement, LadderResult, ladder_cache_note, ladder_metrics, ladder_results
from moeprof.analysis.sparsity.roles import Roles, roles
from moeprof.analysis.sparsity.sweeps import SweepResult, sweep_results
from moeprof.analysis.sparsity.theory import Speedup, one_token_steps, theoretical_speedups, theory_metrics
from moeprof.core.errors import InputError
from moeprof.core.metric import MetricValue


def _page(
    *,
    reference: str,
    tables: Sequence[Table],
    sections: Sequence[Section],
    metrics: Sequence[tuple[str, MetricValue]] = (),
    **page: Any,
) -> Comparison:
    """Open ``tables`` stand before ``sections``, folded ones after; ``page``: the Document's own fields."""
    first = tuple(table for table in tables if not table.folded)
    folded = tuple(table for table in tables if table.folded)
    inside = [b for section in sections for b in section.blocks if isinstance(b, Table) and b.compares]
    last = [Section(name="all", title="Every metric", blocks=folded)] if folded else []
    verdicts = Section(name="verdicts", title="Side by side", blocks=first)
    return Comparison(
        document=Document(first_screen=(), sections=(verdicts, *sections, *last), **page),
        reference=reference,
        tables=(*tables, *inside),
        metrics=tuple(metrics),
    )


WIDE_TABLE = 4  # models; with more, the first table holds the MoE and its closest rivals


def models_page(summary: Summary, reference: str | None) -> Comparison:
    """Compare the models of a run.

    Args:
        summary: of the run.
        reference: the model whose values are the denominators; None: the total-matched twin, else the
            active-matched one, else the first dense model, else the first model.

    Raises:
        InputError: fewer than two models were measured, or there is no such model.
    """
    record = summary.record
    if len([model for model in summary.models if model.facts is not None]) < 2:
        raise InputError(f"nothing to compare: fewer than two models of {record.run} were measured")
    found = _Found.of(summary)
    against = reference or _chosen(summary, found.parts)
    return _page(
        title=f"{record.workload.name or record.run}: dense against sparse",
        run=record.run,
        status=record.status,
        started_at=record.experiment.started_at or "",
        headline=with_reservations(_headline(summary, found), summary),
        answer=answer_of(summary),
        subtitle=subtitle(summary),
        notes=tuple(_notes(summary, found)),
        banners=banners(summary),
        models=tuple(model_column(model) for model in summary.models),
        reference=against,
        tables=tuple(_narrowed(table, found.parts, against) for table in model_tables(summary, against)),
        sections=tuple(section for section in _sections(summary, against, found) if section is not None),
        doubts=(*find_doubts(summary), *lockstep_doubts(summary, found.pairs)),
        metrics=tuple(_metrics(summary, found)),
        workload_text=record.experiment.workload_text or "",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What several parts of the page speak of, computed once."""

    parts: Roles
    saving: Saving | None
    pairs: tuple[LockstepPair, ...]
    ladders: tuple[LadderResult, ...]
    speedups: tuple[Speedup, ...]
    swept: SweepResult | None

    @staticmethod
    def of(summary: Summary) -> _Found:
        parts = roles(summary)
        return _Found(
            parts=parts,
            saving=saving(summary, parts),
            pairs=lockstep_pairs(summary.record),
            ladders=ladder_results(summary.record),
            speedups=theoretical_speedups(summary),
            swept=sweep_results(summary),
        )


def model_tables(summary: Summary, reference: str) -> list[Table]:
    """The models side by side: headline figures first, then one folded table per section with every metric.

    Raises:
        InputError: the run has no such model.
    """
    index, columns = index_of(summary, reference), [model.name for model in summary.models]
    found, keys = compare_models(summary, reference), headline_keys(summary.models)
    first = headline_table(f"Models of this run, ratios to {reference}", columns, found, keys, reference=index)
    return [first, *section_tables(columns, found, reference=index)]


def _narrowed(table: Table, parts: Roles, against: str) -> Table:
    """The first table with the models that the answer speaks of; a ladder's other sizes stand in the folded ones."""
    chosen = {m.name for m in (parts.moe, parts.active, parts.total, *parts.rivals) if m is not None} | {against}
    kept = [i for i, name in enumerate(table.columns) if name in chosen]
    if table.folded or parts.moe is None or len(kept) < 2 or len(table.columns) <= WIDE_TABLE:
        return table
    rows = [replace(row, cells=tuple(row.cells[i] for i in kept)) for row in table.rows]
    columns = [table.columns[i] for i in kept]
    return compared(table.title, columns, rows, reference=columns.index(against))


def _chosen(summary: Summary, parts: Roles) -> str:
    dense = parts.total or parts.active or next(iter(parts.rivals), None)
    return dense.name if dense is not None else summary.models[0].name


def _headline(summary: Summary, found: _Found) -> str:
    """The answer; a run that only climbed the ladder answers with it."""
    if found.saving is not None:
        return found.saving.sentence
    climbed = sentences([result for result in found.ladders if result.phase == "decode"])
    return climbed[-1] if climbed and not any(model.rounds for model in summary.models) else headline(summary)


def _notes(summary: Summary, found: _Found) -> Iterator[str]:
    """Under the headline: the claim's verdict, promise beside measurement, the ladder, the crossover."""
    yield from claim_notes(summary)
    told = [m.name for m in (found.parts.total, found.parts.active, *found.parts.rivals) if m is not None]
    yield from theory_sentences([s for s in found.speedups if s.phase == "decode" and s.dense in told])[:2]
    decode = [result for result in found.ladders if result.phase == "decode"]
    yield from (f"Ladder: {text}" for text in sentences(decode)[-1:])
    if found.swept is not None:
        yield from answers(found.swept)


def _sections(summary: Summary, reference: str, found: _Found) -> list[Section | None]:
    return [
        theory_section(summary),
        ladder_section(summary.record, summary.pricing),
        lockstep_section(summary),
        sweep_section(summary, reference),
        memory_section(summary),
        variance_section(summary, found.ladders),
        quality_section(summary),
        machine_section(summary),
    ]


def _metrics(summary: Summary, found: _Found) -> Iterator[tuple[str, MetricValue]]:
    """Figures that only a comparison has."""
    if found.saving is not None and found.parts.moe is not None:
        yield from ((found.parts.moe.name, value) for value in found.saving.metrics)
    yield from lockstep_metrics(found.pairs)
    lanes = [lane for one in summary.record.ladder for lane in one.info.lanes if lane.rung != "dense"]
    if found.ladders and lanes:
        taxes = ladder_metrics(found.ladders, summary.pricing, ladder_cache_note(summary.record))
        yield from ((str(lanes[0].model), value) for value in taxes)
    theory = theory_metrics(found.speedups, one_token_steps(summary))
    yield from ((value.labels.get("moe", ""), value) for value in theory)
    if found.swept is not None:
        yield from sweep_metrics(found.swept)


STATUSES = ("failed", "interrupted", "started", "done")


def runs_page(reference: Summary, others: Sequence[Summary], found: Sequence[RunsComparison]) -> Comparison:
    """Runs against the reference run; ``found`` stands in the order of ``others``."""
    summaries = (reference, *others)
    ladders = [agreements(reference, other) for other in others]
    twice = (agreement_section(one.other, told) for one, told in zip(found, ladders, strict=True))
    return _page(
        title=f"{' and '.join(one.other for one in found)} against {found[0].reference}",
        run=" ".join(summary.record.run for summary in summaries),
        status=min((summary.record.status for summary in summaries), key=STATUSES.index),
        started_at=reference.record.experiment.started_at or "",
        headline=" ".join(_verdict(one, told) for one, told in zip(found, ladders, strict=True)),
        subtitle=subtitle(reference),
        notes=tuple(_run_notes(found, ladders)),
        banners=tuple(dict.fromkeys(_banners(summaries, found))),
        models=tuple(_column(summary) for summary in summaries),
        reference=reference.record.run,
        tables=tuple(table for one in found for table in run_tables(one, f"{one.other}: " if len(found) > 1 else "")),
        sections=(
            *(section for section in twice if section is not None),
            _differences(found),
            *(_machine(summary) for summary in summaries),
        ),
        doubts=tuple(doubt for summary in summaries for doubt in _doubts(summary)),
        workload_text=reference.record.experiment.workload_text or "",
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
    text = f"Whether {one.other} differs from {one.reference} cannot be said: {reason}"
    shown = len(gates) - len(undecided)
    if not shown:
        return f"{text}."
    said = "; ".join(_said(*pair) for pair in undecided)
    return f"{text}, for {said}; in {shown} of {len(gates)} deciding figures no difference is shown."


def _run_notes(found: Sequence[RunsComparison], ladders: Sequence[dict[str, tuple[Agreement, ...]]]) -> list[str]:
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
    said = [text for one in found for text in difference_banners(one.differences, one.allow)]
    for summary in summaries:
        about = (*run_banners(summary), *filter(None, [disturbed(summary)]))
        said += [f"{summary.record.run}: {text}" for text in about]
    for one in found:
        for run, names in ((one.reference, one.only_in_reference), (one.other, one.only_in_other)):
            if names:
                said.append(f"Only {run} has {', '.join(names)}, so nothing is said of it.")
    return said


def _column(summary: Summary) -> ModelColumn:
    names = ", ".join(model.name for model in summary.models)
    return ModelColumn(name=summary.record.run, status=summary.record.status, subtitle=names)


def run_tables(one: RunsComparison, prefix: str = "") -> list[Table]:
    """The runs side by side, model by model: headline figures first, then one folded table per section."""
    columns = (one.reference, one.other)
    found = [
        {m.key: Compared(values=(m.reference, m.other), ratios=(None, m.ratio)) for m in model.metrics}
        for model in one.models
    ]
    tables = [
        headline_table(f"{prefix}{model.name}: run against run", columns, figures, model.headline)
        for model, figures in zip(one.models, found, strict=True)
    ]
    for model, figures in zip(one.models, found, strict=True):
        name = f"{model.name}: " if len(one.models) > 1 else ""
        tables += section_tables(columns, figures, prefix=f"{prefix}{name}")
    return tables


def _differences(found: Sequence[RunsComparison]) -> Section:
    rows = []
    for one in found:
        for difference in one.differences:
            label = difference.name.replace("_", " ") + (f" of {difference.model}" if difference.model else "")
            label = f"{one.other}: {label}" if len(found) > 1 else label
            rows.append((label, f"{difference.first} in the reference, {difference.second} in the other"))
    table = facts("What differs", rows or [("nothing", "all facts of the runs are equal")])
    return Section(name="differences", title="What differs between the runs", blocks=(table,))


def _machine(summary: Summary) -> Section:
    section = machine_section(summary)
    return replace(section, name=f"machine-{summary.record.run}", title=f"{summary.record.run}: {section.title}")


def _doubts(summary: Summary) -> list[Doubt]:
    run = summary.record.run
    return [replace(doubt, model=f"{run}: {doubt.model}" if doubt.model else run) for doubt in find_doubts(summary)]


def compare_document(
    summaries: Sequence[Summary], *, reference: str | None, allow: frozenset[str] = frozenset()
) -> Comparison:
    """The page for one run of several models, or for several runs.

    Args:
        summaries: one per run.
        reference: a model of the run, or one of the runs (or a model of theirs): the denominators; None: chosen.
        allow: facts in which the runs may differ.

    Raises:
        InputError: nothing to compare, or no such reference.
        RecordError: the runs differ in facts that were not allowed to.
    """
    if len(summaries) == 1:
        return models_page(summaries[0], reference)
    runs = [summary.record.run for summary in summaries]
    first = next((s for s in summaries if reference == s.record.run), summaries[0])
    if reference is not None and reference not in runs:
        raise InputError(f"--reference {reference!r}: with several runs it names one of them: {', '.join(runs)}")
    found = [compare_runs(first, other, allow) for other in summaries if other is not first]
    for comparison in found:
        if not comparison.is_same_run:
            refuse(comparison.differences, allow)
        if not comparison.models:
            raise InputError(
                f"{comparison.reference} and {comparison.other} have no model in common "
                f"({', '.join(comparison.only_in_reference)}; {', '.join(comparison.only_in_other)}); "
                "run both models in one workload, or give them the same name"
            )
    return runs_page(first, [s for s in summaries if s is not first], found)
