"""The statistics that every metric shares: percentiles with a minimum sample, intervals, one straight line.

Percentiles are numpy's ``linear`` (Hyndman and Fan's type 7). An interval is 95 % and two-sided. Random numbers come
from ``numpy.random.default_rng(seed)``; the same samples and the same seed give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from moeprof.analysis.stats.arrays import FloatArray, IntArray

Interval = tuple[float, float]
CONFIDENCE = 0.95
RESAMPLES = 400
PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
MAX_BLOCKS = 500
FEWEST_REPEATS = 3  # two know their own spread so badly that the interval is up to 25 standard errors wide
WIDEST = 10.0  # an interval whose ends are further apart than this says nothing worth printing
WIDEST_SHARE = 0.5  # and one of a share, where it also spans more than this of what is possible
MOST_REPEATS = 1000  # nobody would measure more
_HISTOGRAM_BINS = 1_000


def minimum_samples(percentile: float, confidence: float = 0.99) -> int:
    """The fewest independent samples for which a percentile is reported.

    The smallest n with P(at least two of n samples lie above the true percentile) >= confidence, so that the second
    largest sample bounds it: 11, 64, 130, 662, 6636 for p50, p90, p95, p99, p99.9. Source: the early-stopping rule of
    MLPerf (mlcommons/endpoints; LoadGen's early stopping).
    """
    below = percentile / 100

    def none_or_one_above(n: int) -> float:
        return below ** (n - 1) * (below + n * (1 - below))

    low, high = 1, 2
    while none_or_one_above(high) > 1 - confidence:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if none_or_one_above(middle) > 1 - confidence else (low, middle)
    return high


MINIMUM_SAMPLES = {p: minimum_samples(p) for p in PERCENTILES}


def percentile_label(percentile: float) -> str:
    """50.0 -> ``p50``, 99.9 -> ``p99_9`` (a name holds no dot)."""
    return f"p{percentile:g}".replace(".", "_")


def weighted_percentiles(
    values: FloatArray, weights: FloatArray, percentiles: Sequence[float] | FloatArray
) -> FloatArray:
    """``np.percentile(np.repeat(values, weights), percentiles, method="linear")`` without the copy.

    Args:
        values: shape [N], any order.
        weights: how often each value occurs, whole numbers, shape [N].
        percentiles: in 0..100.
    """
    order = np.argsort(values, kind="stable")
    ordered, reach = values[order], np.cumsum(weights[order])
    position = np.asarray(percentiles) / 100 * (reach[-1] - 1)
    low = ordered[np.searchsorted(reach, np.floor(position), side="right")]
    high = ordered[np.searchsorted(reach, np.ceil(position), side="right")]
    return cast(FloatArray, low + (high - low) * (position - np.floor(position)))


def t_quantile(probability: float, degrees: float) -> float:
    """Quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, probability))


def mean_interval(
    samples: Sequence[float] | FloatArray, *, bounded: bool = False, around: float | None = None
) -> Interval | None:
    """95 % interval of the mean that stays where the quantity lives.

    The t-interval of the mean on a transformed scale, its standard error s carried over by the delta method: logarithm
    where no value is negative, ``mean * exp(+- t * s / mean)``; logit where ``bounded``; untransformed where a value is
    negative. It always holds the mean, never leaves (0, inf) or (0, 1), and equals the t-interval where s is small.

    Args:
        samples: one value per round or launch.
        bounded: the quantity is a share that cannot leave [0, 1]. Should a value do so, it is taken as not bounded.
        around: what the interval is put around instead of the mean: a percentile of all samples together.

    Returns:
        None with fewer than two samples; (value, value) where all are equal.
    """
    values = np.asarray(samples, dtype=np.float64)
    if len(values) < 2:
        return None
    centre = float(values.mean()) if around is None else around
    return _around(centre, _error(values, len(values)), len(values) - 1, values, bounded)


