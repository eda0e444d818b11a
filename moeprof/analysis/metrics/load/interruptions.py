"""Rounds in which the machine took the processor away: set aside and counted, as turns of lock-step are.

A step is interrupted by the rule of turns (overhead.taken_away): its wall time is far above its processor time. A round
is set aside where what such steps waited is more than LOST_RATIO of all its steps' time. Where half of the rounds or
more would go, the machine was busy throughout: then all stay, and a doubt says so.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moeprof.analysis.metrics.overhead import taken_away
from moeprof.analysis.metrics.tables import PassTables, column

LOST_RATIO = 0.05  # as much as two processes may differ before anything is said of it


def undisturbed_rounds(
    rounds: Sequence[PassTables],
) -> tuple[tuple[PassTables, ...], tuple[tuple[str, float], ...]]:
    """The rounds to keep, and name and lost share of time of those set aside.

    Args:
        rounds: passes of one launch with the same traffic.
    """
    lost = lost_ratios(rounds)
    hit = [share > LOST_RATIO for share in lost]
    if 2 * sum(hit) >= len(rounds):
        return tuple(rounds), ()
    kept = tuple(tables for tables, is_hit in zip(rounds, hit, strict=True) if not is_hit)
    aside = tuple((t.name, share) for t, share, is_hit in zip(rounds, lost, hit, strict=True) if is_hit)
    return kept, aside


def lost_ratios(rounds: Sequence[PassTables]) -> list[float]:
    """Of each round, the share of its steps' time in which something else had the processor."""
    walls = [column(tables.steps, "end_s") - column(tables.steps, "start_s") for tables in rounds]
    cpus = [column(tables.steps, "cpu_s") for tables in rounds]
    if not walls:
        return []
    taken = taken_away(np.concatenate(walls)[:, None], np.concatenate(cpus)[:, None])[:, 0]
    parts = np.split(taken, np.cumsum([len(wall) for wall in walls])[:-1])
    return [
        float((wall - cpu)[hit].sum() / wall.sum()) if hit.any() else 0.0
        for wall, cpu, hit in zip(walls, cpus, parts, strict=True)
    ]
