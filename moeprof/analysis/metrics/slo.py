"""Dollars at the service level: what a million tokens cost at the highest load that still meets it.

A load meets the SLO when at least 95 % of all requests do so in every round; failures and refusals count against it.
The whole window is billed, idle time included: to keep the promise, one has to pay for the room that it needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from moeprof.analysis.metrics.sweep import AXES, SweptPoint, over_rounds, to_metric
from moeprof.analysis.metrics.throughput import meets_slo
from moeprof.analysis.stats.estimate import Estimate
from moeprof.core.metric import MetricValue
from moeprof.core.workload.studies import SweepPoint
from moeprof.core.workload.workload import Slo

ATTAINED = 0.95
NAME = "usd_per_1m_tokens_at_slo"
NO_SWEEP, NO_SLO, NO_POINT = "no sweep", "no SLO given", "no stable point"
ALONE = SweepPoint()


@dataclass(frozen=True, slots=True, kw_only=True)
class AtSlo:
    """The price at the service level, for one setting of whatever else was swept.

    Attributes:
        row: the other settings (prompt length, batch tokens); names nothing when only the load was swept.
        point: the highest load that meets it, or None.
        usd_per_1m_tokens: all tokens, the whole window billed.
        goodput_ratio: attained there.
        notes: what a reader should know: lower loads that missed it, or that the highest load tried still met it.
    """

    row: SweepPoint
    point: SweepPoint | None
    usd_per_1m_tokens: Estimate
    goodput_ratio: Estimate
    notes: tuple[str, ...] = ()


def has_objective(slo: Slo) -> bool:
    """True when any objective is given."""
    return (slo.ttft_s, slo.tpot_s, slo.e2e_s) != (None, None, None)


def goodput_ratios(swept: SweptPoint, slo: Slo) -> list[tuple[int, float | None]]:
    """(launch, share of all requests that met every objective) per round."""
    if not has_objective(slo):
        return [(one.launch, None) for one in swept.rounds]
    shares: list[tuple[int, float | None]] = []
    for one in swept.rounds:
        num = len(one.tables.requests)
        shares.append((one.launch, float(meets_slo(one.tables, slo).sum()) / num if num else None))
    return shares


def is_attained(swept: SweptPoint, slo: Slo) -> bool | None:
    """At least 95 % in every round, none of them saturated; None without an SLO."""
    if not has_objective(slo):
        return None
    shares = [share for _, share in goodput_ratios(swept, slo)]
    stable = not any(one.saturated for one in swept.rounds)
    return bool(shares) and stable and all(share is not None and share >= ATTAINED for share in shares)


def usd_per_1m_tokens_at_slo(sweep: Sequence[SweptPoint], slo: Slo) -> tuple[AtSlo, ...]:
    """The price at the service level, for each setting of what was swept besides the load; never empty.

    Args:
        sweep: a model's points; empty gives the reason ``no sweep``.
        slo: objectives.
    """
    if not sweep:
        return (_none(NO_SWEEP),)
    if not has_objective(slo):
        return (_none(NO_SLO),)
    rows: dict[SweepPoint, list[SweptPoint]] = {}
    for one in sweep:
        rows.setdefault(other_settings(one.point), []).append(one)
    return tuple(_at_slo(row, sorted(points, key=_load), slo) for row, points in rows.items())


def other_settings(point: SweepPoint) -> SweepPoint:
    """The point without its load (concurrency or rate)."""
    return replace(point, concurrency=None, request_rate=None)


def _load(one: SweptPoint) -> float:
    return next((float(value) for name in AXES[:2] if (value := getattr(one.point, name)) is not None), 0.0)


def _at_slo(row: SweepPoint, points: Sequence[SweptPoint], slo: Slo) -> AtSlo:
    met = [one for one in points if is_attained(one, slo)]
    unjudged = [one for one in met if _unjudged(one)]
    met = [one for one in met if not _unjudged(one)]
    if unjudged and not met:
        why = next(r.saturation_reason for r in unjudged[0].rounds if r.saturated is None) or "not judged"
        return _none(f"{NO_POINT} is known: {unjudged[0].point.label} met it, but whether its queue grows: {why}", row)
    if not met:
        best = max((share for one in points for _, share in goodput_ratios(one, slo) if share is not None), default=0.0)
        reason = f"{NO_POINT}: the best of {len(points)} loads met it for {100 * best:.0f} % of requests"
        return _none(f"{reason}, {100 * ATTAINED:.0f} % in every round are needed", row)
    chosen = met[-1]
    missed = [one.point.label for one in points[: points.index(chosen)] if one not in met]
    notes = [f"lower loads missed it: {', '.join(missed)}"] if missed else []
    if chosen is points[-1]:
        notes.append("the highest load tried still met it; a higher one may be cheaper")
    return AtSlo(
        row=row,
        point=chosen.point,
        usd_per_1m_tokens=over_rounds(
            [(one.launch, one.usd_per_1m_total_tokens) for one in chosen.rounds], "no tokens were processed"
        ),
        goodput_ratio=over_rounds(goodput_ratios(chosen, slo), NO_SLO, bounded=True),
        notes=tuple(notes),
    )


def _unjudged(one: SweptPoint) -> bool:
    """An open loop of which nothing says that it can go on like this."""
    return any(r.saturated is None and r.tables.traffic == "open" for r in one.rounds)


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
