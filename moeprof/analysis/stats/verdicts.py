"""Verdicts from lock-step measurements (docs/metrics.md#verdicts): within one run, and over interleaved launch pairs.

Verdicts against a stored run are in stored.py, those of figures that were not paired in ratios.py.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from moeprof.analysis.stats import intervals
from moeprof.analysis.stats.bootstrap import Estimate
from moeprof.analysis.stats.welch import Welch
from moeprof.core.metric import Better

Kind = Literal["better", "worse", "no difference shown", "cannot tell", "incomparable", "same run"]
Direction = Literal["lower", "higher"]
LOCKSTEP_FLOOR_RATIO = 0.015
MIN_LAUNCH_PAIRS = 6
ALPHA = 0.01  # one-sided, of a whole family
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a comparison says, and in a sentence why."""

    kind: Kind
    reason: str


def interval_verdict(ratio: Estimate, *, better: Direction, floor_ratio: float) -> Verdict:
    """Worse or better: the interval excludes 1 and the point lies beyond the floor; no difference: all within it."""
    if ratio.value is None or ratio.low is None or ratio.high is None:
        return Verdict(kind="cannot tell", reason=ratio.reason or "no interval")
    least, most = 1 / (1 + floor_ratio), 1 + floor_ratio
    if ratio.excludes(1.0) and not least <= ratio.value <= most:
        kind: Kind = "better" if (ratio.value < 1) == (better == "lower") else "worse"
        return Verdict(kind=kind, reason=f"the interval excludes 1 and the ratio lies beyond {floor_ratio:.1%}")
    if least <= ratio.low and ratio.high <= most:
        return Verdict(kind="no difference shown", reason=f"the interval lies within {floor_ratio:.1%}")
    if ratio.excludes(1.0):
        return Verdict(kind="cannot tell", reason=f"a difference, but not shown to be above {floor_ratio:.1%}")
    return Verdict(kind="cannot tell", reason=f"the interval holds 1 and reaches beyond {floor_ratio:.1%}")


def holm(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """Holm's step-down adjustment of a family's p-values (Holm 1979)."""
    adjusted, worst = {}, 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p))
        adjusted[name] = worst
    return adjusted


def timed_verdict(
    log_ratios: Sequence[float],
    *,
    better: Direction,
    floor_ratio: float = LOCKSTEP_FLOOR_RATIO,
    alpha: float = ALPHA,
) -> Verdict:
    """A timed metric by itself over interleaved launch pairs; see :func:`timed_verdicts`."""
    (verdict,) = timed_verdicts({"": log_ratios}, {"": better}, floor_ratio=floor_ratio, alpha=alpha).values()
    return verdict


def timed_verdicts(
    log_ratios: Mapping[Name, Sequence[float]],
    better: Mapping[Name, Direction],
    *,
    floor_ratio: float = LOCKSTEP_FLOOR_RATIO,
    alpha: float = ALPHA,
) -> dict[Name, Verdict]:
    """A family of timed metrics over interleaved launch pairs: t-tests on log ratios, adjusted by Holm.

    *No difference shown* is no alarm, so its interval (of confidence 1 - 2 alpha) is not adjusted.

    Args:
        log_ratios: per metric, log(judged / reference) of summed step time, one per launch pair.
        better: direction of each.
        floor_ratio: differences up to this share are not called one.
        alpha: one-sided error of the whole family.
    """
    few = {name for name, logs in log_ratios.items() if len(logs) < MIN_LAUNCH_PAIRS}
    adjusted = holm({name: _p_one_sided(logs) for name, logs in log_ratios.items() if name not in few})
    found = {}
    for name, logs in log_ratios.items():
        if name in few:
            reason = f"{len(logs)} launch pairs, {MIN_LAUNCH_PAIRS} are needed"
            found[name] = Verdict(kind="cannot tell", reason=reason)
            continue
        found[name] = _judged(logs, adjusted[name], better[name], floor_ratio, alpha)
    return found


def _judged(logs: Sequence[float], p: float, better: Direction, floor_ratio: float, alpha: float) -> Verdict:
    mean, error = _mean_and_error(logs)
    half = intervals.t_quantile(1 - alpha, len(logs) - 1) * error if error else 0.0
    floor = math.log1p(floor_ratio)
    if p <= alpha and abs(mean) > floor:
        kind: Kind = "better" if (mean < 0) == (better == "lower") else "worse"
        return Verdict(kind=kind, reason=f"ratio {math.exp(mean):.3f} over {len(logs)} launch pairs, p = {p:.2g}")
    if abs(mean) + half <= floor:
        reason = f"the interval lies within {floor_ratio:.1%} over {len(logs)} launch pairs"
        return Verdict(kind="no difference shown", reason=reason)
    if p <= alpha:
        return Verdict(kind="cannot tell", reason=f"a difference, but not shown to be above {floor_ratio:.1%}")
    return Verdict(kind="cannot tell", reason=f"ratio {math.exp(mean):.3f}, not told from 1 (p = {p:.2g})")


def _p_one_sided(logs: Sequence[float]) -> float:
    """Chance of a mean at least so far from 0 on its side, were there no difference."""
    mean, error = _mean_and_error(logs)
    if error == 0:
        return 0.5 if mean == 0 else 0.0
    from scipy.special import stdtr

    return float(stdtr(len(logs) - 1, -abs(mean) / error))


def _mean_and_error(logs: Sequence[float]) -> tuple[float, float]:
    values = np.asarray(logs, dtype=np.float64)
    error = float(values.std(ddof=1)) / math.sqrt(len(values)) if np.ptp(values) > 0 else 0.0
    return float(values.mean()), error


PRECISE = 0.5  # half an interval is narrow enough to decide at this share of the threshold


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedSample:
    """One timed gate before it is judged.

    Attributes:
        test: log(new / reference) with its error.
        limit_ratio: threshold or floor, as a share of the reference.
        better: direction; ``neither``: any change is worse.
        n: samples in words, for the reason.
    """

    test: Welch
    limit_ratio: float
    better: Better
    n: str

    @property
    def rise(self) -> float:
        """The threshold on the log scale, upwards."""
        return math.log1p(self.limit_ratio)

    @property
    def fall(self) -> float:
        """The same downwards, as a positive number; without end where nothing can fall so far."""
        return -math.log1p(-self.limit_ratio) if self.limit_ratio < 1 else math.inf

    @property
    def is_beyond(self) -> bool:
        """The point lies beyond the threshold, on either side."""
        return self.test.mean > self.rise + SLACK or self.test.mean < -self.fall - SLACK

    @property
    def p(self) -> float:
        """One-sided; doubled where both directions are worse."""
        return min(1.0, self.test.p_one_sided * (2 if self.better == "neither" else 1))


SLACK = 1e-9  # what lies at the threshold itself is allowed, whatever the last bit says
