"""The page for one run: the answer, every metric with its ratio, theory, ladder, load, memory, variance, quality."""

from __future__ import annotations

from collections.abc import Iterator

from moeprof.analysis.compare.claims import claim_notes
from moeprof.analysis.compare.ladder_page import ladder_metrics, ladder_results, ladder_section, sentences
from moeprof.analysis.compare.lockstep_page import lockstep_doubts, lockstep_metrics, lockstep_pairs, lockstep_section
from moeprof.analysis.compare.memory_page import memory_section
from moeprof.analysis.compare.models import model_tables
from moeprof.analysis.compare.page import Page
from moeprof.analysis.compare.quality_page import quality_section
from moeprof.analysis.compare.roles import Roles, roles
from moeprof.analysis.compare.sweep_page import answers, sweep_metrics, sweep_section
from moeprof.analysis.compare.sweeps import sweep_results
from moeprof.analysis.compare.theory import theoretical_speedups
from moeprof.analysis.compare.theory_page import sentences as theory_sentences
from moeprof.analysis.compare.theory_page import theory_metrics, theory_section
from moeprof.analysis.compare.variance_page import variance_section
from moeprof.analysis.compare.verdict_sentence import answer
from moeprof.analysis.document import Section
from moeprof.analysis.doubts import find_doubts
from moeprof.analysis.headline import banners, headline, subtitle
from moeprof.analysis.report import model_column
from moeprof.analysis.report_facts import machine_section
from moeprof.analysis.summary import Summary
from moeprof.core.errors import InputError
from moeprof.core.metric import MetricValue


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
    parts = roles(summary)
    told, pairs = answer(parts), lockstep_pairs(record)
    against = reference or _chosen(summary, parts)
    return Page(
        title=f"{record.workload.get('name', record.run)}: dense against sparse",
        run=record.run,
        status=record.status,
        started_at=str(record.experiment.get("started_at", "")),
        headline=told.sentence if told is not None else headline(summary),
        subtitle=subtitle(summary),
        notes=tuple(_notes(summary)),
        banners=banners(summary),
        columns=tuple(model_column(model) for model in summary.models),
        reference=against,
        tables=model_tables(summary, against),
        sections=tuple(section for section in _sections(summary) if section is not None),
        doubts=(*find_doubts(summary), *lockstep_doubts(summary, pairs)),
        metrics=tuple(_metrics(summary, parts)),
        workload_text=str(record.experiment.get("workload_text", "")),
    )


def _chosen(summary: Summary, parts: Roles) -> str:
    dense = parts.total or parts.active or next(iter(parts.rivals), None)
    return dense.name if dense is not None else summary.models[0].name


def _notes(summary: Summary) -> Iterator[str]:
    """Under the headline: the claim's verdict, promise beside measurement, the ladder, the crossover."""
    yield from claim_notes(summary)
    yield from theory_sentences(theoretical_speedups(summary))[:2]
    decode = [result for result in ladder_results(summary.record) if result.phase == "decode"]
    yield from (f"Ladder: {text}" for text in sentences(decode)[-1:])
    swept = sweep_results(summary)
    if swept is not None:
        yield from answers(swept)


def _sections(summary: Summary) -> list[Section | None]:
    return [
        theory_section(summary),
        ladder_section(summary.record, summary.pricing),
        lockstep_section(summary),
        sweep_section(summary),
        memory_section(summary),
        variance_section(summary),
        quality_section(summary),
        machine_section(summary),
    ]


def _metrics(summary: Summary, parts: Roles) -> Iterator[tuple[str, MetricValue]]:
    """Figures that only a comparison has."""
    told = answer(parts)
    if told is not None and parts.moe is not None:
        yield from ((parts.moe.name, value) for value in told.metrics)
    yield from lockstep_metrics(lockstep_pairs(summary.record))
    results = ladder_results(summary.record)
    if results:
        lanes = [lane for one in summary.record.ladder for lane in one.lanes if lane.get("rung") != "dense"]
        yield from ((str(lanes[0]["model"]), value) for value in ladder_metrics(results, summary.pricing))
    yield from ((value.labels.get("moe", ""), value) for value in theory_metrics(theoretical_speedups(summary)))
    swept = sweep_results(summary)
    if swept is not None:
        yield from sweep_metrics(swept)
