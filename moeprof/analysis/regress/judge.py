"""The check as a whole: gates in use, what may be compared, each gate's verdict, the verdict of all.

Every figure of both runs beside the gates: what changed, though nobody watches it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from moeprof.analysis.compare.comparable import (
    Difference,
    check_allow,
    differences,
    facts_of,
    forbidden_by,
    price_difference,
    workload_difference,
)
from moeprof.analysis.compare.ratios import STORED_FLOOR_RATIO
from moeprof.analysis.compare.runs import MetricComparison, compare_metrics
from moeprof.analysis.metrics.lookup import Key
from moeprof.analysis.regress import noise, pairs, stored
from moeprof.analysis.regress.doubts import doubts_of
from moeprof.analysis.regress.exact import bound_gate, depends_on_batches, exact_gate, routing_gate
from moeprof.analysis.regress.gates import ModelPair, model_pairs, resolve
from moeprof.analysis.regress.refusal import (
    is_exact_routing,
    judged_all_the_same,
    refuse_incomparable,
    refuse_lost_models,
    tried,
    without_agreement_between_checkpoints,
    without_unknown_metrics,
)
from moeprof.analysis.regress.result import ChosenGate, GateResult, Mode, Noise, Regression
from moeprof.analysis.regress.routing.change import RoutingChange
from moeprof.analysis.regress.routing.health import routing_change
from moeprof.analysis.regress.routing.pairs import EXPERTS, experts_difference
from moeprof.analysis.regress.verdict import in_order, overall
from moeprof.analysis.stats.estimate import Ratio
from moeprof.core.baseline.baseline import Baseline, BaselineModel
from moeprof.core.errors import InputError
from moeprof.core.record.lanes import LanePass
from moeprof.core.workload.gates import Gate


def all_changes(
    pairs: Iterable[ModelPair],
    results: Sequence[GateResult],
    found: Sequence[Difference],
    allow: Collection[str],
    *,
    is_same: bool,
) -> tuple[MetricComparison, ...]:
    """Every figure of every model, in the order of the reference; a gate's figure has the gate's verdict."""
    changes: list[MetricComparison] = []
    for reference, other in pairs:
        gates = {r.key: r for r in results if r.model == other.name and r.kind != "bound"}
        timed = {key for key, result in gates.items() if result.kind == "timed"}
        compared = compare_metrics(
            other.name, (reference.metrics, other.metrics), found, allow, gates=timed, is_same=is_same
        )
        for one in compared:
            gate = gates.pop(one.key, None)
            judged = replace(one, ratio=gate.ratio if gate else _of_batches(one), is_gate=gate is not None)
            changes.append(_bare(judged) if judged.ratio.verdict == "incomparable" else judged)
        # what is left are gates on no value of the runs: ratios of launch pairs, figures of the comparison of routing
        changes += [
            MetricComparison(
                model=one.model, key=one.key, reference=one.reference, other=one.other, ratio=one.ratio, is_gate=True
            )
            for one in gates.values()
        ]
    return tuple(changes)


def _bare(one: MetricComparison) -> MetricComparison:
    """What may not be set side by side does not stand side by side."""
    return replace(one, reference=None, other=None, ratio=replace(one.ratio, value=None, low=None, high=None))


def is_same_run(reference: Baseline, other: Baseline) -> bool:
    """One and the same run, saved or not: the same name, beginning and figures."""
    if (reference.run, reference.created_at) != (other.run, other.created_at):
        return False
    values = [_numbers(side) for side in (reference, other)]
    return values[0] == values[1]


def _numbers(side: Baseline) -> dict[tuple[str, Key], float | int | None]:
    return {
        (str(place), (value.name, tuple(sorted(value.labels.items())))): value.value
        for place, model in enumerate(side.models)
        for value in model.metrics
    }


def num_launches(model: BaselineModel) -> int:
    """Launches of a model: those that its values name, or one."""
    return max(len({value.labels["launch"] for value in model.metrics if "launch" in value.labels}), 1)


def _of_batches(one: MetricComparison) -> Ratio:
    """Two samples of what depends on which requests met: without an interval, a difference is not shown."""
    if one.ratio.low is None and one.ratio.verdict in ("better", "worse") and depends_on_batches(one.key):
        return replace(one.ratio, verdict="cannot tell", reason="depends on which requests met in a step")
    return one.ratio


UNTIL_PRECISE = (
    "Launch pairs were added until the intervals were narrow enough, and one more. That favours pairs that look narrow "
    "by luck, so no difference is shown at an error of 0.5 % instead of 1 %."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """Both sides, and what is known before anything is judged."""

    reference: Baseline
    other: Baseline
    models: tuple[ModelPair, ...]
    gates: tuple[ChosenGate, ...]
    found: tuple[Difference, ...]
    alike: frozenset[str]
    allow: frozenset[str]
    routing: Mapping[str, RoutingChange]
    notes: tuple[str, ...] = ()

    @property
    def comparable_routing(self) -> tuple[RoutingChange, ...]:
        """Of models whose routing no fact forbids to compare."""
        return tuple(
            change
            for model, change in self.routing.items()
            if not forbidden_by(self.found, {"routing"}, model=model, allow=self.allow)
        )


def judge_stored(
    reference: Baseline,
    other: Baseline,
    gates: Sequence[Gate | str] | None = None,
    *,
    allow: Collection[str] = (),
    allow_undecided: bool = False,
    routing: Sequence[RoutingChange] | None = None,
) -> Regression:
    """Judge a run against a baseline; without gates by the defaults, without ``routing`` by what is found here.

    Raises:
        InputError: a gate that means nothing here, a fact that is none, no model in common, facts that forbid a gate
            in use (one line each).
    """
    case = _case(reference, other, gates, allow, routing, STORED_FLOOR_RATIO)
    free, stopped = judged_all_the_same(case.gates, case.found, case.allow)
    case = replace(case, gates=free)
    shifts = {
        pair[1].name: noise.stored_shift(noise.kernel_seconds(pair[0]), noise.kernel_seconds(pair[1]))
        for pair in case.models
    }
    timed = stored.stored_gates([gate for gate in case.gates if gate.kind == "timed"], case.models, shifts)
    return _regression(case, "stored", [*timed, *stopped], noise.stored_noise(case.models), allow_undecided)


def judge_pairs(
    reference: Baseline,
    other: Baseline,
    passes: Mapping[str, Sequence[LanePass]],
    mode: Literal["pairs", "processes"],
    gates: Sequence[Gate | str] | None = None,
    *,
    allow: Collection[str] = (),
    allow_undecided: bool = False,
    until_precise: bool = False,
    routing: Sequence[RoutingChange] | None = None,
) -> Regression:
    """Judge what ``regress --ab`` measured: two lone runs, and launch pairs for step times.

    Args:
        reference: the lone run of the base, frozen.
        other: the lone run of the new side, frozen.
        passes: model (its name in the new run) -> launch pairs.
        mode: ``pairs`` (one process) or ``processes`` (two).
        gates: as written; None or empty: the defaults, of which those that launch pairs cannot judge do not apply.
        allow: facts that may differ; model, revision, dtype, backend and engine settings always may.
        allow_undecided: *cannot tell* is no failure.
        until_precise: pairs were added until they looked precise enough.
        routing: how routing changed, per model; None: found here.

    Raises:
        InputError: as in :func:`judge_stored`.
        RecordError: a damaged table.
    """
    case = _case(reference, other, gates, allow, routing, pairs.FLOOR_RATIOS[mode], is_one_workload=True)
    case = replace(case, gates=_without_lone_times(case.gates), found=tried(case.found))
    refuse_incomparable(case.gates, case.found, case.allow)
    times = {model: pairs.turns_of(own) for model, own in passes.items()}
    by_pairs = pairs.measured_gates(case.gates, times)
    shifts = {model: noise.pairs_shift(own) if mode == "processes" else None for model, own in passes.items()}
    timed = pairs.pairs_gates(by_pairs, times, shifts, until_precise=until_precise)
    lone = [gate for gate in case.gates if gate.kind == "timed" and pairs.judged_by_pairs(gate) is None]
    timed += [_lone_time(result) for result in stored.stored_gates(lone, case.models, {})]
    found = _regression(case, mode, timed, noise.pairs_noise(passes, mode), allow_undecided)
    return replace(found, notes=(*found.notes, UNTIL_PRECISE)) if until_precise and timed else found


def pairs_are_enough(
    reference: Baseline,
    other: Baseline,
    passes: Mapping[str, Sequence[LanePass]],
    mode: Literal["pairs", "processes"],
    gates: Sequence[Gate | str] | None = None,
) -> bool:
    """Whether every step-time gate is measured precisely enough, whatever it shows: see power.enough.

    Raises:
        InputError: as there.
    """
    steps = [gate for gate in gates or ("default",) if _is_of_steps(gate)]
    if not steps:
        return True
    case = _case(reference, other, steps, ("metrics",), (), pairs.FLOOR_RATIOS[mode], is_one_workload=True)
    times = {model: pairs.turns_of(own) for model, own in passes.items()}
    return pairs.are_enough(pairs.measured_gates(case.gates, times), times)


def _is_of_steps(gate: Gate | str) -> bool:
    """Whether launch pairs may measure it; the comparison of routing is left out where only these are looked at."""
    return gate in ("default", "timed") if isinstance(gate, str) else gate.metric == pairs.METRIC


def _case(
    reference: Baseline,
    other: Baseline,
    gates: Sequence[Gate | str] | None,
    allow: Collection[str],
    routing: Sequence[RoutingChange] | None,
    floor_ratio: float,
    *,
    is_one_workload: bool = False,
) -> _Case:
    allow = check_allow(allow)
    (reference, lost), (other, lost_too) = (without_unknown_metrics(side, allow) for side in (reference, other))
    models = model_pairs(reference, other)
    if not models:
        names = [", ".join(model.name for model in side.models) for side in (reference, other)]
        names_differ = reference.workload != other.workload
        whose = f"another workload: {reference.workload} against {other.workload}; " if names_differ else ""
        raise InputError(f"{whose}no model is in both {reference.name} ({names[0]}) and {other.name} ({names[1]})")
    if any(one.name != model.name for one, model in models):  # the only model of each side, renamed
        models = ((replace(models[0][0], name=models[0][1].name), models[0][1]),)
        reference = replace(reference, models=(models[0][0],))
    found = list(differences(facts_of(reference), facts_of(other)))
    found += [difference for pair in models if (difference := experts_difference(*pair)) is not None]
    workload = None if is_one_workload else workload_difference(reference, other, found)
    found = [*([workload] if workload else []), *found]
    refuse_lost_models(reference, other, found, allow)
    price = price_difference(reference, other)
    whole = reference.status == other.status == "done"  # a part of a run routed a part of its tokens
    alike = {
        pair[1].name: whole and not any(map(_is_cut, pair)) and is_exact_routing(found, pair[1].name) for pair in models
    }
    if routing is None:
        changes = (routing_change(*pair, exact=alike[pair[1].name]) for pair in models)
        routing = [change for change in changes if change is not None]
    return _Case(
        reference=reference,
        other=other,
        models=models,
        gates=_without_other_experts(
            without_agreement_between_checkpoints(
                resolve(gates, models, floor_ratio=floor_ratio, routing=routing), found
            ),
            found if is_one_workload else (),
        ),
        found=(*found, *([price] if price else [])),
        alike=frozenset(name for name, same in alike.items() if same),
        allow=allow,
        routing={change.model: change for change in routing},
        notes=tuple(note for note in (lost, lost_too) if note),
    )


def _without_other_experts(gates: Iterable[ChosenGate], found: Sequence[Difference]) -> tuple[ChosenGate, ...]:
    """The gates without default ones on routing where a layer has another number of experts: a note says so instead."""
    other = {one.model for one in found if one.name == EXPERTS}
    return tuple(one for one in gates if not (one.is_default and one.model in other and "routing" in one.card.classes))


def _is_cut(model: BaselineModel) -> bool:
    """Requests were still under way when the time was up."""
    return any(value.name == "num_requests_unfinished" and value.value for value in model.metrics)


def _without_lone_times(gates: Sequence[ChosenGate]) -> tuple[ChosenGate, ...]:
    """Lone runs have one launch, which says nothing of time: default timed gates but step times do not apply."""
    return tuple(
        gate
        for gate in gates
        if not (gate.is_default and gate.kind == "timed") or pairs.judged_by_pairs(gate) is not None
    )


def _lone_time(result: GateResult) -> GateResult:
    """A named timed gate that launch pairs do not measure."""
    decide = "a baseline and a run with --launches 6 (launch pairs measure step_mean_s{phase=...} only)"
    reason = "launch pairs measure step times only"
    return replace(result, decide=decide, ratio=replace(result.ratio, verdict="cannot tell", reason=reason))


def _regression(
    case: _Case, mode: Mode, timed: Sequence[GateResult], heard: Noise, allow_undecided: bool
) -> Regression:
    found = [*timed, *(_untimed(case, gate) for gate in case.gates if gate.kind != "timed")]
    results = in_order(_with_price(result, case.found) for result in found)
    is_same = is_same_run(case.reference, case.other)
    noise_of_times = heard if any(result.kind == "timed" for result in results) else None
    return Regression(
        verdict=overall(results),
        mode=mode,
        reference=case.reference.name,
        other=case.other.name,
        reference_at=case.reference.created_at,
        other_at=case.other.created_at,
        workload=case.other.workload,
        device=case.other.device,
        gates=results,
        changes=all_changes(case.models, results, case.found, case.allow, is_same=is_same),
        routing=case.comparable_routing,
        differences=case.found,
        allow=case.allow,
        noise=heard,
        doubts=doubts_of(
            case.reference,
            case.other,
            case.models,
            case.comparable_routing,
            noise_of_times,
            mode,
            timed=timed,
            is_same=is_same,
        ),
        allow_undecided=allow_undecided,
        notes=_notes(case),
        launches=_launches(case, mode, timed),
    )


def _with_price(result: GateResult, found: Sequence[Difference]) -> GateResult:
    """Dollars at two prices: the verdict stands, and says that the price is part of it."""
    price = next((one for one in found if one.name == "price"), None)
    if price is None or result.card.section != "cost" or result.kind == "bound":
        return result
    said = f"at {price.first} against {price.second}, so the price is part of it"
    return replace(result, ratio=replace(result.ratio, reason=f"{result.ratio.reason}; {said}"))


def _untimed(case: _Case, chosen: ChosenGate) -> GateResult:
    """A gate that needs no launches."""
    if chosen.kind == "bound":
        ratio = bound_gate(chosen)
        decide = "more rounds or launches" if ratio.verdict == "cannot tell" and chosen.is_sample else None
        return chosen.judged(ratio, n="the new run", decide=decide)
    if chosen.kind != "routing":
        num = chosen.other.n if chosen.other is not None else None
        n = "exact" if chosen.kind == "exact" else f"{num} requests" if num else "the same text"
        return chosen.judged(exact_gate(chosen), n=n)
    change = case.routing.get(chosen.model) if chosen.figure is not None else None
    same = change.exact if change is not None else chosen.model in case.alike
    exact = same and not depends_on_batches(chosen.key)
    is_noise = change is not None and change.verdict in ("unchanged", "noise")
    ratio = routing_gate(chosen, exact=exact, is_noise=is_noise)
    n = "exact" if exact else chosen.figure.n if chosen.figure is not None else "one sample a side"
    decide = "more forced tokens" if ratio.verdict == "cannot tell" and ratio.value is not None else None
    return chosen.judged(ratio, n=n, decide=decide)


def _notes(case: _Case) -> tuple[str, ...]:
    held = {pair[1].name for pair in case.models}
    notes = [*case.notes]
    notes += [
        f"{one.model} has {one.first} experts per layer in the reference and {one.second} in the new run: they are not "
        "the same experts, and no figure of routing is compared."
        for one in case.found
        if one.name == EXPERTS
    ]
    for side, which in ((case.reference, "reference"), (case.other, "new run")):
        alone = [model.name for model in side.models if model.name not in held]
        if alone:
            notes.append(f"Only the {which} has {', '.join(alone)}; what one side has is not judged.")
    without = [other.name for one, other in case.models if one.picks is None and other.picks is not None]
    if without:
        whose = ", ".join(without)
        notes.append(f"The reference has no picks of forced tokens ({whose}): routing agreement is not judged.")
    return tuple(notes)


def _launches(case: _Case, mode: Mode, timed: Sequence[GateResult]) -> dict[str, int]:
    if mode != "stored":
        return {"pairs": max((len(result.other_launches) for result in timed), default=0)}
    sides = {"reference": [pair[0] for pair in case.models], "other": [pair[1] for pair in case.models]}
    return {side: max(map(num_launches, models)) for side, models in sides.items()}
