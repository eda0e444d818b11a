"""From the tables of a pass to samples: values, how often each occurs, and what each is a sample *of*.

The independent thing behind a value is its ``unit``: a request, or a step. Gaps between tokens that end in one step are
one sample however many requests share it; rounds replay the same requests, so they add no requests.

Statistics of samples: mean and percentiles of one quantity over the rounds of a launch, each with its interval.

The mean is the mean of the rounds' means with a 95 % interval over rounds, a t-interval on a scale that the quantity
cannot leave: see stats.intervals. A percentile is taken over all rounds together. Two kinds of chance are in it: rounds
differ, so a t-interval over each round's own percentile, on the log scale; requests (steps) are a sample, so a
bootstrap of blocks of neighbouring ones, the same blocks in every round. Its interval holds both; docs/limits.md says
how often it holds the truth. With fewer than three rounds there is no interval. All speak for this launch only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from moeprof.analysis.metrics.cards import card_for
from moeprof.analysis.metrics.load.steady import find_steady
from moeprof.analysis.metrics.tables import ALL, BoolArray, PassTables, column, token_times
from moeprof.analysis.stats import intervals
from moeprof.analysis.stats.arrays import FloatArray, IntArray
from moeprof.core.metric import MetricValue, estimated, missing

Window = tuple[float, float] | None
NO_SAMPLES = "no samples"
# quantity -> (where it starts, where it ends), both columns of table ``requests``
SPANS = {
    "queue": ("arrival_s", "first_scheduled_s"),
    "ttft": ("arrival_s", "first_token_s"),
    "e2e": ("arrival_s", "last_token_s"),
    "ttft_answer": ("arrival_s", "first_answer_s"),
    "queue_from_sent": ("sent_s", "first_scheduled_s"),
    "ttft_from_sent": ("sent_s", "first_token_s"),
    "e2e_from_sent": ("sent_s", "last_token_s"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Samples of one quantity in one round; all shape [N].

    Attributes:
        values: in SI units.
        weights: how often each value occurs.
        units: number of the request or step behind the value, in time order.
    """

    values: FloatArray
    weights: FloatArray
    units: IntArray

    @staticmethod
    def of(values: FloatArray, units: IntArray, keep: BoolArray) -> Samples:
        """One value per unit, where ``keep`` and not null."""
        rows = np.flatnonzero(keep & np.isfinite(values))
        return Samples(values=values[rows], weights=np.ones(len(rows)), units=units[rows])


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Which part of the rounds a metric speaks of.

    Attributes:
        label: ``total`` or ``steady``.
        parts: a pass and its window (None = the whole pass), one per round.
        reason: why there is no part, when there is none.
    """

    label: str
    parts: tuple[tuple[PassTables, Window], ...]
    reason: str | None = None

    @property
    def missing_reason(self) -> str:
        """Why a value of this scope is null."""
        return self.reason or NO_SAMPLES


def scopes(rounds: Sequence[PassTables]) -> tuple[Scope, Scope]:
    """The total window, and the steady one: of the rounds that have one."""
    found = [(tables, find_steady(tables)) for tables in rounds]
    steady = tuple((tables, result.window_s) for tables, result in found if result.window_s is not None)
    reason = None if steady else next((result.reason for _, result in found), "no steady state: no round")
    return (
        Scope(label="total", parts=tuple((tables, None) for tables in rounds)),
        Scope(label="steady", parts=steady, reason=reason),
    )


def within(times: FloatArray, window: Window) -> BoolArray:
    """True for times inside the window; null times are outside."""
    if window is None:
        return cast(BoolArray, np.isfinite(times))
    return (times > window[0]) & (times <= window[1])


def of_class(tables: PassTables, request_class: str) -> BoolArray:
    """True for requests of this class (``all`` = every request)."""
    if request_class == ALL:
        return np.ones(len(tables.requests), dtype=np.bool_)
    return tables.once(
        ("class", request_class),
        lambda: np.asarray(tables.requests["request_class"] == request_class, dtype=np.bool_),
    )


def request_rows(tables: PassTables) -> IntArray:
    """Row in the schedule per request: the same number in every round."""
    return tables.once("rows", lambda: cast(IntArray, tables.requests["request"].to_numpy(dtype=np.int64)))


def span_samples(tables: PassTables, window: Window, quantity: str, request_class: str = ALL) -> Samples:
    """A time span of requests that ended well; a request belongs to the window in which the span ends."""
    start, end = (tables.of_requests(name) for name in SPANS[quantity])
    keep = tables.done & within(end, window) & of_class(tables, request_class)
    return Samples.of(end - start, request_rows(tables), keep)


def tpot_samples(tables: PassTables, window: Window, request_class: str = ALL) -> Samples:
    """(last token - first token) / (tokens - 1) of requests with at least two output tokens."""
    first, last = tables.of_requests("first_token_s"), tables.of_requests("last_token_s")
    tokens = tables.of_requests("output_tokens")
    several = tokens >= 2
    keep = tables.done & several & within(last, window) & of_class(tables, request_class)
    return Samples.of((last - first) / np.where(several, tokens - 1, np.nan), request_rows(tables), keep)


def itl_samples(tables: PassTables, window: Window, request_class: str = ALL) -> Samples:
    """Gaps between consecutive output tokens of requests that ended well. A first token closes no gap; it opens one.

    Equal gaps that end at the same time are one value with a weight. Unit = the time at which gaps end, numbered.
    """
    gaps, ends, rows = tables.once("gaps", lambda: _gaps_in_order(tables))
    wanted = tables.done & of_class(tables, request_class)
    keep = within(ends, window) & wanted[rows]
    gaps, ends = gaps[keep], ends[keep]
    new_end = np.ones(len(ends), dtype=np.bool_)
    new_end[1:] = np.diff(ends) > 0
    new_value = new_end.copy()
    new_value[1:] |= np.diff(gaps) > 0
    first = np.flatnonzero(new_value)
    weights = np.diff(np.append(first, len(gaps))).astype(np.float64)
    return Samples(values=gaps[first], weights=weights, units=(np.cumsum(new_end) - 1)[first].astype(np.int64))


def _gaps_in_order(tables: PassTables) -> tuple[FloatArray, FloatArray, IntArray]:
    """Every gap between tokens of a request, when it ends, and the request's row; by end, then by gap."""
    times, rows = token_times(tables.requests)
    inside = rows[1:] == rows[:-1]
    gaps, ends, rows = np.diff(times)[inside], times[1:][inside], rows[1:][inside]
    order = np.lexsort((gaps, ends))
    return gaps[order], ends[order], rows[order]


