"""The sparsity ladder: what dispatch, expert coverage and imbalance took away, and what sparsity saved.

Five rungs do the same steps in turn, each one change from the one before: the active-matched dense twin; the MoE with
all tokens on the same experts (+ router and dispatch); with the step's number of distinct experts under even load
(+ coverage); with the recorded routing (+ imbalance); the total-matched dense twin. Every interval holds what lanes of
equal work differ by, where the ladder shows it (moeprof/analysis/compare/lanes.py).

Two runs of one sparsity ladder: whether their taxes agree within their intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moeprof.analysis.compare.lanes import LaneOffset, LaneTimes, lane_offset, lane_times, lanes_estimate
from moeprof.analysis.metrics.sweep.points import to_metric
from moeprof.analysis.sparsity.realised import realised_of_lanes
from moeprof.analysis.sparsity.roles import cache_note
from moeprof.analysis.stats.arrays import FloatArray
from moeprof.analysis.stats.bootstrap import MIN_BLOCKS, Draws
from moeprof.analysis.stats.estimate import Estimate
from moeprof.core.metric import MetricValue
from moeprof.core.pricing import Pricing
from moeprof.core.record.lanes import LaneHeader, LanePass
from moeprof.core.record.layout import Record

PHASES = ("prefill", "decode", "mixed", "all")
# tax -> (rung, less this rung)
TAXES = {
    "dispatch_tax_s": ("concentrated", "active"),
    "coverage_tax_s": ("balanced", "concentrated"),
    "imbalance_tax_s": ("recorded", "balanced"),
    "sparsity_saved_s": ("total", "recorded"),
    "sparsity_promised_s": ("total", "active"),
    "override_cost_s": ("recorded", "native"),
}
SAME_AT_ONE_TOKEN = "at one token a step the balanced and the recorded rung are the same by definition"
AS_MANY_AT_ONE_TOKEN = "at one token a step every rung reads as many experts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One lane of a ladder.

    Attributes:
        name: of the lane.
        role: active | concentrated | balanced | recorded | native | total | distinct, or dense for another twin.
        seconds: mean seconds per step.
        distinct_per_layer: mean distinct experts per MoE layer and step; None for dense lanes.
    """

    name: str
    role: str
    seconds: Estimate
    distinct_per_layer: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tax:
    """The difference of two rungs.

    Attributes:
        name: the metric; one of TAXES.
        seconds: per step, signed: the one rung less the other.
        share: of the recorded rung's step time: what a neighbour on the machine slows down alike cancels.
        told: its interval excludes 0, lane offset included.
        note: why there is nothing to tell; else None.
    """

    name: str
    seconds: Estimate
    share: Estimate
    told: bool
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CoveragePoint:
    """A rung whose number of distinct experts was set."""

    lane: str
    distinct_per_layer: float
    seconds: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class CoverageLine:
    """Step time against distinct experts at the same batch.

    Attributes:
        points: by distinct experts.
        slope: seconds per step for one more distinct expert in every MoE layer, by least squares.
        share: the slope over the recorded rung's step time.
    """

    points: tuple[CoveragePoint, ...]
    slope: Estimate
    share: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class LadderResult:
    """One ladder at one load, in one phase.

    Attributes:
        concurrency: requests in flight; None when all were sent at once.
        phase: prefill | decode | mixed | all.
        num_launches, num_steps, set_aside: behind it.
        tokens_per_step: mean over steps.
        rungs: in the order of the lanes.
        taxes: all of TAXES, those that were not measured with their reason.
        realised: ``sparsity_realised_ratio``.
        coverage: the line through the rungs with a set number of distinct experts.
        offset: what lanes of equal work differ by, in every interval; None where no lanes did equal work.
    """

    concurrency: int | None
    phase: str
    num_launches: int
    num_steps: int
    set_aside: int
    tokens_per_step: float
    rungs: tuple[Rung, ...]
    taxes: tuple[Tax, ...]
    realised: Estimate
    coverage: CoverageLine
    offset: LaneOffset | None

    def tax(self, name: str) -> Tax:
        """One of TAXES."""
        return next(tax for tax in self.taxes if tax.name == name)

    def rung(self, role: str) -> Rung | None:
        """The first rung of a role; None where it was not measured."""
        return next((rung for rung in self.rungs if rung.role == role), None)


