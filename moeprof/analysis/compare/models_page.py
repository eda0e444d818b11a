"""The page for one run: the answer, every metric with its ratio, theory, ladder, load, memory, variance, quality."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from moeprof.analysis.compare.claims import claim_notes
from moeprof.analysis.compare.ladder import LadderResult
from moeprof.analysis.compare.ladder_page import ladder_results, ladder_section, sentences
from moeprof.analysis.compare.ladder_tables import ladder_metrics
from moeprof.analysis.compare.lockstep_page import (
    LockstepPair,
    lockstep_doubts,
    lockstep_metrics,
    lockstep_pairs,
    lockstep_section,
)
from moeprof.analysis.compare.memory_page import memory_section
from moeprof.analysis.compare.models import model_tables
from moeprof.analysis.compare.page import Page
from moeprof.analysis.compare.quality_page import quality_section
from moeprof.analysis.compare.roles import Roles, roles
from moeprof.analysis.compare.sweep_page import answers, sweep_metrics, sweep_section
from moeprof.analysis.compare.sweeps import SweepResult, sweep_results
from moeprof.analysis.compare.theory import Speedup, theoretical_speedups
from moeprof.analysis.compare.theory_page import sentences as theory_sentences
from moeprof.analysis.compare.theory_page import theory_metrics, theory_section
from moeprof.analysis.compare.variance_page import variance_section
from moeprof.analysis.compare.verdict_sentence import Answer, answer
from moeprof.analysis.document import RatioTable, Section
from moeprof.analysis.doubts import find_doubts
from moeprof.analysis.headline import banners, headline, subtitle
from moeprof.analysis.report import model_column
from moeprof.analysis.report_facts import machine_section
from moeprof.analysis.summary import Summary
from moeprof.core.errors import InputError
from moeprof.core.metric import MetricValue

WIDE_TABLE = 4  # models; with more, the first table holds the MoE and its closest rivals


def models_page(summary: Summary, reference: str | None) -> Page:
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
    return Page(
        title=f"{record.workload.get('name', record.run)}: dense against sparse",
        run=record.run,
        status=record.status,
        started_at=str(record.experiment.get("started_at", "")),
        headline=_headline(summary, found),
        subtitle=subtitle(summary),
        notes=tuple(_notes(summary, found)),
        banners=banners(summary),
        columns=tuple(model_column(model) for model in summary.models),
        reference=against,
        tables=tuple(_narrowed(table, found.parts, against) for table in model_tables(summary, against)),
        sections=tuple(section for section in _sections(summary, against, found) if section is not None),
        doubts=(*find_doubts(summary), *lockstep_doubts(summary, found.pairs)),
        metrics=tuple(_metrics(summary, found)),
        workload_text=str(record.experiment.get("workload_text", "")),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What several parts of the page speak of, computed once."""

    parts: Roles
    answer: Answer | None
    pairs: tuple[LockstepPair, ...]
    ladders: tuple[LadderResult, ...]
    speedups: tuple[Speedup, ...]
    swept: SweepResult | None

    @staticmethod
    def of(summary: Summary) -> _Found:
        parts = roles(summary)
        return _Found(
            parts=parts,
            answer=answer(parts),
            pairs=lockstep_pairs(summary.record),
            ladders=ladder_results(summary.record),
            speedups=theoretical_speedups(summary),
            swept=sweep_results(summary),
        )


def _narrowed(table: RatioTable, parts: Roles, against: str) -> RatioTable:
    """The first table with the models that the answer speaks of; a ladder's other sizes stand in the folded ones."""
    chosen = {m.name for m in (parts.moe, parts.active, parts.total, *parts.rivals) if m is not None} | {against}
    kept = [i for i, name in enumerate(table.columns) if name in chosen]
    if table.folded or parts.moe is None or len(kept) < 2 or len(table.columns) <= WIDE_TABLE:
        return table
    rows = tuple(
        replace(row, values=tuple(row.values[i] for i in kept), ratios=tuple(row.ratios[i] for i in kept))
        for row in table.rows
    )
    columns = tuple(table.columns[i] for i in kept)
    return replace(table, columns=columns, rows=rows, reference=columns.index(against))


def _chosen(summary: Summary, parts: Roles) -> str:
    dense = parts.total or parts.active or next(iter(parts.rivals), None)
    return dense.name if dense is not None else summary.models[0].name


def _headline(summary: Summary, found: _Found) -> str:
    """The answer; a run that only climbed the ladder answers with it."""
    if found.answer is not None:
        return found.answer.sentence
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
    if found.answer is not None and found.parts.moe is not None:
        yield from ((found.parts.moe.name, value) for value in found.answer.metrics)
    yield from lockstep_metrics(found.pairs)
    lanes = [lane for one in summary.record.ladder for lane in one.lanes if lane.get("rung") != "dense"]
    if found.ladders and lanes:
        yield from ((str(lanes[0]["model"]), value) for value in ladder_metrics(found.ladders, summary.pricing))
    yield from ((value.labels.get("moe", ""), value) for value in theory_metrics(found.speedups))
    if found.swept is not None:
        yield from sweep_metrics(found.swept)
