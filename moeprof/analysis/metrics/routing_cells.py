"""Picking a phase and a request class out of the routing counts of a pass.

Legend: W windows, P phases, C classes, G groups of neighbouring windows, L layers, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moeprof.analysis.metrics.routing_shift import MAX_GROUPS, group_windows
from moeprof.analysis.tables import ALL, IntArray, PassTables
from moeprof.core.record import PHASES
from moeprof.core.routing_counts import Routing

STEPS_PER_GROUP = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Counts of one phase and class (either may be ``all``).

    Attributes:
        counts_LE: assignments over the whole pass.
        counts_GLE: the same per stretch of time (neighbouring steps or windows) that has any.
        tokens: real tokens behind them.
    """

    counts_LE: IntArray
    counts_GLE: npt.NDArray[np.int64]
    tokens: int


def cell(routing: Routing, phase: str = ALL, request_class: str = ALL) -> Cell:
    """Pick a phase and a class out of the counts."""
    phases = list(range(len(PHASES))) if phase == ALL else [PHASES.index(phase)]
    names = routing.class_names
    classes = list(range(len(names))) if request_class == ALL else [names.index(request_class)]
    counts = routing.counts_WPCLE[:, phases][:, :, classes].sum(axis=(1, 2))
    groups, _ = time_groups(routing, phase) if request_class == ALL else group_windows(counts)
    return Cell(
        counts_LE=counts.sum(axis=0),
        counts_GLE=groups[groups.sum(axis=(1, 2)) > 0],
        tokens=int(routing.real_tokens_WPC[:, phases][:, :, classes].sum()),
    )


def time_groups(routing: Routing, phase: str = ALL) -> tuple[npt.NDArray[np.int64], IntArray]:
    """Counts of a phase over stretches of time, shape [G, L, E], and the first step of each stretch.

    Stretches are runs of steps where every step's counts were kept (a short pass may have one window only), else
    windows. A few steps belong to each stretch, so that it holds more than one batch.
    """
    phases = list(range(len(PHASES))) if phase == ALL else [PHASES.index(phase)]
    kept = routing.step_counts_SPLE
    if kept is None or len(kept) < max(len(routing.distinct_SL), 2 * STEPS_PER_GROUP):
        groups, first = group_windows(routing.counts_WPCLE[:, phases].sum(axis=(1, 2)))
        return groups, routing.window_first_step[first]
    num = min(MAX_GROUPS, len(kept) // STEPS_PER_GROUP)
    edges = np.unique(np.linspace(0, len(kept), num, endpoint=False).astype(np.int64))
    by_step = kept[:, phases[0]].astype(np.int64) if len(phases) == 1 else kept.sum(axis=1, dtype=np.int64)
    return np.add.reduceat(by_step, edges, axis=0), edges


def first_with_routing(rounds: Sequence[PassTables]) -> tuple[PassTables, Routing] | None:
    """The first round that has routing counts with windows, layers and experts."""
    for tables in rounds:
        if tables.routing is not None and tables.routing.counts_WPCLE.size:
            return tables, tables.routing
    return None