def ladders(passes: Sequence[LanePass], *, num_moe_layers: int) -> tuple[LadderResult, ...]:
    """Every ladder of a run: one per load and phase with at least MIN_BLOCKS steps in each launch."""
    by_load: dict[int | None, list[LaneTimes]] = {}
    for one in passes:
        by_load.setdefault(one.concurrency, []).append(lane_times(one))
    offset = lane_offset([times for held in by_load.values() for times in held])
    found = []
    for concurrency in sorted(by_load, key=lambda load: (load is None, load or 0)):
        for phase in PHASES:
            own = None if phase == "all" else phase
            held = [times for times in by_load[concurrency] if times.of_phase(own).sum() >= MIN_BLOCKS]
            if held:
                found.append(ladder_result(held, phase, num_moe_layers, offset))
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """Lanes of one load and phase, and how a figure of them is estimated."""

    launches: Sequence[Draws]
    lane_of: Mapping[str, str]
    offset: LaneOffset | None

    def estimate(self, figure: Callable[[dict[str, float]], float], *, signed: bool = True) -> Estimate:
        return lanes_estimate(self.launches, figure, self.offset, signed=signed)

    def share(self, figure: Callable[[dict[str, float]], float]) -> Estimate:
        """The figure over the recorded rung's step time."""
        if "recorded" not in self.lane_of:
            return Estimate(value=None, reason=_absent(["recorded"]))
        return self.estimate(lambda seconds: figure(seconds) / seconds[self.lane_of["recorded"]])


def ladder_result(
    times: Sequence[LaneTimes], phase: str, num_moe_layers: int, offset: LaneOffset | None
) -> LadderResult:
    """The ladder of one load and phase."""
    own = None if phase == "all" else phase
    roles = lane_roles(times[0])
    tokens = np.concatenate([one.tokens_S[one.of_phase(own)] for one in times])
    lanes = [name for name in times[0].lanes if all(name in one.lanes for one in times)]
    lane_of = {roles[name]: name for name in reversed(lanes)}
    measured = _Measured(launches=[one.draws(own) for one in times], lane_of=lane_of, offset=offset)
    rungs = tuple(_rung(times, measured, own, name, roles[name], num_moe_layers) for name in lanes)
    moe = lane_of.get("native", lane_of.get("recorded"))  # the override's cost is not the MoE's
    missing = [role for role in ("total", "recorded", "active") if role not in lane_of]
    realised = (
        Estimate(value=None, reason=_absent(missing))
        if missing or moe is None
        else realised_of_lanes(measured.launches, lane_of["total"], moe, lane_of["active"], offset)
    )
    return LadderResult(
        concurrency=times[0].concurrency,
        phase=phase,
        num_launches=len(times),
        num_steps=len(tokens),
        set_aside=sum(one.set_aside for one in times),
        tokens_per_step=float(tokens.mean()),
        rungs=rungs,
        taxes=tuple(_tax(measured, name, one_token=bool((tokens == 1).all())) for name in TAXES),
        realised=realised,
        coverage=_coverage(measured, rungs),
        offset=offset,
    )


def lane_roles(times: LaneTimes) -> dict[str, str]:
    """What each lane is on the ladder, by its description in pass.json."""
    described = {lane.name: lane for lane in times.info}
    roles = {}
    for name in times.lanes:
        lane = described.get(name) or LaneHeader(name=name)
        rung = lane.rung or "dense"
        width = {"active": "active", "1x": "active", "total": "total"}.get(str(lane.match), "dense")
        roles[name] = width if rung == "dense" else rung
    return roles


def _absent(roles: Sequence[str]) -> str:
    return f"not measured: no lane is the rung {' or '.join(roles)}"


