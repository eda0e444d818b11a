"""The verdict on a workload's claim: agrees, disagrees, or cannot tell, here and on this machine.

A claim holds in a range (at least, at most, or both). It agrees when the whole 95 % interval of what was measured lies
in the range, disagrees when it lies wholly outside, and otherwise cannot be told. An error is never a verdict.

Claims about work, memory and routing: counted from what ran.

What a claim can be measured by: from a run to one number with its interval.

Each takes (of, against) and answers with an Estimate; counted facts have low = high = value. Timed ratios come from
lock-step where the run has it, else from paired launches or rounds.

The models that a claim is about.

Claims about time and money, and about what sparsity realised: lock-step where the run has it, else pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from moeprof.analysis.compare.lanes import LaneTimes, lane_times, offset_of, pair_ratio
from moeprof.analysis.compare.pairs import paired_logs, ratio_of_pairs, repeats
from moeprof.analysis.compare.same_work import Work, why_incomparable
from moeprof.analysis.metrics.lookup import key_of, pick
from moeprof.analysis.metrics.resources.work import StepWork, step_work
from moeprof.analysis.metrics.routing.shift import first_with_routing
from moeprof.analysis.metrics.routing.units import cell, exchangeable_units
from moeprof.analysis.metrics.summary import ModelSummary, Summary
from moeprof.analysis.sparsity.ladder import ladder_cache_note, ladders
from moeprof.analysis.sparsity.realised import realised_of_lanes, realised_of_rounds
from moeprof.analysis.sparsity.roles import load_text, own_load_text, roles
from moeprof.analysis.stats import intervals
from moeprof.analysis.stats.arrays import IntArray
from moeprof.analysis.stats.estimate import Estimate
from moeprof.core import units
from moeprof.core.errors import RecordError, WorkloadError
from moeprof.core.record.lanes import LanePass
from moeprof.core.workload.studies import Claim


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


def exactly(value: float) -> Estimate:
    """A counted fact."""
    return Estimate(value=value, low=value, high=value)


def compute_saved(sides: Sides) -> Estimate:
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
    work = step_work(model.priced[0], model.facts, model.launch.engine)
    if not isinstance(work, StepWork):
        return work
    tokens = float(work.tokens_S.sum())
    return float(work.flops_S.sum()) / tokens if tokens else "no tokens were processed"


def weights(model: ModelSummary) -> float:
    """Bytes of all weights, as stored."""
    assert model.facts is not None, "a side has facts"
    return float(sum(model.facts.bytes_by_group.values()))


def weights_ratio(sides: Sides) -> Estimate:
    """Bytes of the weights over those of the other model."""
    assert sides.against is not None, "a pair"
    return exactly(weights(sides.of) / weights(sides.against))


def memory_over_active(sides: Sides) -> Estimate:
    """Bytes that must be resident / bytes of the parameters that one token uses."""
    facts = sides.of.facts
    assert facts is not None, "a side has facts"
    idle = sum(layer.expert_bytes * (layer.num_experts - layer.top_k) for layer in facts.moe_layers)
    return exactly(weights(sides.of) / (weights(sides.of) - idle))


def expert_share(*, over_busiest: bool) -> Callable[[Sides], Estimate]:
    """Share of a layer's picks, in the layer where one expert stands out most; jackknife over groups of requests."""

    def figure(counts_LE: IntArray) -> float:
        most = counts_LE.max(axis=1)
        if over_busiest:
            return float((counts_LE.min(axis=1) / np.maximum(most, 1)).min())
        return float((most / np.maximum(counts_LE.sum(axis=1), 1)).max())

    def measure(sides: Sides) -> Estimate:
        found = first_with_routing(sides.of.rounds)
        if found is None:
            return Estimate(value=None, reason=f"{sides.of.name}: routing was not recorded")
        counts, units = cell(found[1]), exchangeable_units(*found)
        if not counts.counts_LE.sum():
            return Estimate(value=None, reason=f"{sides.of.name}: no token was routed")
        value = figure(counts.counts_LE)
        left = intervals.leave_group_out(units.counts_GLE, figure)
        interval = intervals.jackknife_interval(value, left, bounded=True)
        if interval is None or units.why_not is not None:
            return Estimate(value=value, n=units.num, reason=f"no interval: {units.why_not or 'one unit only'}")
        return Estimate(value=value, low=interval[0], high=interval[1], n=units.num)

    return measure


NATIVE_RUNGS = ("dense", "native")


def speed(phase: str | None) -> Callable[[Sides], Estimate]:
    """Seconds of the other for the same tokens / own seconds."""

    def measure(sides: Sides) -> Estimate:
        found = _lockstep_speed(sides, phase)
        if found is not None:
            return found
        if phase is None:
            return paired(sides, "output_tokens_per_s")
        return paired(sides, "step_mean_s", phase=phase).inverse()

    return measure


