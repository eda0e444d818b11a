"""Dollars at the service level: what a million tokens cost at the highest load that is known to meet it.

A load meets the SLO when the lower end of the 95 % interval of the share of its distinct requests that met every
objective is at least 95 % (two-sided, Clopper and Pearson), in at least 72 requests and four for each in flight: 72 of
72 is the fewest that can show it, and of fewer than four batches most is filling and draining. It misses the SLO when
the upper end is below 95 %, or its queue grows; anything else cannot be told. Rounds repeat the requests, so they add
none, and none of them may be below 95 %; failures and refusals count against it. The run's own rounds are a point like
any other.
The whole window is billed, idle time included: to keep the promise, one has to pay for the room that it needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

import numpy as np

from moeprof.analysis.metrics.sweep.objectives import goodput, meets_slo, notes_of, num_distinct, objectives
from moeprof.analysis.metrics.sweep.points import AXES, SweptPoint, from_metric, other_settings, over_rounds, to_metric
from moeprof.analysis.metrics.tables import PassTables, column
from moeprof.analysis.stats.estimate import Estimate
from moeprof.analysis.stats.intervals import binomial_interval
from moeprof.core import units
from moeprof.core.metric import MetricValue
from moeprof.core.workload.studies import SweepPoint
from moeprof.core.workload.workload import Slo

ATTAINED = 0.95
FEWEST = 72  # of which all met it: 0.95 ** 72 < 0.025
PER_PLACE = 4
NAME = "usd_per_1m_tokens_at_slo"
NO_SWEEP, NO_SLO, NO_POINT = "no sweep", "no SLO given", "no load is known to meet it"
ALONE = SweepPoint()


@dataclass(frozen=True, slots=True, kw_only=True)
class AtSlo:
    """The price at the service level, for one setting of whatever else was swept.

    Attributes:
        row: the other settings (prompt length, batch tokens); names nothing when only the load was swept.
        point: the highest load that is known to meet it, or None.
        usd_per_1m_tokens: all tokens, the whole window billed.
        goodput_ratio: attained there.
        notes: what a reader should know: what became of the other loads.
    """

    row: SweepPoint
    point: SweepPoint | None
    usd_per_1m_tokens: Estimate
    goodput_ratio: Estimate
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Attained:
    """Whether a load meets the SLO, and what that is known from."""

    told: Literal["met", "missed", "cannot tell"]
    text: str


def goodput_of(swept: SweptPoint, slo: Slo) -> Estimate:
    """Share of requests that met every objective, over all rounds."""
    return from_metric(goodput([one.tables for one in swept.rounds], slo, {}))


def attained(swept: SweptPoint, slo: Slo) -> Attained:
    """Judge one point."""
    rounds = [one.tables for one in swept.rounds]
    share, num = goodput_of(swept, slo), num_distinct(rounds)
    if any(one.saturated for one in swept.rounds):
        return Attained(told="missed", text="its queue grows")
    if share.value is None:
        return Attained(told="cannot tell", text=share.reason or "not measured")
    low, high = binomial_interval(share.value * num, num)
    text = f"{units.percent(share.value)} of {num} requests"
    if high < ATTAINED:
        return Attained(told="missed", text=text)
    needed = max(FEWEST, PER_PLACE * _in_flight(swept))
    if num < needed:
        return Attained(told="cannot tell", text=f"{text}, at least {needed} are needed")
    unjudged = next((r for r in swept.rounds if r.saturated is None and r.tables.traffic == "open"), None)
    if unjudged is not None:  # an open loop of which nothing says that it can go on like this
        why = (unjudged.saturation_reason or "not judged").removeprefix("cannot tell: ")
        return Attained(told="cannot tell", text=f"{text}, but whether its queue grows: {why}")
    worst = min(float(meets_slo(tables, slo).mean()) for tables in rounds)
    if low >= ATTAINED and worst >= ATTAINED:
        return Attained(told="met", text=text)
    return Attained(told="cannot tell", text=f"{text}, too near {units.percent(ATTAINED)} to tell")


def _in_flight(swept: SweptPoint) -> int:
    """Of a closed loop its places, else requests in the system at a time (Little's law)."""
    if swept.point.concurrency is not None:
        return swept.point.concurrency
    return max((round(_mean_in_flight(one.tables)) for one in swept.rounds), default=0)


def _mean_in_flight(tables: PassTables) -> float:
    inside_s = np.nansum(column(tables.requests, "last_token_s") - column(tables.requests, "arrival_s"))
    return float(inside_s) / tables.duration_s if tables.duration_s > 0 else 0.0


def usd_per_1m_tokens_at_slo(sweep: Sequence[SweptPoint], slo: Slo) -> tuple[AtSlo, ...]:
    """The price at the service level, for each setting of what was swept besides the load; never empty.

    Args:
        sweep: a model's points; empty gives the reason ``no sweep``.
        slo: objectives.
    """
    if not sweep:
        return (_none(NO_SWEEP),)
    if not objectives(slo):
        return (_none(NO_SLO),)
    rows: dict[SweepPoint, list[SweptPoint]] = {}
    for one in sweep:
        rows.setdefault(other_settings(one.point), []).append(one)
    return tuple(_at_slo(row, sorted(points, key=_load), slo) for row, points in rows.items())


def _load(one: SweptPoint) -> float:
    return next((float(value) for name in AXES[:2] if (value := getattr(one.point, name)) is not None), 0.0)


def _at_slo(row: SweepPoint, points: Sequence[SweptPoint], slo: Slo) -> AtSlo:
    loads = [[(one, attained(one, slo)) for one in same] for _, same in groupby(points, key=_load)]
    met = [load for load in loads if _told(load) == "met"]
    if not met:
        return _none(f"{NO_POINT}: {'; '.join(_texts(loads))}", row)
    others = [load for load in loads if load is not met[-1]]
    chosen = next(one for one, told in met[-1] if told.told == "met")
    rounds = [one.tables for one in chosen.rounds]
    return AtSlo(
        row=row,
        point=chosen.point,
        usd_per_1m_tokens=over_rounds(
            [(one.launch, one.usd_per_1m_total_tokens) for one in chosen.rounds], "no tokens were processed"
        ),
        goodput_ratio=goodput_of(chosen, slo),
        notes=(*_texts([load for load in others if _told(load) != "met"]), *notes_of(rounds, slo)),
    )


def _told(load: Sequence[tuple[SweptPoint, Attained]]) -> str:
    """Points of one load (of the sweep, and the run's own rounds) may not contradict each other."""
    found = {told.told for _, told in load} - {"cannot tell"}
    return found.pop() if len(found) == 1 else "cannot tell"


def _texts(loads: Sequence[Sequence[tuple[SweptPoint, Attained]]]) -> list[str]:
    """What is known of loads, and from what; what is the same for several is said once."""
    words = {"met": "met it", "missed": "missed it", "cannot tell": "undecided"}
    found: dict[tuple[str, str], list[str]] = {}
    for one, told in (pair for load in loads for pair in load):
        found.setdefault((words[told.told], told.text), []).append(one.label)
    return [f"{_listed(labels)} {verdict} ({text})" for (verdict, text), labels in found.items()]


def _listed(labels: Sequence[str]) -> str:
    """``concurrency 1, 2, 4``."""
    start = labels[0].partition(" ")[0] + " "
    return ", ".join([labels[0], *(label.removeprefix(start) for label in labels[1:])])


def _none(reason: str, row: SweepPoint = ALONE) -> AtSlo:
    nothing = Estimate(value=None, reason=reason)
    return AtSlo(row=row, point=None, usd_per_1m_tokens=nothing, goodput_ratio=nothing)


def with_price_at_slo(values: Sequence[MetricValue], sweep: Sequence[SweptPoint], slo: Slo) -> tuple[MetricValue, ...]:
    """A model's metrics, with the price at the service level where it has a sweep."""
    if not sweep:
        return tuple(values)
    traffic, found = str(sweep[0].rounds[0].tables.traffic), []
    rows = usd_per_1m_tokens_at_slo(sweep, slo)
    for row in rows:
        labels = {"traffic": traffic}
        if len(rows) > 1:
            labels["sweep"] = row.row.label
        value = to_metric(NAME, row.usd_per_1m_tokens, **labels)
        at = () if row.point is None else (f"at {row.point.label}",)
        found.append(replace(value, reasons=(*at, *value.reasons, *row.notes)))
    return (*(value for value in values if value.name != NAME), *found)