def _rung(
    times: Sequence[LaneTimes], measured: _Measured, phase: str | None, name: str, role: str, num_moe_layers: int
) -> Rung:
    def per_layer(columns: Sequence[FloatArray]) -> float | None:
        own = [c[one.of_phase(phase), one.lanes.index(name)] for c, one in zip(columns, times, strict=True)]
        values = np.concatenate(own)
        values = values[np.isfinite(values)]
        return float(values.mean()) / num_moe_layers if len(values) and num_moe_layers else None

    return Rung(
        name=name,
        role=role,
        seconds=measured.estimate(lambda seconds: seconds[name], signed=False),
        distinct_per_layer=per_layer([one.distinct_SL for one in times]),
    )


def _tax(measured: _Measured, name: str, *, one_token: bool) -> Tax:
    (of, less), lane_of = TAXES[name], measured.lane_of
    missing = [role for role in (of, less) if role not in lane_of]
    if missing:
        nothing = Estimate(value=None, reason=_absent(missing))
        return Tax(name=name, seconds=nothing, share=nothing, told=False, note=nothing.reason)

    def difference(seconds: dict[str, float]) -> float:
        return seconds[lane_of[of]] - seconds[lane_of[less]]

    seconds = measured.estimate(difference)
    told, note = seconds.excludes(0), None
    if name == "imbalance_tax_s" and one_token:
        told, note = False, SAME_AT_ONE_TOKEN
    elif name == "coverage_tax_s" and one_token:
        told, note = False, AS_MANY_AT_ONE_TOKEN
    elif not told:
        note = f"the rungs {less} and {of} are not distinguishable"
    return Tax(name=name, seconds=seconds, share=measured.share(difference), told=told, note=note)


def _coverage(measured: _Measured, rungs: Sequence[Rung]) -> CoverageLine:
    points = tuple(
        CoveragePoint(lane=rung.name, distinct_per_layer=rung.distinct_per_layer, seconds=rung.seconds)
        for rung in sorted(rungs, key=lambda rung: rung.distinct_per_layer or 0)
        if rung.role in ("concentrated", "distinct") and rung.distinct_per_layer is not None
    )
    distinct = np.array([point.distinct_per_layer for point in points])
    if len(np.unique(distinct)) < 2:
        reason = "one number of distinct experts, two are needed (`ladder: {distinct: [8, 16, 32]}`)"
        if len(points) > 1:
            reason = f"every rung touched {distinct[0]:g} experts: so few tokens a step cannot touch more"
        nothing = Estimate(value=None, reason=reason)
        return CoverageLine(points=points, slope=nothing, share=nothing)
    weights = (distinct - distinct.mean()) / float(((distinct - distinct.mean()) ** 2).sum())

    def slope(seconds: dict[str, float]) -> float:
        return float(sum(w * seconds[point.lane] for w, point in zip(weights, points, strict=True)))

    return CoverageLine(points=points, slope=measured.estimate(slope), share=measured.share(slope))


def usd_per_1m_tokens(seconds: Estimate, tokens_per_step: float, pricing: Pricing) -> Estimate:
    """Seconds per step as dollars per million tokens of such steps; power that is billed apart is not in it."""
    return seconds.times(1e6 * pricing.usd_per_second / tokens_per_step)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """One tax, measured twice: shares of the recorded rung's step time (or seconds per step), and second less first."""

    name: str
    first: Estimate
    second: Estimate
    difference: Estimate

    @property
    def agree(self) -> bool | None:
        """The interval of the difference holds 0; None where it cannot be told."""
        return None if self.difference.value is None else not self.difference.excludes(0)


def same_taxes(first: LadderResult, second: LadderResult, *, in_seconds: bool = False) -> tuple[Agreement, ...]:
    """Whether two runs of a ladder agree: every tax, and the slope of the coverage line.

    Shares of the recorded rung's step time are compared, because seconds scale with what else the machine does: a
    neighbour that takes half of the processor doubles every tax. The interval of a difference has the two half-widths
    that face each other, in quadrature: the runs are independent. It holds what the intervals hold: steps and lane
    offsets of one launch each, not what else differs between launches.
    """
    pairs = [(tax, second.tax(tax.name)) for tax in first.taxes]
    found = [_agreement(a.name, *((a.seconds, b.seconds) if in_seconds else (a.share, b.share))) for a, b in pairs]
    a, b = first.coverage, second.coverage
    slopes = (a.slope, b.slope) if in_seconds else (a.share, b.share)
    return (*found, _agreement("seconds_per_distinct_expert", *slopes))


