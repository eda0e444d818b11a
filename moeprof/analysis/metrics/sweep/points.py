"""The passes of a sweep as tables, by point: what ran, what it cost, whether it kept up.

A pass of a sweep is one round at one setting. Rounds of a point send the same requests, and so do the models of a run:
``schedule_sha256`` proves it. The run's own rounds are a point too, where only the load was swept. The record of a
sweep that was stopped early has fewer points, and says why.

One number of one round of a sweep: what is averaged over rounds, and paired by round between models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from moeprof.analysis.metrics.cost.bill import MILLION, CostSplit, cost_split
from moeprof.analysis.metrics.load.interruptions import undisturbed_rounds
from moeprof.analysis.metrics.load.overload import requested_rate, saturation_of
from moeprof.analysis.metrics.resources.work import peaks_of
from moeprof.analysis.metrics.sweep.objectives import num_distinct
from moeprof.analysis.metrics.tables import PassTables, column, is_phase, token_times
from moeprof.analysis.stats import intervals
from moeprof.analysis.stats.estimate import Estimate, narrow, ratio_of_logs
from moeprof.core.metric import MetricValue
from moeprof.core.model_facts import ModelFacts
from moeprof.core.pricing import Pricing
from moeprof.core.record.experiment import ScheduleHeader
from moeprof.core.record.launch import PeaksHeader, with_peaks
from moeprof.core.record.layout import LaunchRecord, ModelRecord, PassRecord
from moeprof.core.record.passes import Saturation
from moeprof.core.record.tables import read_table
from moeprof.core.workload.studies import SweepPoint

OWN = "the run's own rounds"
AXES = ("concurrency", "request_rate", "input_tokens", "max_batch_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class SweptRound:
    """One pass of a sweep.

    Attributes:
        launch: number of the launch.
        round: number of the round at this point.
        tables: of the pass.
        split: its bill.
        schedule_sha256: of the requests that were sent, or None in a pass that died early.
        saturated: the queue grew without bound; None when the pass cannot tell.
        saturation_reason: how that was seen.
    """

    launch: int
    round: int
    tables: PassTables
    split: CostSplit
    schedule_sha256: str | None = None
    saturated: bool | None = None
    saturation_reason: str | None = None

    @property
    def usd_per_1m_total_tokens(self) -> float | None:
        """Billed dollars: idle time of the window included."""
        return self._per_million(self.split.run_cost_usd)

    @property
    def usd_per_1m_total_tokens_compared(self) -> float | None:
        """What models are compared by: an open loop bills busy seconds only (docs/metrics.md#busy-and-billed)."""
        is_open = self.tables.traffic == "open"
        return self._per_million(self.split.busy_cost_usd if is_open else self.split.run_cost_usd)

    def _per_million(self, usd: float | None) -> float | None:
        tokens = self.split.input_tokens + self.split.output_tokens
        return None if usd is None or tokens <= 0 else MILLION * usd / tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class SweptPoint:
    """One setting of a sweep, by one model: all its rounds in all launches, without those that were disturbed.

    Attributes:
        point: the setting.
        rounds: of all launches.
        own: they are the run's own rounds, at the workload's own load; not passes of the sweep.
        set_aside: rounds left out because the machine took the processor away.
    """

    point: SweepPoint
    rounds: tuple[SweptRound, ...]
    own: bool = False
    set_aside: int = 0

    @property
    def label(self) -> str:
        """``concurrency 8 (the run's own rounds)``."""
        return f"{self.point.label} ({OWN})" if self.own else self.point.label

    @property
    def num_requests(self) -> int:
        """Distinct ones: rounds repeat them."""
        return num_distinct([one.tables for one in self.rounds])

    @property
    def saturated(self) -> bool:
        """In every round: rounds that disagree are no ground to say so."""
        return bool(self.rounds) and all(one.saturated for one in self.rounds)

    @property
    def saturation_reason(self) -> str | None:
        """Of the first saturated round."""
        return next((one.saturation_reason for one in self.rounds if one.saturated), None)


def swept_points(
    record: ModelRecord,
    facts: ModelFacts,
    pricing: Pricing,
    peaks: PeaksHeader | None = None,
    sent: ScheduleHeader | None = None,
) -> tuple[SweptPoint, ...]:
    """All points of a model's sweep in the order of the record, then the run's own rounds; empty without a sweep.

    Args:
        record: the model's part of the record.
        facts: what it is.
        pricing: what an hour costs.
        peaks: ``{"peaks": ...}`` of the device, for launches that did not measure them.
        sent: the schedule of the run's own rounds.
    """
    found: dict[SweepPoint, list[SweptRound]] = {}
    own: list[SweptRound] = []
    for launch in record.launches:
        if not launch.sweep:
            continue
        billed = _Bills(launch, facts, pricing, peaks)
        for one in launch.sweep:
            if one.info.sweep is not None and len(one.steps):  # else it died before it began
                told = one.info.saturation or Saturation()
                found.setdefault(one.info.sweep, []).append(billed.swept(one, one.info.schedule_sha256, told))
        if sent is not None:
            own += [billed.swept(one, sent.sha256) for one in launch.rounds if len(one.steps)]
    points = tuple(_undisturbed(point, rounds) for point, rounds in found.items())
    where = None if sent is None else own_point(sent, own, points)
    return points if where is None else (*points, _undisturbed(where, own, own=True))


def _undisturbed(point: SweepPoint, rounds: Sequence[SweptRound], *, own: bool = False) -> SweptPoint:
    kept = {id(tables) for tables in undisturbed_rounds([one.tables for one in rounds])[0]}
    left = tuple(one for one in rounds if id(one.tables) in kept)
    return SweptPoint(point=point, rounds=left, own=own, set_aside=len(rounds) - len(left))


def own_point(sent: ScheduleHeader, own: Sequence[SweptRound], points: Sequence[SweptPoint]) -> SweepPoint | None:
    """Where the run's own rounds stand among the points, by their load; None where more than the load was swept."""
    alone = [one.point for one in points if other_settings(one.point) == SweepPoint()]
    if not own or not alone:
        return None
    if sent.pattern == "closed" and sent.concurrency and alone[0].concurrency is not None:
        return SweepPoint(concurrency=sent.concurrency)
    rate = requested_rate(own[0].tables) if sent.pattern == "open" and alone[0].request_rate is not None else None
    return None if rate is None else SweepPoint(request_rate=rate)


def other_settings(point: SweepPoint) -> SweepPoint:
    """The point without its load (concurrency or rate)."""
    return replace(point, concurrency=None, request_rate=None)


class _Bills:
    """Passes of one launch with what they cost."""

    def __init__(self, launch: LaunchRecord, facts: ModelFacts, pricing: Pricing, peaks: PeaksHeader | None) -> None:
        self._number, self._facts, self._pricing = launch.number, facts, pricing
        calibration = read_table(launch.path, "calibration")
        self._calibration = calibration if len(calibration) else None
        self._limits = peaks_of(with_peaks(launch.info, peaks), facts)

    def swept(self, one: PassRecord, sha256: str | None, told: Saturation | None = None) -> SweptRound:
        """A pass; ``told``: what it said of its queue, None: its table says it."""
        tables = PassTables.from_record(one)
        told = saturation_of(tables) if told is None else told
        split = cost_split(tables, self._pricing, self._calibration, facts=self._facts, peaks=self._limits)
        return SweptRound(
            launch=self._number,
            round=int(one.name.rpartition("-")[2]) if one.info.round is None else one.info.round,
            tables=tables,
            split=split,
            schedule_sha256=sha256,
            saturated=told.saturated,
            saturation_reason=told.reason,
        )


def over_rounds(samples: Sequence[tuple[int, float | None]], reason: str, *, bounded: bool = False) -> Estimate:
    """The mean of one number per round, with its interval over launches where there are several, else over rounds.

    Args:
        samples: (launch, value) per round; a value may be None.
        reason: why there is no value when no round has one.
        bounded: the quantity is a share that cannot leave [0, 1].
    """
    by_launch: dict[int, list[float]] = {}
    for launch, value in samples:
        if value is not None:
            by_launch.setdefault(launch, []).append(value)
    if not by_launch:
        return Estimate(value=None, reason=reason)
    groups = list(by_launch.values())
    values = [float(np.mean(group)) for group in groups] if len(groups) > 1 else groups[0]
    unit = "launch" if len(groups) > 1 else "round"
    interval, why = intervals.repeated_interval(values, unit=unit, bounded=bounded)
    low, high = interval or (None, None)
    return Estimate(value=float(np.mean(values)), low=low, high=high, n=len(values), reason=why)


def log_ratio_estimate(ratios: Sequence[float], spread: tuple[float, int] | None = None) -> Estimate:
    """The geometric mean of paired ratios with its 95 % t-interval on the logarithm.

    Args:
        ratios: one per pair of rounds or launches, above 0.
        spread: standard deviation of a log ratio and its degrees of freedom, pooled with that of other loads; where
            the ratios' own is larger, that one stands.
    """
    logs = np.log(np.asarray(ratios, dtype=np.float64))
    if not len(logs):
        return Estimate(value=None, reason="no pair of rounds")
    if spread is None or spread[1] < intervals.FEWEST_REPEATS - 1:
        return ratio_of_logs(logs.tolist(), "round")
    own = float(logs.std(ddof=1)) if len(logs) > 1 else 0.0
    middle, error = float(logs.mean()), max(spread[0], own) / math.sqrt(len(logs))
    half = intervals.t_quantile(0.5 + intervals.CONFIDENCE / 2, spread[1]) * error
    return narrow(
        Estimate(value=math.exp(middle), low=math.exp(middle - half), high=math.exp(middle + half), n=len(logs)),
        f"no interval: {intervals.repeats_text(np.exp(logs), 'round')}",
    )


def from_metric(value: MetricValue) -> Estimate:
    """A metric's value as an estimate."""
    reason = "; ".join(value.reasons) or None
    return Estimate(
        value=None if value.value is None else float(value.value),
        low=value.ci_low,
        high=value.ci_high,
        n=value.n,
        reason=reason,
    )


def to_metric(name: str, estimate: Estimate, **labels: str) -> MetricValue:
    """An estimate as a metric's value, for tables."""
    return MetricValue(
        name=name,
        value=estimate.value,
        n=estimate.n,
        ci_low=estimate.low,
        ci_high=estimate.high,
        exact=estimate.value is not None and estimate.n is None,
        labels=labels,
        reasons=() if estimate.reason is None else (estimate.reason,),
    )


def usd_total(one: SweptRound) -> float | None:
    """Dollars per million tokens that models are compared by: an open loop bills busy seconds only."""
    return one.usd_per_1m_total_tokens_compared


def usd_output(one: SweptRound) -> float | None:
    """The outputs' part of the additive split, billed alike."""
    usd = one.split.usd_per_output_token
    if usd is None:
        return None
    if one.tables.traffic != "open":
        return MILLION * usd
    return None if one.split.busy_ratio is None else MILLION * usd * one.split.busy_ratio


def outputs_per_s(one: SweptRound) -> float | None:
    """Output tokens per second of all devices."""
    duration_s = one.tables.duration_s
    return one.split.output_tokens / duration_s if duration_s > 0 else None


def tokens_per_s_per_user(one: SweptRound) -> float | None:
    """1 / mean gap between tokens, over all gaps of all requests."""
    times, rows = token_times(one.tables.requests)
    gaps = np.diff(times)[rows[1:] == rows[:-1]] if len(times) > 1 else np.empty(0)
    return 1 / float(gaps.mean()) if len(gaps) and gaps.mean() > 0 else None


def decode_step_s(one: SweptRound) -> float | None:
    """Mean wall time of a pure decode step."""
    steps = one.tables.steps
    seconds = (column(steps, "end_s") - column(steps, "start_s"))[is_phase(steps, "decode")]
    return float(seconds.mean()) if len(seconds) else None


def decode_batch(one: SweptRound) -> float | None:
    """Mean tokens of a pure decode step."""
    tokens = column(one.tables.steps, "decode_tokens")[is_phase(one.tables.steps, "decode")]
    return float(tokens.mean()) if len(tokens) else None
