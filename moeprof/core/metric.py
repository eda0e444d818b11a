"""A metric's card (what it is) and a metric's value (what was measured). See METRICS for the names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Better = Literal["lower", "higher", "neither"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a metric is.

    Attributes:
        name: stable identifier; ``*`` stands for the statistic in families such as ``ttft_*_s``.
        title: short, for tables.
        unit: SI unit or ``ratio``, ``tokens``, ``experts``, ``USD``, ``USD / 1M tokens``...
        better: which direction is better.
        formula: one line.
        source: where the definition comes from.
        section: report section: latency, throughput, cost, parameters, routing, memory, work, gap, energy, validity.
        headline: True when it stands on the first screen.
    """

    name: str
    title: str
    unit: str
    better: Better
    formula: str
    source: str
    section: str
    headline: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricValue:
    """One measured number, or the reason why there is none.

    Attributes:
        name: the metric's identifier, statistic included.
        value: None when not measured; then ``reasons`` is not empty.
        n: independent samples behind it, or None for counted facts.
        ci_low, ci_high: 95 % interval, or None with the reason in ``reasons`` or because the value is exact.
        exact: True for counted facts that need no interval.
        labels: phase, layer, request_class, window (total | steady), traffic (open | closed | offline), launch.
        valid: False when a check failed; the value is then shown with its reasons.
        reasons: sentences or reason codes.
        null: expectation under the null models, by name (for example {"uniform": 51.6, "marginal": 40.2}).
    """

    name: str
    value: float | int | None
    n: int | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    exact: bool = False
    labels: dict[str, str] = field(default_factory=dict)
    valid: bool = True
    reasons: tuple[str, ...] = ()
    null: dict[str, float] = field(default_factory=dict)

    def to_json(self, card: Card) -> dict[str, Any]:
        """The self-describing entry of summary.json."""
        return {
            "name": self.name,
            "title": card.title,
            "unit": card.unit,
            "value": self.value,
            "better": card.better,
            "n": self.n,
            "ci_low": self.ci_low,
            "ci_high": self.ci_high,
            "exact": self.exact,
            "valid": self.valid,
            "reasons": list(self.reasons),
            "labels": dict(self.labels),
            "null": dict(self.null),
        }


def missing(name: str, reason: str, **labels: str) -> MetricValue:
    """A metric that was not measured, and why."""
    return MetricValue(name=name, value=None, reasons=(reason,), labels=labels)
