"""Targets, rows and the table: what was measured against what was promised. Pure; no clock, no I/O.

A row holds the samples of repeated measurements: their median and its 95 % interval by the sign test, which for fewer
than nine samples is their range. A noisy machine must not fail a target that is met, nor hide one that is missed
clearly, so a target says whether the median decides or the low end of the interval.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from statistics import median


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a value must be.

    Attributes:
        at_least: the median should reach it, or None.
        low_at_least: the low end must reach it, or None; where given, this alone decides what is missed.
        at_most: the median must not exceed it, or None.
        low_at_most: the low end must not exceed it, or None.
        unit: printed after the numbers; "" for ratios.
    """

    at_least: float | None = None
    low_at_least: float | None = None
    at_most: float | None = None
    low_at_most: float | None = None
    unit: str = ""

    def verdict(self, value: float, low: float) -> str:
        """``ok``, ``within noise`` (the low end reaches its own bound, the median does not) or ``MISSED``."""
        median_met = (self.at_least is None or value >= self.at_least) and (
            self.at_most is None or value <= self.at_most
        )
        low_met = (self.low_at_least is None or low >= self.low_at_least) and (
            self.low_at_most is None or low <= self.low_at_most
        )
        if median_met and low_met:
            return "ok"
        return "within noise" if low_met and self.low_at_least is not None else "MISSED"

    @property
    def text(self) -> str:
        """For people: ``>= 1.00 (low >= 0.97)``."""
        middle, low = self._bounds(self.at_least, self.at_most), self._bounds(self.low_at_least, self.low_at_most)
        return f"{middle} (low {low})" if middle and low else middle or f"low {low}"

    def _bounds(self, least: float | None, most: float | None) -> str:
        signed = ((">=", least), ("<=", most))
        return " ".join(f"{sign} {shown(bound, self.unit)}" for sign, bound in signed if bound is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        what: what was measured.
        target: what it must be.
        samples: one value per repeat, or one value that already is a median.
        interval: low and high end where they do not come from the samples.
        details: how, in a few words.
    """

    what: str
    target: Target
    samples: tuple[float, ...]
    interval: tuple[float, float] | None = None
    details: str = ""

    @property
    def value(self) -> float:
        """The median."""
        return median(self.samples)

    @property
    def low(self) -> float:
        """Low end of the interval."""
        return median_interval(self.samples)[0] if self.interval is None else self.interval[0]

    @property
    def high(self) -> float:
        """High end of the interval."""
        return median_interval(self.samples)[1] if self.interval is None else self.interval[1]

    @property
    def verdict(self) -> str:
        """See :meth:`Target.verdict`."""
        return self.target.verdict(self.value, self.low)

    @property
    def ok(self) -> bool:
        """Whether the target is not missed."""
        return self.verdict != "MISSED"


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> tuple[float, ...]:
    """Pair by pair: both sides of a pair ran one after the other, so noise of the machine hit both alike."""
    return tuple(a / b for a, b in zip(numerators, denominators, strict=True))


def median_interval(samples: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the median without assumptions: the k-th smallest and largest of n samples.

    k is the largest with P(Binomial(n, 1/2) < k) <= 0.025: 1 up to n = 8 (their range; below n = 6 less sure than
    95 %), 2 for 9, 4 for 15.
    """
    ordered, num = sorted(samples), len(samples)
    outside, k = 0.5**num, 1
    while outside + comb(num, k) * 0.5**num <= 0.025:
        outside += comb(num, k) * 0.5**num
        k += 1
    return ordered[k - 1], ordered[-k]


def shown(value: float, unit: str) -> str:
    """Three significant places, then the unit."""
    text = f"{value:.3f}" if value < 10 else f"{value:.1f}"
    return f"{text.rstrip('0').rstrip('.') if unit else text} {unit}".strip()


def table(rows: Sequence[Row]) -> str:
    """Aligned text, one line per row, details below each."""
    lines = [("what", "target", "measured", "95 % interval", "verdict")]
    for row in rows:
        unit = row.target.unit
        interval = f"{shown(row.low, unit)} - {shown(row.high, unit)}"
        lines.append((row.what, row.target.text, shown(row.value, unit), interval, row.verdict))
    widths = [max(len(line[i]) for line in lines) for i in range(5)]
    printed = []
    for number, line in enumerate(lines):
        printed.append("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        if number and rows[number - 1].details:
            printed.append(f"    {rows[number - 1].details}")
    counts = Counter(row.verdict for row in rows)
    summary = ", ".join(
        f"{counts[verdict]} {verdict}" for verdict in ("ok", "within noise", "MISSED") if counts[verdict]
    )
    return "\n".join([*printed, "", f"{len(rows)} targets: {summary}"])
