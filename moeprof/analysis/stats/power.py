"""How many launches would decide: what a sample can show is looked at before what it shows.

A gate is decided well where half its interval, at the confidence of the verdict (one-sided alpha, divided by the timed
gates in use as Holm's first step does), is at most half the threshold: then a difference of 0 is shown to lie within it
and one of twice the threshold beyond it. The spread is that of the launches at hand, so the number is an estimate; with
six of them it may be off by a factor of two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from moeprof.analysis.stats.arrays import FloatArray
from moeprof.analysis.stats.verdicts import ALPHA, MIN_LAUNCH_PAIRS, SLACK, Sample, limits

MOST = 1000  # beyond it nobody would measure
MANY = 20  # launches or pairs beyond which another way of measuring is named first
PRECISE = 0.5  # half an interval is narrow enough to decide at this share of the threshold


def half_width(logs: Sequence[float], num_gates: int = 1) -> float:
    """Half the interval of the mean log ratio, at the confidence of the verdict; infinite with fewer than two pairs."""
    if len(logs) < 2:
        return math.inf
    return float(_pair_halves(_spread(logs), np.array([len(logs)]), num_gates)[0])


def enough(logs: Sequence[float], floor_ratio: float, num_gates: int = 1) -> bool:
    """Whether more launch pairs would be waste: enough of them, and half the interval within half the floor.

    Looks at precision alone, never at the verdict, so stopping by it raises no false alarm of *worse* or *better*. It
    does favour samples whose spread looks small: judged as if their number had been fixed, a change of exactly the
    floor would be called no difference in up to 1.6 % of samples instead of 1 %. So whoever stops by it measures one
    more pair, and judges *no difference* at half of alpha (simulated: 0.5 to 0.8 %; one more pair alone: 1.5 %).
    """
    return len(logs) >= MIN_LAUNCH_PAIRS and half_width(logs, num_gates) <= PRECISE * math.log1p(floor_ratio)


def lag_1_correlation(logs: Sequence[float]) -> float | None:
    """Correlation of each pair's ratio with the next one's; None with fewer pairs than a verdict needs.

    The plain estimate is low by about 1 / n, which is added. It is rough: above 0.5 with six independent pairs in 5 %
    of cases, with 12 in 2 %; where the true correlation is 0.9, with six in 32 %, with 12 in 65 %, with 20 in 85 %.
    """
    if len(logs) < MIN_LAUNCH_PAIRS:
        return None
    apart = np.asarray(logs, dtype=np.float64) - np.mean(logs)
    power = float(apart @ apart)
    return None if power == 0 else float(apart[1:] @ apart[:-1]) / power + 1 / len(logs)


def needed_pairs(logs: Sequence[float], floor_ratio: float, num_gates: int = 1) -> int | None:
    """Launch pairs that would do, by the spread of these (two or more); None where more than MOST would be needed."""
    nums = np.arange(MIN_LAUNCH_PAIRS, MOST + 1)
    return _first(nums, _pair_halves(_spread(logs), nums, num_gates) <= PRECISE * math.log1p(floor_ratio))


def needed_launches(
    reference: Sequence[float], other: Sequence[float], floor_ratio: float, num_gates: int = 1, *, fixed: bool = True
) -> int | None:
    """Launches of the new run that would do; None where no number would.

    Args:
        reference: log of each launch of the baseline, at least two.
        other: of the new run, at least two.
        floor_ratio: threshold.
        num_gates: timed gates in use.
        fixed: the baseline keeps its launches; False: both sides are measured anew with as many.
    """
    nums = np.arange(2, MOST + 1)
    held = np.full(len(nums), len(reference)) if fixed else nums
    parts = _spread(reference) ** 2 / held, _spread(other) ** 2 / nums
    errors = np.sqrt(parts[0] + parts[1])
    squares = parts[0] ** 2 / (held - 1) + parts[1] ** 2 / (nums - 1)
    degrees = np.divide((parts[0] + parts[1]) ** 2, squares, out=(held + nums - 2.0), where=squares > 0)
    return _first(nums, _quantiles(degrees, num_gates) * errors <= PRECISE * math.log1p(floor_ratio))


def needed_as_is(sample: Sample, num: int, num_gates: int = 1) -> int | None:
    """Launches (or pairs) that would decide were the figure exactly what it is now; None where more than MOST.

    For figures near the threshold: they may be measured well and yet lie on neither side.
    """
    nums = np.arange(2, MOST + 1)
    errors, mean = sample.error * np.sqrt(num / nums), sample.mean
    fall, rise = limits(sample.floor_ratio)
    if not fall - SLACK <= mean <= rise + SLACK:
        return _first(nums, _quantiles(nums - 1.0, num_gates) * errors <= abs(mean))
    return _first(nums, _quantiles(nums - 1.0, 1) * errors <= min(rise - mean, mean - fall))


def _pair_halves(spread: float, nums: npt.NDArray[np.int64], num_gates: int) -> FloatArray:
    halves: FloatArray = _quantiles(nums - 1.0, num_gates) * spread / np.sqrt(nums)
    return halves


def _quantiles(degrees: npt.NDArray[np.floating[Any]], num_gates: int) -> FloatArray:
    from scipy.special import stdtrit

    return np.asarray(stdtrit(degrees, 1 - ALPHA / max(num_gates, 1)), dtype=np.float64)


def _spread(logs: Sequence[float]) -> float:
    values = np.asarray(logs, dtype=np.float64)
    return float(values.std(ddof=1)) if np.ptp(values) > 0 else 0.0


def _first(nums: npt.NDArray[np.int64], fits: npt.NDArray[np.bool_]) -> int | None:
    return int(nums[int(np.argmax(fits))]) if fits.any() else None