def _around(estimate: float, error: float, degrees: int, values: FloatArray, bounded: bool) -> Interval:
    """The interval of an estimate with this standard error; ``values`` decide on the scale."""
    half = t_quantile(0.5 + CONFIDENCE / 2, degrees) * error
    if half == 0:
        return estimate, estimate
    least, most = min(float(values.min()), estimate), max(float(values.max()), estimate)
    if least < 0:
        return estimate - half, estimate + half
    if estimate == 0:
        return 0.0, half
    if bounded and most <= 1 and estimate < 1:
        odds, factor = estimate / (1 - estimate), math.exp(half / (estimate * (1 - estimate)))
        return odds / (odds + factor), odds * factor / (1 + odds * factor)
    factor = math.exp(half / estimate)
    return estimate / factor, estimate * factor


def repeated_interval(
    samples: Sequence[float] | FloatArray, *, unit: str = "round", bounded: bool = False, around: float | None = None
) -> tuple[Interval | None, str | None]:
    """The interval of :func:`mean_interval`, or None and why so few, or such different, repeats carry none.

    Args:
        samples: one value per repeat.
        unit: what was repeated: ``round``, ``launch``, ``launch pair``.
        bounded: as there.
        around: as there.
    """
    values = np.asarray(samples, dtype=np.float64)
    interval = mean_interval(values, bounded=bounded, around=around) if len(values) >= FEWEST_REPEATS else None
    if interval is not None and not is_too_wide(interval, bounded=bounded):
        return interval, None
    centre = around if around is not None else float(values.mean()) if len(values) else 0.0

    def is_enough(num: int) -> bool:
        return not is_too_wide(_around(centre, _error(values, num), num - 1, values, bounded), bounded=bounded)

    return None, f"no interval: {too_few_text(values, unit, is_enough)}"


def is_too_wide(interval: Interval, *, bounded: bool = False) -> bool:
    """Whether the ends of an interval of positive figures lie so far apart that it must not be printed."""
    low, high = interval
    apart = 0 <= low < high and high > WIDEST * low
    return apart and (not bounded or high - low > WIDEST_SHARE)


def repeats_text(values: Sequence[float] | FloatArray, unit: str = "round") -> str:
    """``two rounds that differ by 166 %``."""
    num, low, high = len(values), min(values, default=0.0), max(values, default=0.0)
    text = {0: f"no {unit}", 1: f"one {unit}", 2: f"two {units_text(unit)}"}.get(num, f"{num} {units_text(unit)}")
    if num < 2:
        return text
    apart = (
        f"by {100 * (high / low - 1):.{0 if high > 1.1 * low else 1}f} %" if low > 0 else f"({low:.3g} to {high:.3g})"
    )
    return f"{text} that differ {apart}" if high > low else f"{text} that agree"


def units_text(unit: str) -> str:
    """``rounds``, ``launches``."""
    return f"{unit}es" if unit.endswith("ch") else f"{unit}s"


def _error(values: FloatArray, num: int) -> float:
    """Standard error of the mean of ``num`` such values."""
    return float(values.std(ddof=1)) / math.sqrt(num) if len(values) > 1 and np.ptp(values) > 0 else 0.0


def too_few_text(values: Sequence[float] | FloatArray, unit: str, is_enough: Callable[[int], bool]) -> str:
    """``two rounds that differ by 166 %; about 4 rounds needed``.

    Args:
        values: of the repeats at hand.
        unit: what was repeated.
        is_enough: whether so many repeats with this spread would do.
    """
    num, text = len(values), repeats_text(values, unit)
    nums = range(max(FEWEST_REPEATS, num), MOST_REPEATS + 1)
    needed = next((n for n in nums if num < 2 or is_enough(n)), None)
    if needed is None:
        return f"{text}; more than {MOST_REPEATS} {units_text(unit)} needed"
    many = f"{needed} or more" if needed == FEWEST_REPEATS else f"about {needed}"
    return f"{text}; {many} {units_text(unit)} needed"


def binomial_interval(successes: float, trials: float) -> Interval:
    """95 % two-sided interval of a share by Clopper and Pearson (1934): 72 of 72 is [0.950, 1], 8 of 8 [0.631, 1].

    Quantiles of beta distributions, so that ``successes`` need not be whole: a request that met an objective in two of
    three rounds counts 2/3.
    """
    from scipy.special import betaincinv

    tail = (1 - CONFIDENCE) / 2
    failures = max(trials - successes, 0.0)
    low = 0.0 if successes <= 0 else float(betaincinv(successes, failures + 1, tail))
    high = 1.0 if failures <= 0 else float(betaincinv(successes + 1, failures, 1 - tail))
    return low, high


