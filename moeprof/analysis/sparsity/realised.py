"""How much of the saving between the two dense twins an MoE realised, and which dense size it costs as much as.

Both from lock-step lanes (joint bootstrap) and from rounds of models that ran alone (independent samples).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from moeprof.analysis.compare.lanes import LaneOffset, lanes_estimate
from moeprof.analysis.stats import intervals
from moeprof.analysis.stats.arrays import FloatArray
from moeprof.analysis.stats.bootstrap import Draws, linear_estimate
from moeprof.analysis.stats.estimate import Estimate
from moeprof.core import units

LEAST_SAVING = 0.05
MIN_SIZES = 3
GRID = 100  # places between two neighbouring sizes where the ladder is held against the MoE


def sparsity_realised(total: float, moe: float, active: float) -> float | None:
    """(total-matched - MoE) / (total-matched - active-matched): 1 = all of it, 0 = none; None without a saving."""
    return None if total == active else (total - moe) / (total - active)


def no_saving(saving: Estimate, total: Estimate) -> str | None:
    """Why the share of the saving (total- less active-matched twin) cannot be told; None where it can."""
    if saving.value is None or total.value is None:
        return saving.reason or total.reason
    if saving.low is None:
        return f"the saving between the two dense twins has no interval ({saving.reason})"
    if not saving.excludes(0):
        return "the two dense twins are not distinguishable, so there is no saving between them"
    if saving.value <= LEAST_SAVING * total.value:
        return f"the twins are within {LEAST_SAVING:.0%} of each other, or the wrong way round: too small a saving"
    return None


def realised_of_lanes(
    launches: Sequence[Draws], total: str, moe: str, active: str, offset: LaneOffset | None = None
) -> Estimate:
    """The realised share from lock-step lanes; null where the twins' saving is too small or cannot be told."""
    saving = lanes_estimate(launches, lambda seconds: seconds[total] - seconds[active], offset, signed=True)
    reason = no_saving(saving, lanes_estimate(launches, lambda seconds: seconds[total], offset))
    if reason is not None:
        return Estimate(value=None, n=saving.n, reason=reason)
    return lanes_estimate(
        launches, lambda seconds: sparsity_realised(seconds[total], seconds[moe], seconds[active]), offset, signed=True
    )


