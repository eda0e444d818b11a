"""Did two models of a run do the same work, on machines that were equally busy? Else their figures say nothing."""

from __future__ import annotations

from moeprof.analysis.metrics.cards import card_for
from moeprof.analysis.metrics.lookup import Key, labels_of
from moeprof.analysis.metrics.summary import ModelSummary
from moeprof.analysis.metrics.tables import PassTables, is_done
from moeprof.core.metric import MetricValue

FEWEST_BUSY_RATIO = 0.95
AT_SLO = "usd_per_1m_tokens_at_slo"  # each model at its own highest rate: what docs/metrics.md#cost compares
NEEDS_BUSY = {"cost", "throughput", "energy"}  # sections whose figures hold the idle time of an open loop


def other_text(first: MetricValue, second: MetricValue) -> str | None:
    """Why bits per byte were not measured on the same text, or None: each model takes what it has time for."""
    return None if first.n == second.n else f"measured on the first {first.n} and the first {second.n} requests"


def why_incomparable(key: Key, first: ModelSummary, second: ModelSummary) -> str | None:
    """Why this figure of two models of one run must not be set against each other, or None (docs/metrics.md#cost)."""
    card, labels = card_for(key[0]), labels_of(key)
    if card.section not in NEEDS_BUSY and card.section != "latency":
        return None
    if "failed" in (first.record.status, second.record.status):
        return "one of them failed"
    traffic = labels.get("traffic")
    work = [_work(model, traffic) for model in (first, second)]
    if work[0] != work[1]:
        return "they did not do the same work"
    if traffic == "open" and card.section in NEEDS_BUSY and not key[0].endswith("_busy") and key[0] != AT_SLO:
        busy = [_busy_ratio(model) for model in (first, second)]
        if any(ratio is None or ratio < FEWEST_BUSY_RATIO for ratio in busy):
            return f"open loop below {FEWEST_BUSY_RATIO:.0%} busy: it compares utilisation, not models"
    return None


def _work(model: ModelSummary, traffic: str | None) -> set[tuple[int, int | None]]:
    """Requests that ended well, of every pass of this traffic, and their tokens where models may stop when they like.

    With lengths asked for, other tokens for the same text are another tokenizer's, not other work.
    """
    return {_done(t) for t in (*model.rounds, *model.capacity) if traffic in (None, t.traffic)}


def _done(tables: PassTables) -> tuple[int, int | None]:
    requests = tables.requests[is_done(tables.requests)]
    stopped_early = bool((requests["output_tokens"] < requests["asked_output_tokens"]).any())
    return len(requests), int(requests["output_tokens"].sum()) if stopped_early else None


def _busy_ratio(model: ModelSummary) -> float | None:
    found = (v for v in model.metrics if v.name == "busy_ratio" and v.labels.get("traffic") == "open")
    value = next((v.value for v in found if "launch" not in v.labels), None)
    return None if value is None else float(value)
