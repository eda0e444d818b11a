"""What a gate's metric is, and which direction of it is worse: by its card, or by the gate's sign."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection

from moeprof.analysis.cards import CARDS, STATISTIC, card_for
from moeprof.core.errors import InputError
from moeprof.core.gates import Gate
from moeprof.core.metric import Better, Card

BETWEEN_RUNS_FROM_0 = {"router_drift_js"}  # 0 where nothing changed, so no share of it can be allowed


def named(gate: Gate) -> str:
    """Where a gate was written, and what: how messages about it begin."""
    return f"{gate.source + ': ' if gate.source else ''}gate {gate.text!r}: "


def card_of(gate: Gate, names: Collection[str] = ()) -> Card:
    """The card of the gate's metric.

    Args:
        gate: whose.
        names: of metrics that were measured, for the hint.

    Raises:
        InputError: there is no such metric; the nearest names are said.
    """
    try:
        return card_for(gate.metric)
    except KeyError as error:
        found = re.search(STATISTIC, gate.metric)
        statistic = found[0] if found else "mean"
        known = sorted({*names, *(card.name.replace("*", statistic) for card in CARDS)})
        close = difflib.get_close_matches(gate.metric, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else "`moeprof explain` lists them"
        raise InputError(f"{named(gate)}there is no metric {gate.metric!r}; {hint}") from error


def direction(gate: Gate, card: Card) -> Better:
    """Which direction is better here; ``neither``: any change is worse.

    Raises:
        InputError: the card knows none and no sign was written; the sign contradicts the card; a threshold that
            cannot be passed.
    """
    start = named(gate)
    if gate.kind in ("at_most", "at_least"):
        return "lower" if gate.kind == "at_most" else "higher"
    if gate.kind == "ratio" and gate.metric in BETWEEN_RUNS_FROM_0:
        raise InputError(f"{start}it is 0 where nothing changed, so a share of it says nothing; give a number: "
                         f"{gate.metric}:+0.02")  # fmt: skip
    if gate.sign is None:
        if card.better == "neither":
            raise InputError(f"{start}neither direction of this figure is better by itself; write a sign: + (a rise "
                             "is worse), - (a fall is worse) or +- (both)")  # fmt: skip
        better: Better = card.better
    elif gate.sign == "+-":
        better = "neither"
    else:
        better = "lower" if gate.sign == "+" else "higher"
        if card.better not in ("neither", better):
            worse = {"lower": ("a fall", "+"), "higher": ("a rise", "-")}[card.better]
            raise InputError(f"{start}{worse[0]} is better here ({card.better} is better); leave the sign out, or "
                             f"write {worse[1]}")  # fmt: skip
    if better == "higher" and gate.kind == "ratio" and gate.amount >= 1:
        raise InputError(f"{start}nothing falls by {gate.amount:.0%}; less than 100 % is allowed")
    return better
