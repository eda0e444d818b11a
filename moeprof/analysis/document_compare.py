"""What a Document says when it compares: metrics side by side with their ratios, and one figure becoming another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moeprof.core.metric import Card, MetricValue


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """One model (or run) against the reference, for one metric.

    Attributes:
        value: the reference's value is the denominator; None when it cannot be told, with the reason.
        low, high: 95 % interval, or None.
        verdict: better | worse | no difference shown | cannot tell | incomparable | same run, or "" where there is
            nothing to judge (neither direction is better).
        reason: why there is no value, no interval, or this verdict.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    verdict: str = ""
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioRow:
    """One metric across models: values, and each one's ratio to the reference (None in the reference's own place)."""

    label: str
    card: Card
    name: str
    values: tuple[MetricValue | None, ...]
    ratios: tuple[Ratio | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioTable:
    """Metrics of several models side by side.

    Attributes:
        title: heading.
        columns: names of the models; ratios are to ``columns[reference]``.
        reference: index of the reference.
        rows: the metrics.
        folded: True for tables that a page should show closed at first.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[RatioRow, ...]
    reference: int = 0
    folded: bool = False

    @property
    def has_ratios(self) -> bool:
        """False for a table of values alone; then it has no reference."""
        return any(ratio is not None for row in self.rows for ratio in row.ratios)


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRow:
    """One gate of a regression check.

    Attributes:
        label: the figure, for people.
        card: of the metric.
        name: stable identifier, with labels: ``step_mean_s{phase=decode}``.
        reference, other: the values; None where a side has none (a lock-step ratio has neither).
        ratio: other / reference with verdict and reason.
        by_difference: what counts is the difference of the values (or the new value alone), not their ratio.
        n: samples in words.
        limit: what is allowed, in words: ``+3 %``, ``no rise``, ``at most 50 ms``.
        decide: what would decide an undecided gate, or None.
    """

    label: str
    card: Card
    name: str
    reference: MetricValue | None
    other: MetricValue | None
    ratio: Ratio
    by_difference: bool
    n: str
    limit: str
    decide: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GateTable:
    """Gates with their verdicts, most important first.

    Attributes:
        title: heading.
        rows: the gates.
        folded: True for a table that a page should show closed at first.
    """

    title: str
    rows: tuple[GateRow, ...]
    folded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WaterfallStep:
    """One bar of a waterfall.

    Attributes:
        label: name of the level or of the change.
        kind: ``level`` stands on the axis; ``change`` goes from the level before to the level after.
        value: of a level; signed for a change.
        low, high: 95 % interval of it, or None.
        told: False for a change that cannot be told from 0.
        text: one sentence on what it is.
    """

    label: str
    kind: Literal["level", "change"]
    value: float
    low: float | None = None
    high: float | None = None
    told: bool = True
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waterfall:
    """How one figure becomes another, change by change: the sparsity ladder.

    Attributes:
        name, title, caption: as in Chart.
        unit: of all values.
        steps: from left to right.
    """

    name: str
    title: str
    caption: str
    unit: str
    steps: tuple[WaterfallStep, ...]