def lag_samples(tables: PassTables, window: Window, request_class: str = ALL) -> Samples:
    """How late the replayer itself was, of every request that was sent."""
    keep = within(tables.of_requests("sent_s"), window) & of_class(tables, request_class)
    return Samples.of(tables.of_requests("send_slack_s"), request_rows(tables), keep)


def step_samples(tables: PassTables, window: Window, phase: str, *, device: bool = False) -> Samples:
    """Wall (or device) time of steps of one phase, or of all."""
    ends = column(tables.steps, "end_s")
    values = column(tables.steps, "device_s") if device else ends - column(tables.steps, "start_s")
    keep = within(ends, window)
    if phase != ALL:
        keep &= np.asarray(tables.steps["phase"] == phase, dtype=np.bool_)
    return Samples.of(values, np.arange(len(values), dtype=np.int64), keep)


# A price or a rate is a mean over requests. The fewest requests for it are those for a median: with ten or fewer, all
# but one may lie on the same side of the typical request in more than one schedule of a hundred.
FEWEST_REQUESTS = intervals.MINIMUM_SAMPLES[50.0]


def too_few_requests(rounds: Sequence[PassTables]) -> str | None:
    """Why prices and other means over requests are not to be trusted, or None: fewer than FEWEST_REQUESTS ended well.

    Distinct requests of the schedule count: rounds replay the same ones.
    """
    num = len({row for tables in rounds for row in request_rows(tables)[tables.done].tolist()})
    if num >= FEWEST_REQUESTS:
        return None
    finished = f"{num} request{'s' * (num != 1)} finished"
    return f"{finished}, and a price or a rate needs {FEWEST_REQUESTS} different ones, as a median does"


def of_enough_requests(value: MetricValue, rounds: Sequence[PassTables]) -> MetricValue:
    """The value, marked not valid where too few requests are behind it; it stays, as a fact of these requests."""
    reason = None if value.value is None else too_few_requests(rounds)
    return value if reason is None else replace(value, valid=False, reasons=(*value.reasons, reason))


