"""Claims about time and money, and about what sparsity realised: lock-step where the run has it, else pairs."""

from __future__ import annotations

from collections.abc import Callable

from moeprof.analysis.compare.claim_sides import Sides
from moeprof.analysis.compare.estimate import Estimate
from moeprof.analysis.compare.keys import key_of
from moeprof.analysis.compare.ladder import ladders
from moeprof.analysis.compare.lanes import LaneTimes, lane_times, pair_ratio
from moeprof.analysis.compare.pairs import paired_logs, ratio_of_pairs, repeats
from moeprof.analysis.compare.realised import realised_of_lanes, realised_of_rounds
from moeprof.analysis.compare.same_work import why_incomparable
from moeprof.analysis.pick import pick
from moeprof.analysis.summary import ModelSummary, Summary
from moeprof.core.record_lanes import LanePass
from moeprof.core.workload import Slo

NATIVE_RUNGS = ("dense", "native")


def speed(phase: str | None) -> Callable[[Sides], Estimate]:
    """Seconds of the other for the same tokens / own seconds."""

    def measure(sides: Sides) -> Estimate:
        found = _lockstep_speed(sides, phase)
        if found is not None:
            return found
        if phase is None:
            return paired(sides, "output_tokens_per_s")
        inverse = paired(sides, "step_mean_s", phase=phase)
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


def paired(sides: Sides, name: str, **labels: str) -> Estimate:
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


def step_cv(sides: Sides) -> Estimate:
    """Spread of decode step times among steps with equal batches, over the other model's."""
    return paired(sides, "step_cv_at_fixed_tokens", phase="decode")


def realised(sides: Sides) -> Estimate:
    """From the ladder at its largest load, else from lock-step lanes, else from the bills of rounds run alone."""
    of = sides.of
    assert of.facts is not None, "a side has facts"
    found = [
        result
        for result in ladders(_own_ladder(sides), num_moe_layers=len(of.facts.moe_layers))
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
    bills = [_bills(model) for model in (total, of, active)]
    if not all(bills):
        return Estimate(value=None, reason="one of the models was not measured")
    return realised_of_rounds(*bills)


def _own_ladder(sides: Sides) -> list[LanePass]:
    """A workload may name another MoE for its ladder."""
    mine = {"rung": "recorded", "model": sides.of.name}
    return [one for one in sides.summary.record.ladder if any(mine.items() <= lane.items() for lane in one.lanes)]


def _twin(sides: Sides, kind: str) -> ModelSummary | None:
    twins = ((model, model.facts.twin) for model in sides.summary.models if model.facts is not None)
    return next((m for m, twin in twins if twin is not None and twin.of == sides.of.name and getattr(twin, kind)), None)


def _bills(model: ModelSummary) -> list[float]:
    """Dollars per launch, or per round of a single launch."""
    bills = [[split.run_cost_usd for split in splits] for splits in model.launch_splits]
    return [sum(launch) / len(launch) for launch in bills] if len(bills) > 1 else bills[0] if bills else []


def dispatch_share(sides: Sides) -> Estimate:
    """(dispatch + coverage + imbalance) / (total-matched - active-matched): what the realised share leaves."""
    share = realised(sides)
    if share.value is None or share.low is None or share.high is None:
        value = None if share.value is None else 1 - share.value
        return Estimate(value=value, n=share.n, reason=share.reason)
    return Estimate(value=1 - share.value, low=1 - share.high, high=1 - share.low, n=share.n)
