"""Picking a phase and a class out of the routing counts of a pass, and what of them may be shuffled and drawn anew.

The tokens of one request are routed alike, and a request lasts many steps: what is exchangeable is the request, and no
stretch of time. Units are the groups of requests that the record counts. Records without such counts are cut into
blocks of time longer than their longest request. Fewer than twelve units judge nothing.
Legend: W windows, P phases, C classes, G units, L layers, E experts, S steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from moeprof.analysis.metrics.tables import ALL, PassTables, column
from moeprof.analysis.stats.arrays import IntArray
from moeprof.core.record.layout import PHASES
from moeprof.core.record.routing import RequestCounts, Routing

LEAST_UNITS = 12
MOST_BLOCKS = 24
REQUESTS, BLOCKS = "groups of requests", "blocks of time longer than a request"


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """Counts of what is exchangeable, in time order.

    Attributes:
        counts_GLE: assignments of each unit.
        class_G: its request class; zeros unless classes were asked for.
        block_G: labels may change places between units of one block: zeros for requests, else the block of time.
        what: what a unit is, in words.
        why_not: why they judge nothing, or None.
    """

    counts_GLE: npt.NDArray[np.int64]
    class_G: IntArray
    block_G: IntArray
    what: str
    why_not: str | None

    @property
    def num(self) -> int:
        """Units; classes of one block of time are one."""
        return len(np.unique(self.block_G)) if self.what == BLOCKS else len(self.counts_GLE)


def too_few(num: int, what: str) -> str:
    """``5 groups of requests, 12 are needed``."""
    return f"{num} {what}, {LEAST_UNITS} are needed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Counts of one phase and class (either may be ``all``).

    Attributes:
        counts_LE: assignments over the whole pass.
        tokens: real tokens behind them.
    """

    counts_LE: IntArray
    tokens: int


def _rows(names: tuple[str, ...], name: str) -> list[int]:
    return list(range(len(names))) if name == ALL else [names.index(name)]


def cell(routing: Routing, phase: str = ALL, request_class: str = ALL) -> Cell:
    """Pick a phase and a class out of the counts."""
    phases, classes = _rows(PHASES, phase), _rows(routing.class_names, request_class)
    return Cell(
        counts_LE=routing.counts_WPCLE.sum(axis=0)[phases][:, classes].sum(axis=(0, 1)),
        tokens=int(routing.real_tokens_WPC.sum(axis=0)[phases][:, classes].sum()),
    )


def exchangeable_units(
    tables: PassTables, routing: Routing, phase: str = ALL, request_class: str = ALL, *, by_class: bool = False
) -> Units:
    """Units of a phase and a class that have any token.

    Args:
        tables: of the pass; says how long requests last where the record has no counts per request.
        routing: of the pass.
        phase: or all.
        request_class: or all.
        by_class: keep classes apart.
    """
    phases, classes = _rows(PHASES, phase), _rows(routing.class_names, request_class)
    if routing.requests is not None:
        counts_GLE, class_G = _of_requests(routing.requests, phases, classes)
        return _units(counts_GLE, class_G, np.zeros_like(class_G), REQUESTS)
    counts_GCLE = _of_time(tables, routing, phases, classes, by_class=by_class)
    block_G, class_G = (x.reshape(-1) for x in np.indices(counts_GCLE.shape[:2]))
    return _units(counts_GCLE.reshape(-1, *counts_GCLE.shape[2:]), class_G, block_G, BLOCKS)


def _units(counts_GLE: npt.NDArray[np.int64], class_G: IntArray, block_G: IntArray, what: str) -> Units:
    used = counts_GLE.sum(axis=(1, 2)) > 0
    found = Units(
        counts_GLE=counts_GLE[used], class_G=class_G[used], block_G=block_G[used], what=what, why_not=None
    )  # fmt: skip
    if found.num >= LEAST_UNITS:
        return found
    why = too_few(found.num, what)
    if what == BLOCKS:
        why = f"the record has no counts per request, and {why}"
    return Units(
        counts_GLE=found.counts_GLE, class_G=found.class_G, block_G=found.block_G, what=what, why_not=why
    )  # fmt: skip


def _of_requests(
    requests: RequestCounts, phases: list[int], classes: list[int]
) -> tuple[npt.NDArray[np.int64], IntArray]:
    order = np.argsort(requests.request_first_U, kind="stable")
    order = order[np.isin(requests.request_class_U[order], classes)]
    counts = requests.request_counts_UPLE[order][:, phases].sum(axis=1, dtype=np.int64)
    return counts, requests.request_class_U[order]


def _of_time(
    tables: PassTables, routing: Routing, phases: list[int], classes: list[int], *, by_class: bool
) -> npt.NDArray[np.int64]:
    """Counts by block of time and class: as many equal blocks as are longer than the longest request, 24 at most.

    Blocks are cut between windows; between steps where every step's counts were kept and classes do not matter.
    """
    first_step, num_steps, kept = routing.window_first_step, len(routing.distinct_SL), routing.step_counts_SPLE
    wanted = min(MOST_BLOCKS, num_steps // (longest_request_steps(tables) + 1))
    edges = np.linspace(0, num_steps, max(wanted, 1), endpoint=False).astype(np.int64)
    if kept is not None and len(kept) == num_steps > 0 and not by_class and len(classes) == len(routing.class_names):
        by_phase = [np.add.reduceat(kept[:, phase], edges, axis=0, dtype=np.int64) for phase in phases]
        return cast(IntArray, sum(by_phase))[:, None]
    starts = np.unique(np.searchsorted(first_step, edges).clip(max=len(first_step) - 1))
    counts_WCLE = routing.counts_WPCLE[:, phases][:, :, classes].sum(axis=1)
    counts_GCLE = np.add.reduceat(counts_WCLE, starts, axis=0)
    return counts_GCLE if by_class else counts_GCLE.sum(axis=1, keepdims=True)


def longest_request_steps(tables: PassTables, phase: str = ALL) -> int:
    """Most steps from the first step with tokens of a request to its last one; of prefill up to the first output token.

    Taken from the times of the requests; 1 where none are known.
    """
    begin, first, last = (
        column(tables.requests, f"{name}_s") for name in ("first_scheduled", "first_token", "last_token")
    )
    begin, last = {"prefill": (begin, first), "decode": (first, last)}.get(phase, (begin, last))
    known = np.isfinite(begin)
    last = np.where(np.isfinite(last), last, tables.window_s[1])[known]
    ends = column(tables.steps, "end_s")
    if not len(ends) or not known.any():
        return 1
    span = np.searchsorted(ends, last, side="left") - np.searchsorted(ends, begin[known], side="right") + 1
    return max(1, min(int(span.max()), len(ends)))
