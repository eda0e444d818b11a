"""The page of ``moeprof audit``: one page for a decision, every sentence with the metric that it rests on."""

from __future__ import annotations

from dataclasses import replace

from moeprof.analysis.metrics.lookup import number, pick
from moeprof.analysis.metrics.summary import ModelSummary, Summary
from moeprof.analysis.report.answer import answer_of, health, objectives, regime
from moeprof.analysis.report.answer.sides import Sides, sides_of
from moeprof.analysis.report.document import Document, Finding, Section, Table
from moeprof.analysis.report.doubts import find_doubts
from moeprof.analysis.report.headline import banners, headline, subtitle, with_reservations
from moeprof.analysis.report.run import first_rows, model_column
from moeprof.analysis.report.tables import facts
from moeprof.core import units
from moeprof.core.errors import InputError

LOADS = (0.1, 0.3, 0.6, 1.0)
PRICE = "usd_per_1m_total_tokens"


def audit_document(summary: Summary) -> Document:
    """The answer with more questions, prices at several utilisations, and what it takes to serve.

    Raises:
        InputError: no model of the run has a price to speak of.
    """
    sides, answer = sides_of(summary), answer_of(summary)
    if sides is None or answer is None:
        raise InputError(f"{summary.record.run}: nothing to audit: {headline(summary)}")
    more = tuple(
        found for find in (_prices, regime.find, objectives.find, health.find) if (found := find(sides)) is not None
    )
    *first, sure = answer.findings
    record = summary.record
    return Document(
        title=f"{record.workload.name or record.run}: audit",
        run=record.run,
        status=record.status,
        started_at=record.experiment.started_at or "",
        headline=with_reservations(headline(summary), summary),
        answer=replace(answer, findings=(*first, *more, sure)),
        subtitle=subtitle(summary),
        banners=banners(summary),
        models=tuple(model_column(model) for model in _both(sides)),
        first_screen=tuple(first_rows(_both(sides))),
        sections=(_serving(sides),),
        doubts=find_doubts(summary),
        workload_text=record.experiment.workload_text or "",
    )


def _both(sides: Sides) -> tuple[ModelSummary, ...]:
    return (sides.model,) if sides.rival is None else (sides.model, sides.rival)


def _prices(sides: Sides) -> Finding:
    """Busy dollars over the share of the time that the device is in use: rent runs on while it waits."""
    texts = []
    for model in _both(sides):
        busy = number(model, PRICE, own_traffic=False)
        if busy is not None:
            each = ", ".join(f"{units.usd(busy / load)} at {units.percent(load)}" for load in LOADS)
            texts.append(f"{model.name} {each}")
    text = f"1M tokens, input and output together, by the device's time in use: {'; '.join(texts)}"
    return Finding(question="price at other loads?", outcome="depends", text=text, figures=(PRICE,))


def _serving(sides: Sides) -> Section:
    """Facts, no judgement: what has to be kept running."""
    rows = [row for model in _both(sides) for row in _of_model(sides.summary, model)]
    return Section(name="serving", title="What serving it takes", blocks=(_table(rows),))


def _table(rows: list[tuple[str, str]]) -> Table:
    return facts("What serving it takes", rows)


def _of_model(summary: Summary, model: ModelSummary) -> list[tuple[str, str]]:
    known, rows = model.facts, []
    if known is None:
        return []
    devices = summary.record.environment.num_devices or 1
    rows.append((f"{model.name}: class", f"{known.architecture or known.model_type}, {known.dtype}"))
    rows.append((f"{model.name}: devices", str(devices)))
    launches = pick(model, "gap_launches_per_step", phase="decode")
    if launches is not None and launches.value is not None:
        rows.append((f"{model.name}: kernels launched in a decode step", units.significant(float(launches.value))))
    if known.kv_bytes_per_token is not None:
        longest = _context(model)
        kept = units.num_bytes(known.kv_bytes_per_token * longest)
        rows.append((f"{model.name}: KV cache of a request of {longest:,} tokens (p99 of this traffic)", kept))
    return rows


def _context(model: ModelSummary) -> int:
    """p99 of prompt and output tokens together, over the requests as they were sent."""
    tables = (model.rounds or model.capacity)[0].requests
    lengths = sorted((tables["input_tokens"] + tables["output_tokens"]).tolist())
    return int(lengths[round(0.99 * (len(lengths) - 1))])