def _lockstep_speed(sides: Sides, phase: str | None) -> Estimate | None:
    """At the largest load that was measured in lock-step; None where the run has no such lanes."""
    assert sides.against is not None, "a pair"
    for times in _by_load(sides.summary):
        lanes = [_lane(times[0], model.name) for model in (sides.of, sides.against)]
        if lanes[0] is not None and lanes[1] is not None:
            return pair_ratio(times, lanes[1], lanes[0], phase, offset_of(sides.summary.record))
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
        (lane.name for lane in times.info if lane.model == model and lane.rung in NATIVE_RUNGS),
        None,
    )


def paired(sides: Sides, name: str, **labels: str) -> Estimate:
    """One over the other, by pairs of launches or rounds of the priced passes."""
    assert sides.against is not None, "a pair"
    values = [pick(model, name, own_traffic=False, **labels) for model in (sides.of, sides.against)]
    if values[0] is None or values[1] is None:
        return Estimate(value=None, reason=f"{name} was not measured in both")
    key = key_of(values[0])
    reason = why_incomparable(key, Work.of(sides.of), Work.of(sides.against))
    if reason is not None:
        return Estimate(value=None, reason=reason)
    slo = sides.summary.record.slo
    first, second = (repeats(model, sides.summary.pricing, slo) for model in (sides.of, sides.against))
    return ratio_of_pairs(paired_logs(first.of(key), second.of(key_of(values[1]))), first.unit)


def step_cv(sides: Sides) -> Estimate:
    """Spread of decode step times among steps with equal batches, over the other model's."""
    return paired(sides, "step_cv_at_fixed_tokens", phase="decode")


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed(Estimate):
    """A figure with the load and the phase that it speaks for, and what else a reader should know of it."""

    where: str


def _placed(found: Estimate, where: str, note: str | None) -> Placed:
    text = f"all steps, {where}" + (f"; {note}" if note else "")
    return Placed(value=found.value, low=found.low, high=found.high, n=found.n, reason=found.reason, where=text)


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
        load = load_text(found[-1].concurrency)
        return _placed(found[-1].realised, f"stepped in turn, {load}", ladder_cache_note(sides.summary.record))
    active, total = _twin(sides, "is_active_matched"), _twin(sides, "is_total_matched")
    if active is None or total is None:
        return Estimate(value=None, reason=f"{of.name} needs an active-matched and a total-matched twin in the run")
    names = (total.name, of.name, active.name)
    note = roles(sides.summary, of.name).cache_note
    for times in _by_load(sides.summary):
        lanes = [lane for lane in (_lane(times[0], name) for name in names) if lane is not None]
        if len(lanes) == len(names):
            total_lane, own_lane, active_lane = lanes
            draws, offset = [one.draws(None) for one in times], offset_of(sides.summary.record)
            share = realised_of_lanes(draws, total_lane, own_lane, active_lane, offset)
            return _placed(share, f"stepped in turn, {load_text(times[0].concurrency)}", note)
    if any(model.priced[0].traffic == "open" for model in (of, active, total) if model.priced):
        return Estimate(value=None, reason="open-loop dollars compare utilisation, not models")
    bills = [_bills(model) for model in (total, of, active)]
    if not all(bills):
        return Estimate(value=None, reason="one of the models was not measured")
    return _placed(realised_of_rounds(*bills), f"each model alone, {own_load_text(sides.summary, of)}", note)


def _own_ladder(sides: Sides) -> list[LanePass]:
    """A workload may name another MoE for its ladder."""
    return [
        one
        for one in sides.summary.record.ladder
        if any(lane.rung == "recorded" and lane.model == sides.of.name for lane in one.info.lanes)
    ]


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
    value, low, high = (None if x is None else 1 - x for x in (share.value, share.high, share.low))
    return replace(share, value=value, low=low, high=high)


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


def _pair(text: str, measure: Callable[[Sides], Estimate]) -> Measure:
    return Measure(text=text, unit="ratio", is_pair=True, measure=measure)


def _alone(text: str, measure: Callable[[Sides], Estimate], unit: str = "ratio") -> Measure:
    return Measure(text=text, unit=unit, is_pair=False, measure=measure)


