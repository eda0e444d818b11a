"""What a claim can be measured by: from a run to one number with its interval.

Each takes (of, against) and answers with an Estimate; counted facts have low = high = value. Timed ratios come from
lock-step where the run has it, else from paired launches or rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from moeprof.analysis import stats
from moeprof.analysis.compare.estimate import Estimate
from moeprof.analysis.compare.keys import key_of
from moeprof.analysis.compare.ladder import ladders
from moeprof.analysis.compare.lanes import LaneTimes, lane_times, pair_ratio
from moeprof.analysis.compare.pairs import paired_logs, ratio_of_pairs, repeats
from moeprof.analysis.compare.realised import realised_of_lanes, realised_of_rounds
from moeprof.analysis.compare.same_work import why_incomparable
from moeprof.analysis.metrics.routing_cells import cell
from moeprof.analysis.pick import pick
from moeprof.analysis.step_work import StepWork, step_work
from moeprof.analysis.summary import ModelSummary, Summary
from moeprof.core.workload import Slo

NATIVE_RUNGS = ("dense", "native")


@dataclass(frozen=True, kw_only=True)
class Sides:
    """The models that a claim is about.

    Attributes:
        summary: of the run.
        of: the model of the claim.
        against: the other one, or None where the run has none.
    """

    summary: Summary
    of: ModelSummary
    against: ModelSummary | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One way to test a claim.

    Attributes:
        text: what it is, for people.
        unit: of the value, as in core/units.py.
        is_pair: True when it needs a second model.
        measure: from the models to the value.
    """

    text: str
    unit: str
    is_pair: bool
    measure: Callable[[Sides], Estimate]


def exactly(value: float) -> Estimate:
    """A counted fact."""
    return Estimate(value=value, low=value, high=value)


# -- time and money ----------------------------------------------------------------------------------------------------


def _speed(phase: str | None) -> Callable[[Sides], Estimate]:
    """Seconds of the other for the same tokens / own seconds."""

    def measure(sides: Sides) -> Estimate:
        found = _lockstep_speed(sides, phase)
        if found is not None:
            return found
        if phase is None:
            return _paired(sides, "output_tokens_per_s")
        inverse = _paired(sides, "step_mean_s", phase=phase)
        if inverse.value is None or inverse.low is None or inverse.high is None:
            value = None if inverse.value is None else 1 / inverse.value
            return Estimate(value=value, n=inverse.n, reason=inverse.reason)
        return Estimate(value=1 / inverse.value, low=1 / inverse.high, high=1 / inverse.low, n=inverse.n)

    return measure


def _lockstep_speed(sides: Sides, phase: str | None) -> Estimate | None:
    """At the largest load that was measured in lock-step; None where the run has no such lanes."""
    assert sides.against is not None, "a pair"
    for times in _by_load(sides.summary):
        lanes = [_lane(times[0], model.name) for model in (sides.of, sides.against)]
        if lanes[0] is not None and lanes[1] is not None:
            return pair_ratio(times, of=lanes[1], against=lanes[0], phase=phase).ratio
    return None


def _by_load(summary: Summary) -> list[list[LaneTimes]]:
    """Lock-step measurements, all launches of a load together; the largest load (all at once) first."""
    by_load: dict[int, list[LaneTimes]] = {}
    for lane_pass in summary.record.lockstep:
        by_load.setdefault(lane_pass.concurrency or 0, []).append(lane_times(lane_pass))
    return [by_load[load] for load in sorted(by_load, key=lambda load: (load == 0, load), reverse=True)]


def _lane(times: LaneTimes, model: str) -> str | None:
    """The lane in which a model ran by itself."""
    return next(
        (str(lane["name"]) for lane in times.info if lane.get("model") == model and lane.get("rung") in NATIVE_RUNGS),
        None,
    )


