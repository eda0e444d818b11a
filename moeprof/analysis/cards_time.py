"""Cards of METRICS section 1: time."""

from __future__ import annotations

from moeprof.core.metric import Card

CARDS: tuple[Card, ...] = ()
