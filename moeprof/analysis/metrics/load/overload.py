"""Traffic that was more than the engine could serve: which open passes saw it, and what the engine served meanwhile.

Every open pass is judged, from its table of requests, by the rule of core/record/saturation.py. While a queue grows the
engine is never without work, so what it completes per second is what it can serve of such requests, its capacity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moeprof.analysis.metrics.tables import PassTables, column, is_done
from moeprof.core import units
from moeprof.core.record.passes import Saturation
from moeprof.core.record.saturation import (
    ENOUGH,
    MIN_REQUESTS,
    judge_requests,
    longest_queue,
    open_times,
    settled_from_s,
)


def saturation_of(tables: PassTables) -> Saturation:
    """Whether the engine kept up with the arrivals of this pass."""
    return judge_requests(tables.requests, tables.traffic, tables.window_s[1])


def backlog(tables: PassTables) -> str | None:
    """Requests piled up: more of them than bursts explain, so that no stretch of an open pass is like the next.

    In the system over the second half of the arrivals, less those in it when the first ones ended (an empty engine has
    filled up by then), against the longest queue of a server with 0.9 load on the same arrivals. The rule of saturation
    also asks for a tenth left unserved: with 7 % too much a pass piles up long before that.
    """
    arrival_s, finished_s = open_times(tables.requests)
    if tables.traffic != "open" or len(arrival_s) < MIN_REQUESTS:
        return None
    last_s = min(float(arrival_s[-1]), tables.window_s[1])
    full_s = settled_from_s(arrival_s, finished_s, 0.0)
    if not full_s <= last_s / 2:
        return None  # still filling up
    finished_s = np.where(np.isnan(finished_s), np.inf, finished_s)
    at_start = int((arrival_s <= full_s).sum() - (finished_s <= full_s).sum())
    middle_s = (full_s + last_s) / 2
    inside_s = np.minimum(finished_s, last_s) - np.maximum(arrival_s, middle_s)
    more = float(np.maximum(inside_s, 0).sum()) / (last_s - middle_s) - at_start
    burst = longest_queue(arrival_s, ENOUGH)
    if more <= burst:
        return None
    return f"in the second half {more:.0f} more requests were in flight than at the start, bursts explain {burst}"


def requested_rate(tables: PassTables) -> float | None:
    """Requests per second of an open schedule: N arrivals span N - 1 gaps. None for fewer than two arrivals."""
    arrival_s = column(tables.requests, "arrival_s")
    arrival_s = arrival_s[np.isfinite(arrival_s)]
    span_s = float(np.ptp(arrival_s)) if len(arrival_s) else 0.0
    return (len(arrival_s) - 1) / span_s if span_s > 0 else None


def capacity_per_s(tables: PassTables) -> float | None:
    """Requests completed per second while the queue was never empty; None for a pass whose queue did not grow.

    From when on the system is full (t0 of the rule) to the last entry into a batch, or to the last arrival where that
    is later or entries are not known.
    """
    if not saturation_of(tables).saturated:
        return None
    arrival_s, finished_s = open_times(tables.requests)
    last_s = min(float(arrival_s[-1]), tables.window_s[1])
    start_s = settled_from_s(arrival_s, finished_s, last_s)
    entered_s = column(tables.requests, "first_scheduled_s")
    end_s = float(np.nanmax(np.append(entered_s, last_s)))
    return float(((finished_s > start_s) & (finished_s <= end_s)).sum()) / (end_s - start_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Overload:
    """Open rounds in which the traffic was more than the engine could serve.

    Attributes:
        saturated: number of such rounds.
        kept_up: number of rounds that kept up; the rest cannot tell.
        rounds: number of open rounds.
        requested_per_s: of the schedule.
        capacity_per_s: completed while the queue grew, mean over those rounds.
    """

    saturated: int
    kept_up: int
    rounds: int
    requested_per_s: float
    capacity_per_s: float

    @property
    def told(self) -> bool:
        """True when no round says otherwise."""
        return not self.kept_up

    def sentence(self, name: str) -> str:
        """What happened, for people."""
        often = "" if self.saturated == self.rounds else f" in {self.saturated} of {self.rounds} rounds"
        rates = [units.significant(rate) for rate in (self.requested_per_s, self.capacity_per_s)]
        return (
            f"The traffic was more than {name} could serve{often}: requests arrived at {rates[0]}/s, it completed "
            f"{rates[1]}/s; its latencies only say how long the schedule was"
        )


def overload_of(rounds: Sequence[PassTables]) -> Overload | None:
    """What open rounds say of the traffic; None when in none of them the queue grew."""
    told = [saturation_of(tables).saturated for tables in rounds if tables.traffic == "open"]
    capacities = [rate for tables in rounds if (rate := capacity_per_s(tables)) is not None]
    if not capacities:
        return None
    requested = [rate for tables in rounds if (rate := requested_rate(tables)) is not None]
    return Overload(
        saturated=told.count(True),
        kept_up=told.count(False),
        rounds=len(told),
        requested_per_s=float(np.mean(requested)),
        capacity_per_s=float(np.mean(capacities)),
    )


def fell_behind(rounds: Sequence[PassTables]) -> str | None:
    """A pass that ended long after its last arrival with requests left over, where growth cannot be told; else None.

    Long: after as much time again as the requests took to arrive. Left over: more than a tenth of them.
    """
    for tables in rounds:
        arrival_s = column(tables.requests, "arrival_s")
        if tables.traffic != "open" or not len(arrival_s) or saturation_of(tables).saturated is not None:
            continue
        last_s, end_s = float(np.nanmax(arrival_s)), tables.window_s[1]
        done, asked = int(is_done(tables.requests).sum()), len(arrival_s)
        if end_s >= 2 * last_s > 0 and done < ENOUGH * asked:
            return (
                f"{done} of {asked} requests were finished {units.seconds(end_s)} after the first one, although they "
                f"arrived within {units.seconds(last_s)}"
            )
    return None
