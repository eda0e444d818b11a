"""The steady window of a pass: found by precision, refused when there is a trend.

Four moves. (1) Cut the ramp before the first request ended, and the tail after the last request entered a batch: before
and after, the batch is filling or draining whatever the traffic is. (2) Cut further at the start where MSER says that
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
import pandas as pd

from moeprof.analysis.metrics.tables import FloatArray, PassTables, column

MINIMUM_STEPS = 100
TREND_ALPHA = 0.05
STEP_TREND_FLOOR = 0.03
LOAD_TREND_FLOOR = 0.25
MAX_TREND_POINTS = 50
_MINIMUM_STRATUM = 5
_MOST_OVER_MEDIAN = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """A Mann-Kendall test.

    Attributes:
        p_value: two-sided, with Hamed and Rao's correction for autocorrelation.
        change_ratio: Theil-Sen slope times the length of the series, over its median; None when the median is 0.
    """

    p_value: float
    change_ratio: float | None

    def matters(self, floor: float) -> bool:
        """True when it is significant and larger than ``floor``."""
        large = self.change_ratio is None or abs(self.change_ratio) > floor
        return self.p_value < TREND_ALPHA and large


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
    """Steps between the first request's end and the last request's entry, or the reason why there are too few."""
    last_token, entered = column(tables.requests, "last_token_s"), column(tables.requests, "first_scheduled_s")
    if not np.isfinite(last_token).any() or not np.isfinite(entered).any() or not len(tables.steps):
        return "no steady state: no request ended"
    start_s, end_s = float(np.nanmin(last_token)), float(np.nanmax(entered))
    starts, ends = column(tables.steps, "start_s"), column(tables.steps, "end_s")
    rows = np.flatnonzero((starts >= start_s) & (ends <= end_s))
    if end_s <= start_s:
        return "no steady state: every request had started before the first one ended"
    if len(rows) < MINIMUM_STEPS:
        return f"no steady state: {len(rows)} steps between ramp and tail, {MINIMUM_STEPS} are needed"
    return rows


def mser_cut(series: FloatArray, batch: int = 5) -> int | None:
    """Where to cut the start of a series: the cut whose rest has the smallest standard error of its mean (MSER-5).

    Returns:
        The number of values to drop, or None when the best cut lies at half of the series: it has not settled.
    """
    num = len(series) // batch
    if num < 4:
        return 0
    means = series[: num * batch].reshape(num, batch).mean(axis=1)
    left = np.arange(num, 0, -1, dtype=np.float64)
    total, squares = np.cumsum(means[::-1])[::-1], np.cumsum((means**2)[::-1])[::-1]
    error = np.maximum(squares - total**2 / left, 0) / left**2
    limit = num // 2
    best = int(np.argmin(error[: limit + 1]))
    return None if best == limit else best * batch


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


def thin(series: FloatArray) -> FloatArray:
    """At most MAX_TREND_POINTS means of consecutive values: the test is quadratic, and means are less correlated."""
    return np.array([part.mean() for part in np.array_split(series, min(MAX_TREND_POINTS, len(series)))])


def mann_kendall(series: FloatArray) -> Trend:
    """Mann-Kendall test for a monotone trend, variance corrected for autocorrelation (Hamed and Rao 1998, eq. 13-17).

    S = sum of sign(x_j - x_i), i < j; Var(S) = n(n-1)(2n+5)/18 (less ties), times
    ``1 + 2/(n(n-1)(n-2)) * sum_k (n-k)(n-k-1)(n-k-2) rho_k`` over significant autocorrelations of the ranks of the
    detrended series. Never below 1 here: a negative autocorrelation is not used to find more trends.
    """
    num = len(series)
    if num < 4 or np.ptp(series) == 0:
        return Trend(p_value=1.0, change_ratio=0.0)
    first, second = np.triu_indices(num, k=1)
    rise = series[second] - series[first]
    score = float(np.sign(rise).sum())
    slope = float(np.median(rise / (second - first)))
    ties = np.unique(series, return_counts=True)[1].astype(np.float64)
    variance = (num * (num - 1) * (2 * num + 5) - float((ties * (ties - 1) * (2 * ties + 5)).sum())) / 18
    variance *= _hamed_rao_factor(series - slope * np.arange(num))
    z = 0.0 if score == 0 else (score - math.copysign(1, score)) / math.sqrt(variance)
    median = float(np.median(series))
    change = None if median == 0 else slope * num / median
    return Trend(p_value=math.erfc(abs(z) / math.sqrt(2)), change_ratio=change)


def _hamed_rao_factor(detrended: FloatArray) -> float:
    num = len(detrended)
    ranks = column(pd.DataFrame({"rank": pd.Series(detrended).rank()}), "rank")
    ranks = ranks - ranks.mean()
    power = float(ranks @ ranks)
    if power == 0:
        return 1.0
    lags = np.arange(1, num // 2)
    rho = np.array([float(ranks[:-lag] @ ranks[lag:]) for lag in lags]) / power
    rho = np.where(np.abs(rho) > 1.96 / math.sqrt(num), rho, 0.0)
    weights = (num - lags) * (num - lags - 1.0) * (num - lags - 2.0)
    return max(1.0, 1 + 2 / (num * (num - 1) * (num - 2)) * float(weights @ rho))
