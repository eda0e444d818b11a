"""All cards, and the way from a metric's name to its card.

A card named ``ttft_*_s`` stands for a family; ``*`` is a statistic (``mean``, ``p50``, ``p99_9``...), never free text,
so that ``ttft_from_sent_p50_s`` finds its own card.
"""

from __future__ import annotations

import re
from functools import cache

from moeprof.analysis.metrics import (
    cards_compare,
    cards_cost,
    cards_gap,
    cards_params,
    cards_resources,
    cards_routing,
    cards_time,
    cards_validity,
)
from moeprof.core.metric import Card

# In this order pages and `moeprof explain` speak of them.
SECTIONS = ("cost", "throughput", "latency", "routing", "parameters", "memory", "work", "gap", "energy", "quality",
            "validity", "comparison")  # fmt: skip
CARDS: tuple[Card, ...] = tuple(
    sorted(
        (
            *cards_params.CARDS,
            *cards_cost.CARDS,
            *cards_time.CARDS,
            *cards_routing.CARDS,
            *cards_resources.CARDS,
            *cards_validity.CARDS,
            *cards_compare.CARDS,
            *cards_gap.CARDS,
        ),
        key=lambda card: SECTIONS.index(card.section),
    )
)
STATISTIC = r"(mean|median|std|min|max|worst|p\d+(_\d+)?)"


@cache
def _patterns() -> tuple[tuple[re.Pattern[str], Card], ...]:
    return tuple(
        (re.compile(re.escape(card.name).replace(r"\*", STATISTIC) + r"\Z"), card) for card in CARDS if "*" in card.name
    )


@cache
def _by_name() -> dict[str, Card]:
    return {card.name: card for card in CARDS}


@cache
def card_for(name: str) -> Card:
    """The card of a metric.

    Raises:
        KeyError: no card has this name or family.
    """
    exact = _by_name().get(name)
    if exact is not None:
        return exact
    for pattern, card in _patterns():
        if pattern.match(name):
            return card
    raise KeyError(name)
