"""The cards of all subjects, and the way from a metric's name to its card.

A card named ``ttft_*_s`` stands for a family; ``*`` is a statistic (``mean``, ``p50``, ``p99_9``...), never free text,
so that ``ttft_from_sent_p50_s`` finds its own card. Subjects are imported when their cards are first asked for.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module

from moeprof.analysis.metrics import SUBJECTS
from moeprof.core.metric import Card

# section -> title, in the order of reports
SECTION_TITLES = {
    "cost": "Cost",
    "throughput": "Throughput",
    "latency": "Latency",
    "conversations": "Conversations",
    "server": "What the server says of itself",
    "routing": "Router",
    "parameters": "Parameters",
    "memory": "Memory",
    "work": "Work and limits",
    "gap": "Where a step goes",
    "energy": "Energy",
    "quality": "Quality",
    "validity": "Validity",
    "comparison": "Between models and runs",
}
STATISTIC = r"(mean|median|std|min|max|worst|p\d+(_\d+)?)"


def all_cards() -> tuple[Card, ...]:
    """Section by section."""
    return _cards_of(tuple(SUBJECTS))


def card_for(name: str) -> Card:
    """The card of a metric.

    Raises:
        KeyError: no card has this name or family.
    """
    return _find(name, tuple(SUBJECTS))


def has_card(name: str) -> bool:
    """Whether this version knows the metric: a file of another version may hold others."""
    try:
        return bool(card_for(name))
    except KeyError:
        return False


@cache
def _cards_of(subjects: tuple[str, ...]) -> tuple[Card, ...]:
    order = list(SECTION_TITLES)
    cards = (card for subject in subjects for card in import_module(subject).CARDS)
    return tuple(sorted(cards, key=lambda card: order.index(card.section)))


@cache
def _find(name: str, subjects: tuple[str, ...]) -> Card:
    by_name, families = _index(subjects)
    found = by_name.get(name) or next((card for pattern, card in families if pattern.match(name)), None)
    if found is None:
        raise KeyError(name)
    return found


@cache
def _index(subjects: tuple[str, ...]) -> tuple[dict[str, Card], list[tuple[re.Pattern[str], Card]]]:
    cards = _cards_of(subjects)
    families = [card for card in cards if "*" in card.name]
    patterns = [re.compile(re.escape(card.name).replace(r"\*", STATISTIC) + r"\Z") for card in families]
    return {card.name: card for card in cards}, list(zip(patterns, families, strict=True))