def _paired(sides: Sides, name: str, **labels: str) -> Estimate:
    """One over the other, by pairs of launches or rounds of the priced passes."""
    assert sides.against is not None, "a pair"
    values = [pick(model, name, own_traffic=False, **labels) for model in (sides.of, sides.against)]
    if values[0] is None or values[1] is None:
        return Estimate(value=None, reason=f"{name} was not measured in both")
    key = key_of(values[0])
    reason = why_incomparable(key, sides.of, sides.against)
    if reason is not None:
        return Estimate(value=None, reason=reason)
    slo = Slo(**(sides.summary.record.workload.get("slo") or {}))
    first, second = (repeats(model, sides.summary.pricing, slo).values for model in (sides.of, sides.against))
    return ratio_of_pairs(paired_logs(first.get(key, {}), second.get(key_of(values[1]), {})))


# -- work and memory ---------------------------------------------------------------------------------------------------


def _compute_saved(sides: Sides) -> Estimate:
    """1 - FLOPs of / FLOPs against, over the same requests: counted from what ran."""
    assert sides.against is not None, "a pair"
    flops = [_flops_per_token(model) for model in (sides.of, sides.against)]
    if isinstance(flops[0], str) or isinstance(flops[1], str):
        return Estimate(value=None, reason=next(f for f in flops if isinstance(f, str)))
    return exactly(1 - flops[0] / flops[1])


def _flops_per_token(model: ModelSummary) -> float | str:
    """FLOPs of the first priced pass over its tokens, or why they are unknown."""
    if model.facts is None or not model.priced:
        return f"{model.name} was not measured"
    work = step_work(model.priced[0], model.facts, model.launch.get("engine") or {})
    if not isinstance(work, StepWork):
        return work
    tokens = float(work.tokens_S.sum())
    return float(work.flops_S.sum()) / tokens if tokens else "no tokens were processed"


def _weights(model: ModelSummary) -> float:
    assert model.facts is not None, "a side has facts"
    return float(sum(model.facts.bytes_by_group.values()))


def _weights_ratio(sides: Sides) -> Estimate:
    assert sides.against is not None, "a pair"
    return exactly(_weights(sides.of) / _weights(sides.against))


def _memory_over_active(sides: Sides) -> Estimate:
    """Bytes that must be resident / bytes of the parameters that one token uses."""
    facts = sides.of.facts
    assert facts is not None, "a side has facts"
    idle = sum(layer.expert_bytes * (layer.num_experts - layer.top_k) for layer in facts.moe_layers)
    return exactly(_weights(sides.of) / (_weights(sides.of) - idle))


# -- routing -----------------------------------------------------------------------------------------------------------


def _expert_share(*, over_busiest: bool) -> Callable[[Sides], Estimate]:
    """Share of a layer's picks, in the layer where one expert stands out most; jackknife over stretches of time."""

    def figure(counts_LE: stats.IntArray) -> float:
        most = counts_LE.max(axis=1)
        if over_busiest:
            return float((counts_LE.min(axis=1) / np.maximum(most, 1)).min())
        return float((most / np.maximum(counts_LE.sum(axis=1), 1)).max())

    def measure(sides: Sides) -> Estimate:
        routing = next((tables.routing for tables in sides.of.rounds if tables.routing is not None), None)
        if routing is None:
            return Estimate(value=None, reason=f"{sides.of.name}: routing was not recorded")
        counts = cell(routing)
        if not counts.counts_LE.sum():
            return Estimate(value=None, reason=f"{sides.of.name}: no token was routed")
        value = figure(counts.counts_LE)
        groups = counts.counts_GLE
        interval = stats.jackknife_interval(value, stats.leave_group_out(groups, figure), bounded=True)
        if interval is None:
            return Estimate(value=value, n=len(groups), reason="no interval: one stretch of time only")
        return Estimate(value=value, low=interval[0], high=interval[1], n=len(groups))

    return measure


def _step_cv(sides: Sides) -> Estimate:
    return _paired(sides, "step_cv_at_fixed_tokens", phase="decode")


# -- what sparsity realised --------------------------------------------------------------------------------------------


