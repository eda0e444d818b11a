"""Picking a phase and a request class out of the routing counts of a pass.

Legend: W windows, P phases, C classes, G groups of neighbouring windows, L layers, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moeprof.analysis.metrics.routing_shift import group_windows
from moeprof.analysis.tables import ALL, IntArray, PassTables
from moeprof.core.record import PHASES
from moeprof.core.routing_counts import Routing


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Counts of one phase and class (either may be ``all``).

    Attributes:
        counts_LE: assignments over the whole pass.
        counts_GLE: assignments per group of neighbouring windows.
        tokens: real tokens behind them.
        num_windows: windows behind the groups.
    """

    counts_LE: IntArray
    counts_GLE: npt.NDArray[np.int64]
    tokens: int
    num_windows: int


def cell(routing: Routing, phase: str = ALL, request_class: str = ALL) -> Cell:
    """Pick a phase and a class out of the counts."""
    phases = list(range(len(PHASES))) if phase == ALL else [PHASES.index(phase)]
    names = routing.class_names
    classes = list(range(len(names))) if request_class == ALL else [names.index(request_class)]
    counts = routing.counts_WPCLE[:, phases][:, :, classes].sum(axis=(1, 2))
    return Cell(
        counts_LE=counts.sum(axis=0),
        counts_GLE=group_windows(counts)[0],
        tokens=int(routing.real_tokens_WPC[:, phases][:, :, classes].sum()),
        num_windows=len(counts),
    )


def first_with_routing(rounds: Sequence[PassTables]) -> tuple[PassTables, Routing] | None:
    """The first round that has routing counts with windows, layers and experts."""
    for tables in rounds:
        if tables.routing is not None and tables.routing.counts_WPCLE.size:
            return tables, tables.routing
    return None
