"""Objectives of the service level: which requests met them, and shares of requests with their intervals.

Failures and refusals miss every objective. Rounds repeat the same requests, so a share speaks of distinct requests: its
interval is binomial over those, joined with the one over rounds. A request of one output token has no time between
tokens to be slow in, so it meets a tpot objective; where no request has two, the objective was neither met nor missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from moeprof.analysis.metrics.tables import BoolArray, PassTables, column, is_done
from moeprof.analysis.stats import intervals
from moeprof.core.metric import MetricValue, estimated, missing

if TYPE_CHECKING:
    from moeprof.core.workload.workload import Slo

QUANTITIES = ("ttft", "tpot", "e2e")
NO_SLO = "the workload states no slo"
NO_GAP = "no request has two output tokens, so there is no time between tokens to judge"


def objectives(slo: Slo | None) -> dict[str, float]:
    """The stated ones in s, by quantity."""
    found = {} if slo is None else {quantity: getattr(slo, f"{quantity}_s") for quantity in QUANTITIES}
    return {quantity: limit_s for quantity, limit_s in found.items() if limit_s is not None}


def meets(tables: PassTables, quantity: str, limit_s: float) -> BoolArray:
    """True for requests that ended well and met one objective."""
    table = tables.requests
    arrival, first, last = (column(table, name) for name in ("arrival_s", "first_token_s", "last_token_s"))
    gaps = np.maximum(column(table, "output_tokens") - 1, 1)
    took_s = {"ttft": first - arrival, "tpot": (last - first) / gaps, "e2e": last - arrival}[quantity]
    return is_done(table) & (took_s <= limit_s)


def meets_slo(tables: PassTables, slo: Slo) -> BoolArray:
    """True for requests that ended well and met every stated objective."""
    good = tables.done
    for quantity, limit_s in objectives(slo).items():
        good = good & meets(tables, quantity, limit_s)
    return good


def why_unjudged(rounds: Sequence[PassTables], slo: Slo | None, quantity: str | None = None) -> str | None:
    """Why no request can meet or miss the objective (None: all of them together), or None where some can."""
    stated = objectives(slo)
    if not stated:
        return NO_SLO
    if quantity is not None and quantity not in stated:
        return f"{NO_SLO} for {quantity}"
    judged = set(stated) if quantity is None else {quantity}
    return NO_GAP if judged == {"tpot"} and not _has_gaps(rounds) else None


def notes_of(rounds: Sequence[PassTables], slo: Slo) -> tuple[str, ...]:
    """What a share of all objectives leaves out."""
    blind = "tpot" in objectives(slo) and not _has_gaps(rounds)
    return (f"the tpot objective judges nothing: {NO_GAP}",) if blind else ()


def _has_gaps(rounds: Sequence[PassTables]) -> bool:
    """Two output tokens of a request that ended well; of others, two that were asked for."""
    for tables in rounds:
        got, asked = (column(tables.requests, name) for name in ("output_tokens", "asked_output_tokens"))
        if (np.where(tables.done, got, asked) >= 2).any():
            return True
    return False


def num_distinct(rounds: Sequence[PassTables]) -> int:
    """Requests of the schedule that any of the rounds has: rounds repeat them."""
    return len({int(row) for tables in rounds for row in tables.requests["request"]})


def share_of_requests(
    name: str,
    rounds: Sequence[PassTables],
    met: Sequence[BoolArray],
    labels: dict[str, str],
    notes: tuple[str, ...] = (),
) -> MetricValue:
    """The mean over rounds of the share of requests that met something.

    Args:
        name: of the metric.
        rounds: passes over the same schedule.
        met: for each round, shape [requests].
        labels: of the value.
        notes: sentences added to it.
    """
    shares = [float(one.mean()) for one in met if len(one)]
    if not shares:
        return missing(name, "no requests", **labels)
    share, num = float(np.mean(shares)), num_distinct(rounds)
    interval = intervals.share_interval(intervals.binomial_interval(share * num, num), shares)
    return estimated(name, share, interval, "", n=num, labels=labels, notes=notes)


def goodput(rounds: Sequence[PassTables], slo: Slo, labels: dict[str, str]) -> MetricValue:
    """Share of requests that met every objective."""
    reason = why_unjudged(rounds, slo)
    if reason is not None:
        return missing("goodput_ratio", reason, **labels)
    met = [meets_slo(tables, slo) for tables in rounds]
    return share_of_requests("goodput_ratio", rounds, met, labels, notes_of(rounds, slo))