MEASURED: dict[str, Measure] = {
    "speed_ratio": _pair("speed on the same requests", speed(None)),
    "prefill_speed_ratio": _pair("speed of prefill steps on the same requests", speed("prefill")),
    "decode_speed_ratio": _pair("speed of decode steps on the same requests", speed("decode")),
    "cost_ratio": _pair("dollars for the same requests", lambda sides: paired(sides, "usd_per_1m_total_tokens")),
    "compute_saved_ratio": _pair("share of the FLOPs saved on the same requests", compute_saved),
    "weights_bytes": _alone("memory of the weights", lambda sides: exactly(weights(sides.of)), "B"),
    "weights_ratio": _pair("memory of the weights", weights_ratio),
    "memory_over_active_ratio": _alone("memory of the weights over that of its active parameters", memory_over_active),
    "expert_share_max": _alone(
        "largest share of a layer's picks that one expert takes", expert_share(over_busiest=False)
    ),
    "expert_share_min_over_max": _alone(
        "picks of a layer's least busy expert over those of its busiest", expert_share(over_busiest=True)
    ),
    "step_cv_ratio": _pair("spread of decode step times at a fixed batch", step_cv),
    "dispatch_share_ratio": _alone(
        "share of the saving between the two dense twins that dispatch, coverage and imbalance take", dispatch_share
    ),
    "sparsity_realised_ratio": _alone("share of the saving between the two dense twins that is realised", realised),
}
Verdict = Literal["agrees", "disagrees", "cannot tell"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimVerdict:
    """What became of a claim: the figure, whether it lies in the range that was claimed, and all of it in one line."""

    measured: Estimate
    verdict: Verdict
    sentence: str


def claim_notes(summary: Summary) -> tuple[str, ...]:
    """The verdict on the claim of the run's workload as a note for a report; nothing without a claim.

    Raises:
        RecordError: the record's claim is damaged.
    """
    stored = summary.record.workload.claim
    if stored is None:
        return ()
    try:
        claim = Claim(**stored)
    except (TypeError, WorkloadError) as error:
        raise RecordError(f"{summary.record.path / 'experiment.json'}: damaged claim ({error})") from error
    return (judge(claim, summary).sentence,)


def judge(claim: Claim, summary: Summary) -> ClaimVerdict:
    """Measure what the claim is about, and say whether it holds."""
    measure = MEASURED[claim.measure]
    of, against = _models(claim, summary)
    if of is None:
        measured = Estimate(value=None, reason=f"{claim.of or 'an MoE'} was not measured")
    elif measure.is_pair and against is None:
        measured = Estimate(value=None, reason=f"{claim.against or 'a dense model'} was not measured")
    else:
        measured = measure.measure(Sides(summary=summary, of=of, against=against))
    verdict = _verdict(claim, measured)
    names = [_named(model) for model in (of, against if measure.is_pair else None) if model is not None]
    source = f" ({claim.source})" if claim.source else ""
    why = measured.reason or "the interval reaches across that"
    where = f" ({measured.where})" if isinstance(measured, Placed) and measured.value is not None else ""
    answer = f"cannot tell: {why}" if verdict == "cannot tell" else verdict
    sentence = (
        f'Claim: "{claim.text}"{source}. Measured: {measure.text}, {" against ".join(names) or "no model"}: '
        f"{_figure(measured, measure.unit)}{where}; the claim needs {_expected(claim, measure.unit)}. "
        f"Verdict: {answer} (on {_where(summary)})."
    )
    return ClaimVerdict(measured=measured, verdict=verdict, sentence=sentence)


def _models(claim: Claim, summary: Summary) -> tuple[ModelSummary | None, ModelSummary | None]:
    """The models by name; without names the first MoE and the first dense model."""
    measured = [model for model in summary.models if model.facts is not None]

    def find(name: str | None, *, is_moe: bool) -> ModelSummary | None:
        if name is not None:
            return next((model for model in measured if model.name == name), None)
        return next((m for m in measured if m.facts is not None and m.facts.is_moe == is_moe), None)

    return find(claim.of, is_moe=True), find(claim.against, is_moe=False)


def _verdict(claim: Claim, measured: Estimate) -> Verdict:
    if measured.value is None or measured.low is None or measured.high is None:
        return "cannot tell"
    least = -math.inf if claim.at_least is None else claim.at_least
    most = math.inf if claim.at_most is None else claim.at_most
    if least <= measured.low and measured.high <= most:
        return "agrees"
    return "disagrees" if measured.high < least or measured.low > most else "cannot tell"


def _expected(claim: Claim, unit: str) -> str:
    parts = [("at least", claim.at_least), ("at most", claim.at_most)]
    return " and ".join(f"{words} {units.display(value, unit)}" for words, value in parts if value is not None)


def _where(summary: Summary) -> str:
    environment = summary.record.environment
    threads, name = environment.threads, environment.device_name or "an unknown machine"
    return f"{name}, {threads} thread{'s' if threads != 1 else ''}" if threads else name


def _named(model: ModelSummary) -> str:
    """With its size: the claim may be about a larger model of the same shape."""
    assert model.facts is not None, "measured models have facts"
    return f"{model.name} ({units.count(model.facts.total_params)} parameters)"


def _figure(measured: Estimate, unit: str) -> str:
    if measured.value is None:
        return units.NOT_AVAILABLE
    text = units.display(measured.value, unit)
    if measured.low is None or measured.high is None or measured.low == measured.high:
        return text
    return f"{text} [{units.display(measured.low, unit)}, {units.display(measured.high, unit)}]"