def clustered_share_interval(parts: FloatArray, wholes: FloatArray) -> Interval | None:
    """95 % interval of ``sum(parts) / sum(wholes)`` where what stands together in a row is alike: tokens of a request.

    Korn and Graubard (1998): the variance of the ratio by leaving out one row at a time says how many independent
    trials the share is worth; the interval is binomial with so many, never more than there are units. Where all rows
    agree on 0 or 1 the variance says nothing, and each row is one trial.
    """
    total = float(wholes.sum())
    if not total:
        return None
    share, num = float(parts.sum()) / total, len(wholes)
    spread = share * (1 - share)
    if spread <= 0 or num < 2:
        return binomial_interval(share * num, num)
    without = (parts.sum() - parts) / np.maximum(total - wholes, 1e-300)
    variance = (num - 1) / num * float(((without - without.mean()) ** 2).sum())
    few = 0.5 + CONFIDENCE / 2
    known = (t_quantile(few, math.inf) / t_quantile(few, num - 1)) ** 2  # of few rows the variance is known badly
    trials = known * (total if variance == 0 else min(spread / variance, total))
    return binomial_interval(share * trials, trials)


def share_interval(own: Interval, per_round: Sequence[float]) -> Interval:
    """The interval of a share joined with that over rounds: rounds repeat the same requests, and still may differ.

    The t-interval over rounds is cut at 0 and 1; with one round there is none.
    """
    values = np.asarray(per_round, dtype=np.float64)
    if len(values) < 2:
        return own
    half = t_quantile(0.5 + CONFIDENCE / 2, len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
    middle = float(values.mean())
    return max(0.0, min(own[0], middle - half)), min(1.0, max(own[1], middle + half))


def block_mean_interval(series: FloatArray, max_blocks: int = 30, *, bounded: bool = False) -> Interval | None:
    """95 % interval of the mean of an autocorrelated series by batch means (Law and Kelton, section 9.5.3).

    The series is cut into at most ``max_blocks`` runs of equal length; their means are taken as independent, and the
    interval is that of :func:`mean_interval`. None with fewer than ten values.
    """
    if len(series) < 10:
        return None
    means = np.array([part.mean() for part in np.array_split(series, min(max_blocks, len(series) // 5))])
    return _around(float(series.mean()), _error(means, len(means)), len(means) - 1, means, bounded)


def jackknife_interval(estimate: float, without_group: FloatArray, *, bounded: bool = False) -> Interval | None:
    """95 % interval by the delete-a-group jackknife (Kott 2001): no random numbers, on the scale of mean_interval."""
    groups = len(without_group)
    if groups < 2 or not np.all(np.isfinite(without_group)):
        return None
    variance = (groups - 1) / groups * float(((without_group - without_group.mean()) ** 2).sum())
    return _around(estimate, math.sqrt(variance), groups - 1, without_group, bounded)


def corrected_jackknife_interval(
    estimate: float, without_group: FloatArray, *, low: float, high: float, power: int = 1
) -> Interval | None:
    """95 % jackknife interval about the estimate less its bias (Quenouille 1956), widened to hold the estimate.

    Args:
        estimate: of all groups together.
        without_group: the same without each group.
        low: least of the quantity.
        high: most of it.
        power: the scale: an estimate whose square is smooth where it reaches 0 is treated as a square.
    """
    groups = len(without_group)
    if groups < 2 or not np.all(np.isfinite(without_group)):
        return None
    whole, left = estimate**power, without_group**power
    middle = groups * whole - (groups - 1) * float(left.mean())
    variance = (groups - 1) / groups * float(((left - left.mean()) ** 2).sum())
    half = t_quantile(0.5 + CONFIDENCE / 2, groups - 1) * math.sqrt(variance)
    ends = [min(max(end, low**power), high**power) ** (1 / power) for end in (middle - half, middle + half)]
    return min(ends[0], estimate), max(ends[1], estimate)


def blocks_of(num: int) -> IntArray:
    """Number ``num`` samples in time order into blocks of about num^(1/3), at most MAX_BLOCKS blocks."""
    length = max(math.ceil(num ** (1 / 3)), math.ceil(num / MAX_BLOCKS), 1)
    return cast(IntArray, np.arange(num, dtype=np.int64) // length)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSample:
    """Values with how often each occurs and the block (a stretch of time) it belongs to; all shape [N]."""

    values: FloatArray
    weights: FloatArray
    blocks: IntArray

    def resampled_counts(self, seed: int) -> FloatArray:
        """How often each block is drawn, shape [RESAMPLES, blocks]; read only, because samples of one size share it."""
        return _resampled_counts(int(self.blocks.max()) + 1, seed)


@lru_cache(maxsize=4)
def _resampled_counts(num: int, seed: int) -> FloatArray:
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(num, np.full(num, 1 / num), size=RESAMPLES).astype(np.float64)
    counts.flags.writeable = False
    return counts


def bootstrap_mean(sample: BlockSample, seed: int = 0) -> Interval | None:
    """95 % percentile interval of the mean by resampling blocks; None with fewer than ten blocks."""
    if not len(sample.values) or int(sample.blocks.max()) < 9:
        return None
    total = np.bincount(sample.blocks, weights=sample.weights * sample.values)
    weight = np.bincount(sample.blocks, weights=sample.weights)
    drawn = sample.resampled_counts(seed)
    return percentile_interval((drawn @ total) / (drawn @ weight))


def bootstrap_percentiles(sample: BlockSample, percentiles: Sequence[float], seed: int = 0) -> FloatArray | None:
    """Percentiles of block resamples, shape [RESAMPLES, percentiles]; None with fewer than ten blocks.

    Values are first put into at most 2,000 bins (fine in the upper tail), so that a resample is one row of a matrix
    product instead of a sort: a million values cost a second's fraction. Blocks do not overlap (Carlstein 1986).
    """
    if not len(sample.values) or int(sample.blocks.max()) < 9:
        return None
    grid = np.unique(sample.values)
    if len(grid) > 2 * _HISTOGRAM_BINS:
        steps = np.linspace(0, 1, _HISTOGRAM_BINS)
        shares = np.concatenate([steps, 0.98 + 0.02 * steps])
        grid = np.unique(weighted_percentiles(sample.values, sample.weights, np.sort(100 * shares)))
    bins = np.minimum(np.searchsorted(grid, sample.values), len(grid) - 1)
    num_blocks = int(sample.blocks.max()) + 1
    cells = np.bincount(sample.blocks * len(grid) + bins, weights=sample.weights, minlength=num_blocks * len(grid))
    reach = np.cumsum(sample.resampled_counts(seed) @ cells.reshape(num_blocks, len(grid)), axis=1)
    picked = [_first_reaching(reach, np.ceil(p / 100 * (reach[:, -1] - 1)) + 1) for p in percentiles]
    return grid[np.stack(picked, axis=1)]


def _first_reaching(reach: FloatArray, wanted: FloatArray) -> IntArray:
    return cast(IntArray, np.minimum((reach < wanted[:, None]).sum(axis=1), reach.shape[1] - 1))


def percentile_interval(samples: FloatArray) -> Interval:
    """The middle 95 % of resampled values."""
    low, high = np.quantile(samples, [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return float(low), float(high)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearFit:
    """Least squares ``y = intercept + slope * x``; r2 = 1 - residual / total sum of squares."""

    intercept: float
    slope: float
    r2: float


def linear_fit(x: npt.ArrayLike, y: npt.ArrayLike) -> LinearFit | None:
    """Fit a line; None when x or y does not vary, or fewer than three points are given."""
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(xs) < 3 or np.ptp(xs) == 0 or np.ptp(ys) == 0:
        return None
    dx, dy = xs - xs.mean(), ys - ys.mean()
    slope = float(dx @ dy / (dx @ dx))
    residual = dy - slope * dx
    return LinearFit(
        intercept=float(ys.mean() - slope * xs.mean()), slope=slope, r2=1 - float(residual @ residual / (dy @ dy))
    )


def leave_group_out(groups: npt.NDArray[Any], estimate: Callable[[npt.NDArray[Any]], float]) -> FloatArray:
    """``estimate(sum over the other groups)`` for each group. ``groups``: sums per group, group axis first."""
    total = groups.sum(axis=0)
    return np.array([estimate(total - group) for group in groups], dtype=np.float64)
