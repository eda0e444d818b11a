"""Trends in a series of correlated points: Mann-Kendall with the Hamed-Rao factor, and the MSER cut of a warm-up."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from moeprof.analysis.stats.arrays import FloatArray

MAX_TREND_POINTS = 50


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
    import pandas as pd

    ranks = pd.Series(detrended).rank().to_numpy(dtype=np.float64)
    ranks = ranks - ranks.mean()
    power = float(ranks @ ranks)
    if power == 0:
        return 1.0
    lags = np.arange(1, num // 2)
    rho = np.array([float(ranks[:-lag] @ ranks[lag:]) for lag in lags]) / power
    rho = np.where(np.abs(rho) > 1.96 / math.sqrt(num), rho, 0.0)
    weights = (num - lags) * (num - lags - 1.0) * (num - lags - 2.0)
    return max(1.0, 1 + 2 / (num * (num - 1) * (num - 2)) * float(weights @ rho))


TREND_ALPHA = 0.05
