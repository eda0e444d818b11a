"""Cards of METRICS section 3: the router."""

from __future__ import annotations

from moeprof.core.metric import Card

CARDS: tuple[Card, ...] = ()
