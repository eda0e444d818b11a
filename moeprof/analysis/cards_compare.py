"""Cards of dense against sparse, and of run against run."""

from __future__ import annotations

from moeprof.core.metric import Card

CARDS: tuple[Card, ...] = (
    Card(
        name="lockstep_ratio",
        title="step time ratio, stepped in turn",
        unit="ratio",
        better="neither",
        formula="sum of step times / sum of the other model's step times, same steps, per phase",
        source="METRICS 1",
        section="comparison",
    ),
)
