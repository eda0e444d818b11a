"""Ratios in the words of people who do not read ratios."""

from __future__ import annotations

from moeprof.analysis.stats.estimate import Ratio
from moeprof.core import units
from moeprof.core.metric import Card, MetricValue

A_QUARTER_MORE = 1.25  # from here on people say "times", below they say "per cent more"
SETTLED = ("better", "worse")


def as_much(ratio: float, rival: str, what: str = "", much: str = "much", less: str = "less") -> str:
    """``1.8 times as much memory as dense``, ``6 % more memory than dense``, ``47 % less memory than dense``."""
    noun = f" {what}" if what else ""
    if ratio >= A_QUARTER_MORE:
        return f"{units.significant(ratio, 2)} times as {much}{noun} as {rival}"
    share = units.significant(100 * abs(ratio - 1), 2)
    return f"{share} % {'more' if ratio >= 1 else less}{noun} than {rival}"


def pair(own: MetricValue | None, other: MetricValue | None, card: Card) -> str:
    """``13.1 ms against 6.16 ms``; one of them where the other was not measured."""
    shown = [units.display(value.value, card.unit) for value in (own, other) if value is not None and value.value]
    return " against ".join(shown)


def why(ratio: Ratio | None) -> str:
    """Why nothing can be said of a ratio, or that no difference is shown."""
    if ratio is None:
        return "not measured of both"
    if ratio.verdict == "no difference shown":
        return "no difference is shown"
    return ratio.reason or "not measured of both"