def _realised(sides: Sides) -> Estimate:
    """From the ladder at its largest load, else from lock-step lanes, else from the bills of rounds run alone."""
    of = sides.of
    assert of.facts is not None, "a side has facts"
    found = [
        result
        for result in ladders(sides.summary.record.ladder, num_moe_layers=len(of.facts.moe_layers))
        if result.phase == "all"
    ]
    if found:
        return found[-1].realised
    active, total = _twin(sides, "is_active_matched"), _twin(sides, "is_total_matched")
    if active is None or total is None:
        return Estimate(value=None, reason=f"{of.name} needs an active-matched and a total-matched twin in the run")
    names = (total.name, of.name, active.name)
    for times in _by_load(sides.summary):
        lanes = [lane for lane in (_lane(times[0], name) for name in names) if lane is not None]
        if len(lanes) == len(names):
            return realised_of_lanes([one.draws(None) for one in times], *lanes)
    if any(model.priced[0].traffic == "open" for model in (of, active, total) if model.priced):
        return Estimate(value=None, reason="open-loop dollars compare utilisation, not models")
    return realised_of_rounds(*(_bills(model) for model in (total, of, active)))


def _twin(sides: Sides, kind: str) -> ModelSummary | None:
    twins = ((model, model.facts.twin) for model in sides.summary.models if model.facts is not None)
    return next((m for m, twin in twins if twin is not None and twin.of == sides.of.name and getattr(twin, kind)), None)


def _bills(model: ModelSummary) -> list[float]:
    """Dollars per launch, or per round of a single launch."""
    bills = [[split.run_cost_usd for split in splits] for splits in model.launch_splits]
    return [sum(launch) / len(launch) for launch in bills] if len(bills) > 1 else bills[0] if bills else []


def _dispatch_share(sides: Sides) -> Estimate:
    """(dispatch + coverage + imbalance) / (total-matched - active-matched): what the realised share leaves."""
    realised = _realised(sides)
    if realised.value is None or realised.low is None or realised.high is None:
        value = None if realised.value is None else 1 - realised.value
        return Estimate(value=value, n=realised.n, reason=realised.reason)
    return Estimate(value=1 - realised.value, low=1 - realised.high, high=1 - realised.low, n=realised.n)


MEASURED: dict[str, Measure] = {
    "speed_ratio": Measure(text="speed on the same requests", unit="ratio", is_pair=True, measure=_speed(None)),
    "prefill_speed_ratio": Measure(
        text="speed of prefill steps on the same requests", unit="ratio", is_pair=True, measure=_speed("prefill")
    ),
    "decode_speed_ratio": Measure(
        text="speed of decode steps on the same requests", unit="ratio", is_pair=True, measure=_speed("decode")
    ),
    "cost_ratio": Measure(
        text="dollars for the same requests",
        unit="ratio",
        is_pair=True,
        measure=lambda sides: _paired(sides, "usd_per_1m_total_tokens"),
    ),
    "compute_saved_ratio": Measure(
        text="share of the FLOPs saved on the same requests", unit="ratio", is_pair=True, measure=_compute_saved
    ),
    "weights_bytes": Measure(
        text="memory of the weights", unit="B", is_pair=False, measure=lambda sides: exactly(_weights(sides.of))
    ),
    "weights_ratio": Measure(text="memory of the weights", unit="ratio", is_pair=True, measure=_weights_ratio),
    "memory_over_active_ratio": Measure(
        text="memory of the weights over that of its active parameters",
        unit="ratio",
        is_pair=False,
        measure=_memory_over_active,
    ),
    "expert_share_max": Measure(
        text="largest share of a layer's picks that one expert takes",
        unit="ratio",
        is_pair=False,
        measure=_expert_share(over_busiest=False),
    ),
    "expert_share_min_over_max": Measure(
        text="picks of a layer's least busy expert over those of its busiest",
        unit="ratio",
        is_pair=False,
        measure=_expert_share(over_busiest=True),
    ),
    "step_cv_ratio": Measure(
        text="spread of decode step times at a fixed batch", unit="ratio", is_pair=True, measure=_step_cv
    ),
    "dispatch_share_ratio": Measure(
        text="share of the promised saving that dispatch, coverage and imbalance take",
        unit="ratio",
        is_pair=False,
        measure=_dispatch_share,
    ),
    "sparsity_realised_ratio": Measure(
        text="share of the promised saving that is realised", unit="ratio", is_pair=False, measure=_realised
    ),
}