def realised_of_rounds(total: Sequence[float], moe: Sequence[float], active: Sequence[float]) -> Estimate:
    """The realised share from costs per round (per launch, where there are several) of models that ran alone.

    The interval is Welch's of the share's linear part, ``(1 - r) total - MoE + r active``, over the saving (delta
    method): rounds of different models are taken as independent.
    """
    saving = linear_estimate([(1.0, total), (-1.0, active)])
    reason = no_saving(saving, Estimate(value=float(np.mean(total))))
    share = sparsity_realised(float(np.mean(total)), float(np.mean(moe)), float(np.mean(active)))
    if reason is not None or share is None or saving.value is None:
        return Estimate(value=None, n=saving.n, reason=reason)
    spread = linear_estimate([((1 - share) / saving.value, total), (-1 / saving.value, moe),
                              (share / saving.value, active)])  # fmt: skip
    if spread.low is None or spread.high is None or spread.value is None:
        return Estimate(value=share, n=spread.n, reason=spread.reason)
    return Estimate(
        value=share, low=share + spread.low - spread.value, high=share + spread.high - spread.value, n=spread.n
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseEquivalent:
    """The total parameters of the dense model that costs as much as the MoE at the same load.

    Attributes:
        params: None outside of the ladder or where it is not monotone. One end of its interval alone may be None: then
            it lies outside of the ladder, and ``reason`` says so.
        bound: the size is ``below`` or ``above`` ``bound_params``; None where it is known or cannot be told.
        bound_params: the end of the ladder.
        bound_told: False where a size inside of the ladder may cost as much within the noise, or noise is not known.
        reason: why there is no size, or no whole interval.
    """

    params: Estimate
    bound: Literal["below", "above"] | None = None
    bound_params: float | None = None
    bound_told: bool = False
    reason: str | None = None


def equivalent_of_rounds(sizes: Sequence[tuple[int, Sequence[float]]], moe: Sequence[float]) -> DenseEquivalent:
    """The dense-equivalent size, from total parameters and costs per round (or launch) of twins that ran alone."""
    sizes = sorted(sizes, key=lambda size: size[0])
    samples = [np.asarray(costs, dtype=np.float64) for _, costs in sizes] + [np.asarray(moe, dtype=np.float64)]
    means = np.array([float(costs.mean()) for costs in samples])
    num = min(len(costs) for costs in samples)

    def gap(weights: FloatArray) -> intervals.Interval | None:
        if num < intervals.FEWEST_REPEATS:
            return None
        # to first order log(mean) varies as mean / its expectation
        parts = [(w, costs / mean) for w, costs, mean in zip(weights, samples, means, strict=True) if w]
        told = linear_estimate([(float(w), costs.tolist()) for w, costs in parts])
        assert told.value is not None and told.low is not None and told.high is not None, (
            "three rounds have an interval"
        )
        centre = float(np.log(means) @ weights)
        return centre + told.low - told.value, centre + told.high - told.value

    return _equivalent([total for total, _ in sizes], np.log(means), gap, num)


def _unknown(reason: str, n: int | None = None) -> DenseEquivalent:
    return DenseEquivalent(params=Estimate(value=None, n=n, reason=reason), reason=reason)


def _equivalent(
    sizes: Sequence[int], logs: FloatArray, gap: Callable[[FloatArray], intervals.Interval | None], num: int
) -> DenseEquivalent:
    """Log-log interpolation of size by cost, and its interval by inversion: all sizes whose cost may be the MoE's.

    Args:
        sizes: total parameters, ascending.
        logs: log cost of each size, then of the MoE.
        gap: interval of a linear combination of those.
        num: independent samples.
    """
    if len(set(sizes)) < MIN_SIZES:
        return _unknown(f"{len(set(sizes))} dense sizes, {MIN_SIZES} are needed", num)
    dense, moe = logs[:-1], float(logs[-1])
    for (small, less), (large, more) in pairwise(zip(sizes, dense.tolist(), strict=True)):
        if more <= less:
            return _unknown(f"the ladder is not monotone: {large:,} parameters cost no more than {small:,}", num)
    may_be = _may_be_equal(np.log(sizes), gap)
    if not dense[0] <= moe <= dense[-1]:
        return _outside(sizes, below=moe < dense[0], may_be=may_be, num=num)
    value = float(np.exp(np.interp(moe, dense, np.log(sizes))))
    if may_be is None:
        reason = "too few samples for an interval"
        return DenseEquivalent(params=Estimate(value=value, n=num, reason=reason), reason=reason)
    ends = [float(np.exp(x)) for x in (may_be[0], may_be[-1])] if len(may_be) else [value, value]
    low: float | None = min(ends[0], value)
    high: float | None = max(ends[1], value)
    reasons = []
    if len(may_be) and may_be[0] == np.log(sizes[0]):
        low, reasons = None, [f"the interval reaches below the smallest dense size ({sizes[0]:,} parameters)"]
    if len(may_be) and may_be[-1] == np.log(sizes[-1]):
        high, reasons = (
            None,
            [*reasons, f"the interval reaches above the largest dense size ({sizes[-1]:,} parameters)"],
        )
    reason_text = "; ".join(reasons) or None
    return DenseEquivalent(
        params=Estimate(value=value, low=low, high=high, n=num, reason=reason_text), reason=reason_text
    )


def _outside(sizes: Sequence[int], *, below: bool, may_be: FloatArray | None, num: int) -> DenseEquivalent:
    end, which, how = (sizes[0], "smallest", "less") if below else (sizes[-1], "largest", "more")
    reason = f"it costs {how} than the {which} dense size, {units.count(end)} parameters"
    if may_be is not None and len(may_be):
        inner = float(np.exp(may_be[-1] if below else may_be[0]))
        reason += f", but within the noise as much as one of {units.count(inner)}"
    elif may_be is None:
        reason += ", by too few samples to say so for sure"
    return DenseEquivalent(
        params=Estimate(value=None, n=num, reason=reason),
        bound="below" if below else "above",
        bound_params=float(end),
        bound_told=may_be is not None and not len(may_be),
        reason=reason,
    )


def _may_be_equal(log_sizes: FloatArray, gap: Callable[[FloatArray], intervals.Interval | None]) -> FloatArray | None:
    """Log sizes at which the interval of (cost of the size / cost of the MoE) holds 1; None without intervals."""
    found = []
    for i in range(len(log_sizes) - 1):
        for share in np.linspace(0, 1, GRID + 1)[1 if i else 0 :].tolist():
            weights = np.zeros(len(log_sizes) + 1)
            weights[i], weights[i + 1], weights[-1] = 1 - share, share, -1
            interval = gap(weights)
            if interval is None:
                return None
            if interval[0] <= 0 <= interval[1]:
                at = log_sizes[i + 1] if share == 1 else log_sizes[i] + share * (log_sizes[i + 1] - log_sizes[i])
                found.append(float(at))
    return np.array(found)
