"""The block bootstrap that lock-step figures share, and intervals over launches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from moeprof.analysis.stats import intervals
from moeprof.analysis.stats.arrays import FloatArray, IntArray
from moeprof.analysis.stats.estimate import Estimate

MAX_BLOCKS, MIN_BLOCKS = 20, 10
MOST_MEMORY = 0.8
NORMAL = 1.959964  # 0.975 quantile of the normal distribution
LOST = 0.025  # with more resamples than this share without a value, an interval would be made up
FEW_STEPS = "{n} steps: no interval with fewer than " + str(MIN_BLOCKS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """Mean seconds per step of every lane of one launch, and what they might as well have been.

    Attributes:
        lanes: names, in the order of the second axis.
        mean_L: seconds per step.
        drawn_RL: the means of block resamples, jointly over lanes; no rows with too few steps.
        degrees: degrees of freedom of the blocks.
        num_steps: steps behind the means.
        stretch: by how much an interval grows because neighbouring blocks are alike.
    """

    lanes: tuple[str, ...]
    mean_L: FloatArray
    drawn_RL: FloatArray
    degrees: float
    num_steps: int
    stretch: float = 1.0


def run_blocks(num: int) -> IntArray:
    """Number consecutive steps into at most MAX_BLOCKS runs of equal length, so that noise with memory stays whole."""
    count = min(num, max(MIN_BLOCKS, min(MAX_BLOCKS, num // 3)))
    return np.arange(num, dtype=np.int64) * count // max(num, 1)


def draw_means(lanes: tuple[str, ...], time_SL: FloatArray, step_S: IntArray) -> Draws:
    """Means per lane and their block bootstrap.

    Every cycle repeats the same steps with the same tokens, so what differs between steps of one cycle is content, not
    noise: where a step was repeated, its own mean is taken out before resampling (and the residuals are enlarged by
    sqrt(C / (C - 1)) for it). With a single cycle content cannot be told from noise, and intervals are wider.

    Known error (python -m benchmarks.coverage): noise that is remembered for longer than a block, and that each lane
    has for itself, is covered too rarely.
    """
    num = len(time_SL)
    if num == 0:
        nothing = np.empty((0, len(lanes)))
        return Draws(lanes=lanes, mean_L=np.full(len(lanes), np.nan), drawn_RL=nothing, degrees=0, num_steps=0)
    mean = time_SL.mean(axis=0)
    if num < MIN_BLOCKS:
        return Draws(lanes=lanes, mean_L=mean, drawn_RL=np.empty((0, len(lanes))), degrees=0, num_steps=num)
    noise, free = _noise(time_SL, step_S)
    blocks = run_blocks(num)
    sums = np.stack([np.bincount(blocks, weights=column) for column in noise.T], axis=1)
    sizes = np.bincount(blocks).astype(np.float64)
    counts = intervals.BlockSample(values=noise[:, 0], weights=np.ones(num), blocks=blocks).resampled_counts(0)
    drawn = mean + (counts @ sums) / (counts @ sizes)[:, None]
    degrees = max(free * len(sizes) - 1, 1)
    stretch = memory_stretch(sums / sizes[:, None] / mean)
    return Draws(lanes=lanes, mean_L=mean, drawn_RL=drawn, degrees=degrees, num_steps=num, stretch=stretch)


def memory_stretch(blocks_BL: FloatArray) -> float:
    """sqrt((1 + r) / (1 - r)), r = lag-1 correlation of blocks, 1 / B added for its bias, at most MOST_MEMORY.

    Independent blocks would give the standard error that a bootstrap of blocks has; blocks that remember one another
    have this many times it (a first-order process; Priestley 1981, section 5.3). What all lanes share cancels in
    ratios and differences, so of several lanes each is taken against their mean.

    Args:
        blocks_BL: relative deviation of every block and lane.
    """
    own = blocks_BL - blocks_BL.mean(axis=1, keepdims=True) if blocks_BL.shape[1] > 1 else blocks_BL
    own = own - own.mean(axis=0)
    power = float((own**2).sum())
    if power == 0:
        return 1.0
    memory = min(max(float((own[1:] * own[:-1]).sum()) / power + 1 / len(own), 0.0), MOST_MEMORY)
    return math.sqrt((1 + memory) / (1 - memory))


def _noise(time_SL: FloatArray, step_S: IntArray) -> tuple[FloatArray, float]:
    """Deviations without content, shape [steps, lanes], and the share of degrees of freedom that is left."""
    place = np.unique(step_S, return_inverse=True)[1].reshape(-1)
    repeats = np.bincount(place).astype(np.float64)
    means = np.stack([np.bincount(place, weights=column) for column in time_SL.T], axis=1) / repeats[:, None]
    repeated = repeats[place] > 1
    centre = np.where(repeated[:, None], means[place], time_SL.mean(axis=0))
    scale = np.where(repeated, np.sqrt(repeats[place] / np.maximum(repeats[place] - 1, 1)), 1.0)
    free = 1 - float((repeats > 1).sum()) / len(step_S)
    noise = (time_SL - centre) * scale[:, None]
    return noise - noise.mean(axis=0), free


def estimate_of(
    launches: Sequence[Draws], figure: Callable[[dict[str, float]], float | None], *, signed: bool = False
) -> Estimate:
    """A figure of mean seconds per step, with its interval.

    One launch: block bootstrap over its steps, widened from normal to Student's t (Hesterberg 2015, section 4.2.3). It
    speaks for this schedule and this launch. Several launches: the launch is the unit of repetition,
    so the interval is Student's over their values and speaks for new launches.

    Args:
        launches: of the same lanes, phase and load.
        figure: from seconds per step by lane to a number; None where there is none.
        signed: the figure may be on either side of 0, so that no logarithm is taken.
    """
    held = [draws for draws in launches if draws.num_steps]
    if not held:
        return Estimate(value=None, reason="no steps were measured")
    values = [figure(_named(draws, draws.mean_L)) for draws in held]
    told = [value for value in values if value is not None]
    if len(told) < len(values):
        return Estimate(value=None, n=len(held), reason="the figure does not exist for the times that were measured")
    if len(held) > 1:
        return launch_estimate(told, signed=signed)
    (draws,), value = held, told[0]
    if not len(draws.drawn_RL):
        return Estimate(value=value, n=draws.num_steps, reason=FEW_STEPS.format(n=draws.num_steps))
    drawn = [figure(_named(draws, row)) for row in draws.drawn_RL]
    samples = np.array([sample for sample in drawn if sample is not None])
    if len(samples) < (1 - LOST) * len(drawn):
        return Estimate(value=value, n=draws.num_steps, reason="no interval: the figure often does not exist in it")
    low, high = widened_interval(value, samples, draws.degrees, signed=signed, stretch=draws.stretch)
    return Estimate(value=value, low=low, high=high, n=draws.num_steps)


def _named(draws: Draws, seconds_L: FloatArray) -> dict[str, float]:
    return dict(zip(draws.lanes, seconds_L.tolist(), strict=True))


def median_estimate(ratios_S: FloatArray) -> Estimate:
    """Median of the ratios of consecutive steps; its interval resamples runs of steps with their content."""
    num, median = len(ratios_S), float(np.median(ratios_S))
    blocks = run_blocks(num)
    sample = intervals.BlockSample(values=ratios_S, weights=np.ones(num), blocks=blocks)
    drawn = intervals.bootstrap_percentiles(sample, (50.0,))
    if drawn is None:
        return Estimate(value=median, n=num, reason=FEW_STEPS.format(n=num))
    means = np.bincount(blocks, weights=np.log(ratios_S / median)) / np.bincount(blocks)
    stretch = memory_stretch(means[:, None])
    low, high = widened_interval(median, drawn[:, 0], int(blocks.max()), signed=False, stretch=stretch)
    return Estimate(value=median, low=low, high=high, n=num)


def widened_interval(
    value: float, samples: FloatArray, degrees: float, *, signed: bool, stretch: float = 1.0
) -> intervals.Interval:
    """The middle 95 % of resamples, stretched about the value by t / normal: few blocks know their spread badly.

    On the logarithm where the figure is positive and not ``signed``. Always holds the value.

    Args:
        value: the figure.
        samples: resamples of it.
        degrees: degrees of freedom of the blocks.
        signed: no logarithm is taken.
        stretch: because blocks are alike, see :func:`memory_stretch`.
    """
    stretch *= intervals.t_quantile(0.975, degrees) / NORMAL * math.sqrt((degrees + 1) / degrees)
    low, high = intervals.percentile_interval(samples)
    if not signed and low > 0 and value > 0:
        return value * min((low / value) ** stretch, 1.0), value * max((high / value) ** stretch, 1.0)
    return value + min((low - value) * stretch, 0.0), value + max((high - value) * stretch, 0.0)


def launch_estimate(values: Sequence[float], *, signed: bool = False) -> Estimate:
    """Mean over launches with Student's interval; on the logarithm where the figure is positive and not ``signed``."""
    num, mean = len(values), float(np.mean(values))
    if num < intervals.FEWEST_REPEATS or not signed:
        interval, why = intervals.repeated_interval(values, unit="launch")
        low, high = interval or (None, None)
        return Estimate(value=mean, low=low, high=high, n=num, reason=why)
    half = intervals.t_quantile(0.975, num - 1) * float(np.std(values, ddof=1)) / math.sqrt(num)
    return Estimate(value=mean, low=mean - half, high=mean + half, n=num)


def linear_estimate(terms: Sequence[tuple[float, Sequence[float]]]) -> Estimate:
    """``sum of factor * mean(samples)`` over independent groups, with the Welch-Satterthwaite t-interval.

    Args:
        terms: factor and samples (one per round or launch) of each group.
    """
    value = sum(factor * float(np.mean(samples)) for factor, samples in terms)
    num = min(len(samples) for _, samples in terms)
    if num < intervals.FEWEST_REPEATS:
        fewest = min((samples for _, samples in terms), key=len)
        return Estimate(value=value, n=num, reason=intervals.repeated_interval(fewest)[1])
    parts = [(factor**2 * float(np.var(s, ddof=1)) / len(s), len(s) - 1) for factor, s in terms if factor]
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return Estimate(value=value, low=value, high=value, n=num)
    degrees = variance**2 / sum(part**2 / free for part, free in parts)
    half = intervals.t_quantile(0.975, degrees) * math.sqrt(variance)
    return Estimate(value=value, low=value - half, high=value + half, n=num)
