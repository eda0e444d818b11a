"""Did two models of a run do the same work, on machines that were equally busy? Else their figures say nothing."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a model got done: read off its tables once, asked for every metric.

    Attributes:
        failed: it did not come to its end.
        passes: traffic of each pass, the requests that ended well, and their tokens where models may stop when they
            like. With lengths asked for, other tokens for the same text are another tokenizer's, not other work.
        busy_ratio: of its open loop; None without one.
    """

    failed: bool
    passes: frozenset[tuple[str, int, int | None]]
    busy_ratio: float | None

    @staticmethod
    def of(model: ModelSummary) -> Work:
        """Of all its rounds and capacity passes."""
        busy = (v for v in model.metrics if v.name == "busy_ratio" and v.labels.get("traffic") == "open")
        value = next((v.value for v in busy if "launch" not in v.labels), None)
        return Work(
            failed=model.record.status == "failed",
            passes=frozenset((t.traffic, *_done(t)) for t in (*model.rounds, *model.capacity)),
            busy_ratio=None if value is None else float(value),
        )

    def of_traffic(self, traffic: str | None) -> set[tuple[int, int | None]]:
        """Requests and tokens of the passes of this traffic; None: of all."""
        return {(num, tokens) for own, num, tokens in self.passes if traffic in (None, own)}


def _done(tables: PassTables) -> tuple[int, int | None]:
    requests = tables.requests[is_done(tables.requests)]
    stopped_early = bool((requests["output_tokens"] < requests["asked_output_tokens"]).any())
    return len(requests), int(requests["output_tokens"].sum()) if stopped_early else None


def why_incomparable(key: Key, first: Work, second: Work) -> str | None:
    """Why this figure of two models of one run must not be set against each other, or None (docs/metrics.md#cost)."""
    card, traffic = card_for(key[0]), labels_of(key).get("traffic")
    if card.section not in NEEDS_BUSY and card.section != "latency":
        return None
    if first.failed or second.failed:
        return "one of them failed"
    if first.of_traffic(traffic) != second.of_traffic(traffic):
        return "they did not do the same work"
    if traffic == "open" and card.section in NEEDS_BUSY and not key[0].endswith("_busy") and key[0] != AT_SLO:
        busy = (first.busy_ratio, second.busy_ratio)
        if any(ratio is None or ratio < FEWEST_BUSY_RATIO for ratio in busy):
            return f"open loop below {FEWEST_BUSY_RATIO:.0%} busy: it compares utilisation, not models"
    return None