def _agreement(name: str, a: Estimate, b: Estimate) -> Agreement:
    difference = Estimate(value=None, reason=a.reason or b.reason)
    if not (a.value is None or b.value is None or a.low is None or a.high is None or b.low is None or b.high is None):
        centre = b.value - a.value
        low = centre - float(np.hypot(b.value - b.low, a.high - a.value))
        high = centre + float(np.hypot(b.high - b.value, a.value - a.low))
        difference = Estimate(value=centre, low=low, high=high)
    return Agreement(name=name, first=a, second=b, difference=difference)


DOLLARS = {
    "dispatch_tax_s": "dispatch_tax_usd_per_1m_tokens",
    "coverage_tax_s": "coverage_tax_usd_per_1m_tokens",
    "imbalance_tax_s": "imbalance_tax_usd_per_1m_tokens",
    "sparsity_saved_s": "sparsity_saved_usd_per_1m_tokens",
}


def ladder_metrics(
    results: Sequence[LadderResult], pricing: Pricing, note: str | None = None
) -> tuple[MetricValue, ...]:
    """Every tax, with phase and concurrency as labels; what was not measured has its reason.

    Args:
        results: every ladder of the run.
        pricing: what a second costs.
        note: what readers of a realised share should know.
    """
    found = []
    for result in results:
        labels = labels_of(result)
        for tax in result.taxes:
            found.append(to_metric(tax.name, tax.seconds, **labels))
            if tax.name in DOLLARS:
                dollars = usd_per_1m_tokens(tax.seconds, result.tokens_per_step, pricing)
                found.append(to_metric(DOLLARS[tax.name], dollars, **labels))
        share = result.realised if result.realised.reason or not note else replace(result.realised, reason=note)
        found.append(to_metric("sparsity_realised_ratio", share, **labels, measured="lock-step"))
        found.append(to_metric("seconds_per_distinct_expert", result.coverage.slope, **labels))
    return tuple(found)


def labels_of(result: LadderResult) -> dict[str, str]:
    """Phase and load, as metric labels."""
    return {"phase": result.phase, "concurrency": str(result.concurrency or "offline")}


def ladder_results(record: Record) -> tuple[LadderResult, ...]:
    """Every ladder of a run; empty without one."""
    return ladders(record.ladder, num_moe_layers=_num_moe_layers(record)) if record.ladder else ()


def ladder_cache_note(record: Record) -> str | None:
    """That a twin on the ladder fits the last-level cache and the MoE does not; None where that is not so or unknown.

    Older ladders do not say how large the cache is; then it is the one measured with the peaks of the run's models.
    """
    lanes = {lane.model: lane for one in record.ladder for lane in one.info.lanes}
    facts = {name: known.facts for one in record.ladder for name, known in one.loaded.models.items()}
    moe = next((name for name, lane in lanes.items() if lane.rung != "dense" and name in facts), None)
    if moe is None:
        return None
    told = [one.loaded.cache_bytes for one in record.ladder]
    told += [launch.info.peaks.cache_bytes for m in record.models for launch in m.launches if launch.info.peaks]
    twins = {name: known for name, known in facts.items() if name in lanes and lanes[name].rung == "dense"}
    return cache_note(next((cache for cache in told if cache is not None), None), moe, facts[moe], twins)


def _num_moe_layers(record: Record) -> int:
    """Of the MoE that the ladder ran."""
    lanes = [lane for one in record.ladder for lane in one.info.lanes]
    names = [lane.model for lane in lanes if lane.rung != "dense"]
    counts = [len(model.facts.moe_layers) for model in record.models if model.name in names and model.facts]
    return max(counts, default=0)
