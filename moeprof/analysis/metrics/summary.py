"""Statistics of samples: mean and percentiles of one quantity over the rounds of a launch, each with its interval.

The mean is the mean of the rounds' means with a 95 % interval over rounds (block bootstrap when there is one round),
a t-interval on a scale that the quantity cannot leave: see stats.mean_interval.
A percentile is taken over all rounds together; its interval resamples blocks of neighbouring requests or steps, the
same blocks in every round. Both speak for this launch only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moeprof.analysis import stats
from moeprof.analysis.metrics.samples import Samples
from moeprof.analysis.tables import FloatArray
from moeprof.core.metric import MetricValue, missing

ALL_PERCENTILES = stats.PERCENTILES
SHORT_PERCENTILES = (50.0, 99.0)
NO_INTERVAL = "no interval: too few samples"


def summarise(
    quantity: str,
    samples: Sequence[Samples],
    labels: dict[str, str],
    *,
    missing_reason: str,
    percentiles: Sequence[float] = ALL_PERCENTILES,
    notes: tuple[str, ...] = (),
) -> list[MetricValue]:
    """``<quantity>_mean_s`` and ``<quantity>_p<p>_s``.

    Args:
        quantity: for example ``ttft``.
        samples: one per round.
        labels: of every value.
        missing_reason: why there is no value, when there is no sample.
        percentiles: which; those without enough samples become null with the reason.
        notes: sentences added to every value.
    """
    filled = [part for part in samples if len(part.values)]
    names = [f"{quantity}_mean_s", *(f"{quantity}_{stats.percentile_label(p)}_s" for p in percentiles)]
    if not filled:
        return [missing(name, missing_reason, **labels) for name in names]
    pooled, num_units = pool(filled)
    means = [float(np.average(part.values, weights=part.weights)) for part in filled]
    interval = stats.mean_interval(means) or stats.bootstrap_mean(pooled)
    values = [_value(names[0], float(np.mean(means)), num_units, interval, labels, notes)]
    points = stats.weighted_percentiles(pooled.values, pooled.weights, percentiles)
    drawn = stats.bootstrap_percentiles(pooled, percentiles)
    for i, (name, percentile) in enumerate(zip(names[1:], percentiles, strict=True)):
        needed = stats.minimum_samples(percentile)
        if num_units < needed:
            reason = f"{num_units} independent samples, p{percentile:g} needs {needed}"
            values.append(MetricValue(name=name, value=None, n=num_units, labels=labels, reasons=(reason,)))
            continue
        interval = None if drawn is None else stats.percentile_interval(drawn[:, i])
        values.append(_value(name, float(points[i]), num_units, interval, labels, notes))
    return values


def pool(samples: Sequence[Samples]) -> tuple[stats.BlockSample, int]:
    """All rounds as one sample in blocks of neighbouring units, and the number of distinct units."""
    units = np.concatenate([part.units for part in samples])
    distinct, position = np.unique(units, return_inverse=True)
    pooled = stats.BlockSample(
        values=np.concatenate([part.values for part in samples]),
        weights=np.concatenate([part.weights for part in samples]),
        blocks=stats.blocks_of(len(distinct))[position],
    )
    return pooled, len(distinct)


def percentile_ratio(name: str, samples: Sequence[Samples], labels: dict[str, str], missing_reason: str) -> MetricValue:
    """p99 / p50 of a quantity: how much worse the tail is than the middle."""
    filled = [part for part in samples if len(part.values)]
    if not filled:
        return missing(name, missing_reason, **labels)
    pooled, num_units = pool(filled)
    if num_units < stats.MINIMUM_SAMPLES[99.0]:
        reason = f"{num_units} independent samples, p99 needs {stats.MINIMUM_SAMPLES[99.0]}"
        return MetricValue(name=name, value=None, n=num_units, labels=labels, reasons=(reason,))
    middle, tail = stats.weighted_percentiles(pooled.values, pooled.weights, (50.0, 99.0))
    if middle <= 0:
        return missing(name, "the median is zero", **labels)
    drawn = stats.bootstrap_percentiles(pooled, (50.0, 99.0))
    interval = None if drawn is None else stats.percentile_interval(drawn[:, 1] / drawn[:, 0])
    return _value(name, float(tail / middle), num_units, interval, labels, ())


def over_rounds(
    name: str,
    per_round: Sequence[float | None],
    labels: dict[str, str],
    missing_reason: str,
    *,
    n: int | None = None,
    bounded: bool = False,
) -> MetricValue:
    """The mean over rounds of one number per round, with its interval over rounds.

    Args:
        name: of the metric.
        per_round: one number per round; None where the round has none.
        labels: of the value.
        missing_reason: why there is no value, when no round has one.
        n: independent samples, when they are not the rounds.
        bounded: the quantity is a share that cannot leave [0, 1].
    """
    known = [value for value in per_round if value is not None]
    if not known:
        return missing(name, missing_reason, **labels)
    interval = stats.mean_interval(known, bounded=bounded)
    reasons = () if interval else ("no interval: one round",)
    low, high = interval or (None, None)
    return MetricValue(
        name=name,
        value=float(np.mean(known)),
        n=len(known) if n is None else n,
        ci_low=low,
        ci_high=high,
        labels=labels,
        reasons=reasons,
    )


def mean_of_steps(name: str, rounds: Sequence[FloatArray], labels: dict[str, str], missing_reason: str) -> MetricValue:
    """The mean over the steps of the first round that has any, with the interval of batch means; n = its steps.

    For what follows from the tokens alone: rounds replay them, so further rounds add nothing.

    Args:
        name: of the metric.
        rounds: a value per step in time order, for each round.
        labels: of the value.
        missing_reason: why there is no value, when no round has a step.
    """
    series = next((values for values in rounds if len(values)), None)
    if series is None:
        return missing(name, missing_reason, **labels)
    interval = stats.block_mean_interval(series)
    low, high = interval or (None, None)
    reasons = () if interval else ("no interval: fewer than ten steps",)
    return MetricValue(
        name=name, value=float(series.mean()), n=len(series), ci_low=low, ci_high=high, labels=labels, reasons=reasons
    )


def _value(
    name: str,
    value: float,
    n: int,
    interval: stats.Interval | None,
    labels: dict[str, str],
    notes: tuple[str, ...],
) -> MetricValue:
    low, high = interval or (None, None)
    reasons = notes if interval else (*notes, NO_INTERVAL)
    return MetricValue(name=name, value=value, n=n, ci_low=low, ci_high=high, labels=labels, reasons=reasons)