ALL_PERCENTILES = intervals.PERCENTILES
SHORT_PERCENTILES = (50.0, 99.0)
NO_INTERVAL = "no interval: too few samples"
FEW_STEPS = "no interval: fewer than ten steps"


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
    names = [f"{quantity}_mean_s", *(f"{quantity}_{intervals.percentile_label(p)}_s" for p in percentiles)]
    if not filled:
        return [missing(name, missing_reason, **labels) for name in names]
    pooled, num_units = pool(filled)
    means = [float(np.average(part.values, weights=part.weights)) for part in filled]
    interval, why = intervals.repeated_interval(means)
    values = [estimated(names[0], float(np.mean(means)), interval, why or "", n=num_units, labels=labels, notes=notes)]
    points = intervals.weighted_percentiles(pooled.values, pooled.weights, percentiles)
    drawn = intervals.bootstrap_percentiles(pooled, percentiles)
    of_rounds = np.array([intervals.weighted_percentiles(p.values, p.weights, percentiles) for p in filled])
    for i, (name, percentile) in enumerate(zip(names[1:], percentiles, strict=True)):
        needed = intervals.minimum_samples(percentile)
        if num_units < needed:
            reason = f"{num_units} independent samples, p{percentile:g} needs {needed}"
            values.append(MetricValue(name=name, value=None, n=num_units, labels=labels, reasons=(reason,)))
            continue
        interval, why = _both_kinds(float(points[i]), of_rounds[:, i], None if drawn is None else drawn[:, i])
        values.append(estimated(name, float(points[i]), interval, why, n=num_units, labels=labels, notes=notes))
    return values


def _both_kinds(point: float, of_rounds: FloatArray, drawn: FloatArray | None) -> tuple[intervals.Interval | None, str]:
    """The interval that holds the figure, the spread of rounds and that of requests, or why there is none.

    Rounds are judged around the mean of their own figures (of their logarithms): a percentile of rounds that differ,
    taken over all of them together, lies further out than that of a round.

    Args:
        point: the figure of all rounds together.
        of_rounds: the same figure of each round.
        drawn: the figure of block resamples, None with too few blocks.
    """
    interval, why = intervals.repeated_interval(of_rounds)
    if interval is None:
        return None, why or ""
    # with too few blocks to resample it speaks for these requests
    low, high = (point, point) if drawn is None else intervals.percentile_interval(drawn)
    held = (min(low, interval[0], point), max(high, interval[1], point))
    return (None, NO_INTERVAL) if intervals.is_too_wide(held) else (held, "")


def pool(samples: Sequence[Samples]) -> tuple[intervals.BlockSample, int]:
    """All rounds as one sample in blocks of neighbouring units, and the number of distinct units."""
    units = np.concatenate([part.units for part in samples])
    distinct, position = np.unique(units, return_inverse=True)
    pooled = intervals.BlockSample(
        values=np.concatenate([part.values for part in samples]),
        weights=np.concatenate([part.weights for part in samples]),
        blocks=intervals.blocks_of(len(distinct))[position],
    )
    return pooled, len(distinct)


def percentile_ratio(name: str, samples: Sequence[Samples], labels: dict[str, str], missing_reason: str) -> MetricValue:
    """p99 / p50 of a quantity: how much worse the tail is than the middle."""
    filled = [part for part in samples if len(part.values)]
    if not filled:
        return missing(name, missing_reason, **labels)
    pooled, num_units = pool(filled)
    if num_units < intervals.MINIMUM_SAMPLES[99.0]:
        reason = f"{num_units} independent samples, p99 needs {intervals.MINIMUM_SAMPLES[99.0]}"
        return MetricValue(name=name, value=None, n=num_units, labels=labels, reasons=(reason,))
    middle, tail = intervals.weighted_percentiles(pooled.values, pooled.weights, (50.0, 99.0))
    if middle <= 0:
        return missing(name, "the median is zero", **labels)
    drawn = intervals.bootstrap_percentiles(pooled, (50.0, 99.0))
    of_rounds = np.array([intervals.weighted_percentiles(p.values, p.weights, (50.0, 99.0)) for p in filled])
    if (of_rounds[:, 0] <= 0).any():
        return missing(name, "the median of a round is zero", **labels)
    drawn_ratio = None if drawn is None else drawn[:, 1] / drawn[:, 0]
    interval, why = _both_kinds(float(tail / middle), of_rounds[:, 1] / of_rounds[:, 0], drawn_ratio)
    return estimated(name, float(tail / middle), interval, why, n=num_units, labels=labels)


def over_rounds(
    name: str,
    per_round: Sequence[float | None],
    labels: dict[str, str],
    missing_reason: str,
    *,
    n: int | None = None,
) -> MetricValue:
    """The mean over rounds of one number per round, with its interval over rounds.

    Args:
        name: of the metric.
        per_round: one number per round; None where the round has none.
        labels: of the value.
        missing_reason: why there is no value, when no round has one.
        n: independent samples, when they are not the rounds.
    """
    known = [value for value in per_round if value is not None]
    if not known:
        return missing(name, missing_reason, **labels)
    interval, why = intervals.repeated_interval(known, bounded=card_for(name).bounded)
    num = len(known) if n is None else n
    return estimated(name, float(np.mean(known)), interval, why or "", n=num, labels=labels)


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
    interval = intervals.block_mean_interval(series)
    return estimated(name, float(series.mean()), interval, FEW_STEPS, n=len(series), labels=labels)
