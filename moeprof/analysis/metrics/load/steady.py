"""The steady window of a pass: found by precision, refused when there is a trend.

An open loop whose queue grows has none: its latencies grow with the length of the schedule (overload.py judges it).

Four moves. (1) Cut the ramp before the first request ended, and the tail after the last request entered a batch (in an
open loop after the last arrival, if that is earlier: the queue is draining from then on): before and after, the batch
is filling or draining whatever the traffic is. (2) Cut further at the start where MSER says that
the number of requests in flight is still settling; the cut with the smallest standard error wins, whatever the mean
(White 1997, MSER-5). (3) Require that requests in flight show no trend. (4) Require that step time at comparable load
(each step against the median of steps with the same phase and nearly the same tokens, less what their different
contexts explain) shows none. A machine that slows down exactly as contexts grow cannot be told from growing contexts.
A trend is a Mann-Kendall test with the variance correction of Hamed and Rao (1998), p < 0.05, whose Theil-Sen slope
also amounts to something over the window: with enough steps any machine shows a trend of a thousandth.
"No steady state" is a legal outcome; it carries its reason.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moeprof.analysis.metrics.load.overload import backlog, saturation_of
from moeprof.analysis.metrics.tables import PassTables, column
from moeprof.analysis.stats.arrays import FloatArray
from moeprof.analysis.stats.trend import Trend, mann_kendall, mser_cut, thin

MINIMUM_STEPS = 100
OVERLOADED = "requests arrived faster than they were served"
STEP_TREND_FLOOR = 0.03
LOAD_TREND_FLOOR = 0.25
_MINIMUM_STRATUM = 5
_MOST_OVER_MEDIAN = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Steady:
    """The steady window of one pass, or why there is none.

    Attributes:
        window_s: start and end, seconds of the pass; None when there is no steady state.
        reason: why there is none; None when there is one.
    """

    window_s: tuple[float, float] | None
    reason: str | None


def find_steady(tables: PassTables) -> Steady:
    """Find the steady window of a pass, or say why there is none."""
    told = saturation_of(tables)
    if told.saturated:
        return Steady(window_s=None, reason=f"no steady state: {OVERLOADED}: {told.reason}")
    piled_up = backlog(tables)
    if piled_up is not None:
        return Steady(window_s=None, reason=f"no steady state: {piled_up}")
    found = _between_ramp_and_tail(tables)
    if isinstance(found, str):
        return Steady(window_s=None, reason=found)
    starts, ends = column(tables.steps, "start_s"), column(tables.steps, "end_s")
    in_flight = column(tables.steps, "num_requests") + np.nan_to_num(column(tables.steps, "num_waiting"))
    cut = mser_cut(in_flight[found])
    if cut is None:
        return Steady(window_s=None, reason="no steady state: requests in flight had not settled by half of the window")
    rows = found[cut:]
    if len(rows) < MINIMUM_STEPS:
        return Steady(
            window_s=None, reason=f"no steady state: {len(rows)} steps after the ramp, {MINIMUM_STEPS} are needed"
        )
    load, step = mann_kendall(thin(in_flight[rows])), _step_trend(tables, rows)
    window = (float(starts[rows[0]]), float(ends[rows[-1]]))
    if load.matters(LOAD_TREND_FLOOR):
        reason = f"no steady state: requests in flight change by {_percent(load)} over the window"
        return Steady(window_s=None, reason=reason)
    if step is None:
        return Steady(window_s=None, reason="no steady state: no two steps had comparable load")
    if step.matters(STEP_TREND_FLOOR):
        reason = f"no steady state: step time at equal load changes by {_percent(step)} over the window"
        return Steady(window_s=None, reason=reason)
    return Steady(window_s=window, reason=None)


def _percent(trend: Trend) -> str:
    return "an unknown share" if trend.change_ratio is None else f"{100 * trend.change_ratio:+.1f} %"


def _between_ramp_and_tail(tables: PassTables) -> npt.NDArray[np.int64] | str:
    """Steps between the first request's end and the last one's entry or arrival, or why there are too few."""
    last_token, entered = column(tables.requests, "last_token_s"), column(tables.requests, "first_scheduled_s")
    if not np.isfinite(last_token).any() or not np.isfinite(entered).any() or not len(tables.steps):
        return "no steady state: no request ended"
    start_s, end_s = float(np.nanmin(last_token)), float(np.nanmax(entered))
    if tables.traffic == "open":
        end_s = min(end_s, float(np.nanmax(column(tables.requests, "arrival_s"))))
    starts, ends = column(tables.steps, "start_s"), column(tables.steps, "end_s")
    rows = np.flatnonzero((starts >= start_s) & (ends <= end_s))
    if end_s <= start_s:
        return "no steady state: every request had started before the first one ended"
    if len(rows) < MINIMUM_STEPS:
        return f"no steady state: {len(rows)} steps between ramp and tail, {MINIMUM_STEPS} are needed"
    return rows


def _step_trend(tables: PassTables, rows: npt.NDArray[np.int64]) -> Trend | None:
    relative = relative_step_time(tables, rows)
    relative = relative[np.isfinite(relative)]
    return mann_kendall(thin(relative)) if len(relative) >= MINIMUM_STEPS // 2 else None


def relative_step_time(tables: PassTables, rows: npt.NDArray[np.int64]) -> FloatArray:
    """Step time over what steps with comparable load take; NaN where fewer than five compare.

    Comparable: same phase, and tokens within 10 % (binned on a logarithmic scale). Context, which may grow from step to
    step, is not binned but taken off: ``median + b * (context - mean context)`` with one b >= 0 per phase, the seconds
    that a key more costs whatever the batch.
    """
    steps = tables.steps.iloc[rows]
    wall, context = column(steps, "end_s") - column(steps, "start_s"), column(steps, "context_tokens")
    phase = np.unique(steps["phase"].to_numpy(), return_inverse=True)[1].astype(np.int64)
    parts = [phase]
    for name in ("prefill_tokens", "decode_tokens"):
        parts.append(np.round(np.log1p(column(steps, name)) / math.log(1.1)).astype(np.int64))
    _, stratum = np.unique(np.stack(parts, axis=1), axis=0, return_inverse=True)
    order = np.argsort(stratum, kind="stable")
    strata = [m for m in np.split(order, np.flatnonzero(np.diff(stratum[order])) + 1) if len(m) >= _MINIMUM_STRATUM]
    slope_s = {code: _seconds_per_key(wall, context, [m for m in strata if phase[m[0]] == code]) for code in set(phase)}
    result = np.full(len(rows), np.nan)
    for members in strata:
        extra = slope_s[phase[members[0]]] * np.nan_to_num(context[members])
        result[members] = wall[members] / (np.median(wall[members] - extra) + extra)
    return result


def _seconds_per_key(wall: FloatArray, context: FloatArray, strata: list[npt.NDArray[np.int64]]) -> float:
    """Least squares slope of time on context within strata, never negative; single slow steps count at most threefold.

    0 where contexts are unknown or so alike that they explain nothing.
    """
    shared = power = 0.0
    for members in strata:
        if not np.isfinite(context[members]).all():
            return 0.0
        keys = context[members] - context[members].mean()
        shared += float(keys @ np.minimum(wall[members], _MOST_OVER_MEDIAN * np.median(wall[members])))
        power += float(keys @ keys)
    return max(shared / power, 0.0) if power > 0 else 0.0
