"""Timed gates against a stored baseline: Welch's test on logarithms of launches (docs/metrics.md#verdicts)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moeprof.analysis.compare.ratios import FEWEST_LAUNCHES, as_requests_tell
from moeprof.analysis.compare.runs import launch_samples
from moeprof.analysis.compare.split_prices import within_split
from moeprof.analysis.metrics.cost.bounds import bounds_by_figure
from moeprof.analysis.metrics.lookup import by_launch
from moeprof.analysis.regress.gates import ModelPair
from moeprof.analysis.regress.noise import taken_back
from moeprof.analysis.regress.pairs import judged_by_pairs
from moeprof.analysis.regress.result import ChosenGate, GateResult
from moeprof.analysis.regress.verdict import judge_gates
from moeprof.analysis.stats import power
from moeprof.analysis.stats.estimate import Estimate
from moeprof.analysis.stats.verdicts import Sample, sample_of

WANTED_LAUNCHES = FEWEST_LAUNCHES + 1
Launches = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gate:
    """A timed gate with its launches: a sample where the ratio is known, and why it cannot be judged, or None."""

    chosen: ChosenGate
    launches: Launches
    sample: Sample | None
    reason: str | None

    @property
    def n(self) -> str:
        reference, other = map(len, self.launches)
        return "1 launch a side" if reference == other == 1 else f"{reference} against {other} launches"


def stored_gates(
    gates: Sequence[ChosenGate], pairs: Sequence[ModelPair], shifts: Mapping[str, Estimate | None]
) -> list[GateResult]:
    """Judge the timed gates in use; they are one family."""
    models = {pair[1].name: pair for pair in pairs}
    prepared = [_prepared(chosen, models[chosen.model]) for chosen in gates]
    samples = {i: gate.sample for i, gate in enumerate(prepared) if gate.sample is not None and gate.reason is None}
    found, results = judge_gates(samples), []
    for i, gate in enumerate(prepared):
        if i not in samples:
            results.append(_undecided(gate))
            continue
        chosen, sample = gate.chosen, samples[i]
        sides = (bounds_by_figure(model.metrics).get(chosen.key) for model in models[chosen.model])
        split = within_split(found[i], *sides, floor_ratio=sample.floor_ratio)
        ratio = taken_back(
            split, shifts.get(chosen.model), better=chosen.better, section=chosen.card.section,
            limit_ratio=sample.floor_ratio,
        )  # fmt: skip
        if chosen.reference is not None and chosen.other is not None:
            ratio = as_requests_tell(ratio, chosen.reference, chosen.other)
        decide = _decide(gate, sample, len(samples)) if found[i].verdict == "cannot tell" else None
        results.append(chosen.judged(ratio, n=gate.n, decide=decide, launches=gate.launches))
    return results


def _prepared(chosen: ChosenGate, pair: ModelPair) -> _Gate:
    sides = chosen.reference, chosen.other
    launches: Launches = tuple(  # type: ignore[assignment]  # two models, two sides
        () if value is None else launch_samples(by_launch(model.metrics), value)
        for model, value in zip(pair, sides, strict=True)
    )
    invalid = next((v for v in sides if v is not None and not v.valid), None)
    sample = sample_of(*launches)
    reason = _other_work(chosen, pair) if invalid is None else (invalid.reasons or ("a check failed",))[-1]
    if reason is None and not all(launches):
        which, value = ("the reference", sides[0]) if not launches[0] else ("the new run", sides[1])
        why = value.reasons[0] if value is not None and value.reasons else "it has no such figure"
        reason = f"{which}: {why}"
    elif reason is None and sample is None:
        reason = "no ratio: a value is not above 0"
    elif reason is None and sample is not None and sample.num < FEWEST_LAUNCHES:
        reason = _too_few(launches)
    gate = _Gate(chosen=chosen, launches=launches, sample=sample, reason=reason)
    if sample is None:
        return gate
    return replace(gate, sample=replace(sample, floor_ratio=_limit(chosen, launches), better=chosen.better, n=gate.n))


def _other_work(chosen: ChosenGate, pair: ModelPair) -> str | None:
    """Why the two sides did not do the same work, or None: requests that failed or were refused cost no time.

    By share, as the sides may differ in rounds; of the passes that the figure is of.
    """
    sides = []
    for model in pair:
        traffic = dict(chosen.key[1]).get("traffic") or model.priced_traffic
        own = {v.name: v.value for v in model.metrics if v.labels == {"traffic": traffic, "window": "total"}}
        num, lost = own.get("num_requests"), [own.get(f"num_requests_{how}") for how in ("refused", "failed")]
        if not num:
            return None
        sides.append((sum(count or 0 for count in lost), num))
    (before, of_before), (now, of_now) = sides
    if math.isclose(before / of_before, now / of_now):
        return None
    return (
        f"not the same work: {now:g} of {of_now:g} requests failed or were refused, {before:g} of {of_before:g} in "
        "the reference"
    )


def _limit(chosen: ChosenGate, launches: Launches) -> float:
    """The gate's threshold as a share of the reference."""
    return chosen.gate.amount if chosen.gate.kind == "ratio" else chosen.gate.amount / float(np.mean(launches[0]))


def _too_few(launches: Launches) -> str:
    reference, other = map(len, launches)
    held = f"{other} {_word(other)}" if reference == other else f"{reference} against {other} launches"
    return f"{held}; at least {FEWEST_LAUNCHES} a side are needed: run with --launches {WANTED_LAUNCHES}"


def _word(num: int) -> str:
    return "launch" if num == 1 else "launches"


def _undecided(gate: _Gate) -> GateResult:
    """No verdict: the ratio stands alone."""
    estimate = Estimate(value=None) if gate.sample is None else gate.sample.estimate()
    few = gate.sample is not None and gate.sample.num < FEWEST_LAUNCHES
    wanted = f"{FEWEST_LAUNCHES} launches a side ({_held(gate)}): moeprof run WORKLOAD --launches {WANTED_LAUNCHES}"
    ratio = estimate.judged("cannot tell", gate.reason)
    return gate.chosen.judged(ratio, n=gate.n, decide=wanted if few else None, launches=gate.launches)


def _held(gate: _Gate) -> str:
    """``1 was measured``, ``6 against 3 were measured``."""
    reference, other = map(len, gate.launches)
    if reference != other:
        return f"{reference} against {other} were measured"
    return "1 was measured" if other == 1 else f"{other} were measured"


def _decide(gate: _Gate, sample: Sample, family: int) -> str:
    """What would decide: launches of the new run; where none would do, of the baseline too; of many, another way."""
    reference, other, floor = sample.against or (), sample.logs, sample.floor_ratio
    new = power.needed_launches(reference, other, floor, family)
    if new is not None and new > len(other):
        return _needed(gate, new, "of the new run")
    if new is not None:  # narrow enough, and yet on neither side
        num = power.needed_as_is(sample, sample.num, family)
        if num is None:
            return "no affordable number of launches (the figure lies near the threshold itself)"
        return _needed(gate, num, "a side, as the figure lies near the threshold")
    both = power.needed_launches(reference, other, floor, family, fixed=False)
    return _needed(gate, both, "a side, the baseline's too")


def _needed(gate: _Gate, num: int | None, of: str) -> str:
    """So many launches; where that is many, launch pairs if they measure the figure, else a quieter machine."""
    if num is not None and num <= power.MANY:
        return f"about {num} launches {of} ({_held(gate)})"
    way = "launch pairs, with regress --ab" if judged_by_pairs(gate.chosen) else "a quieter machine"
    count = f"more than {power.MOST:,}" if num is None else f"about {num}"
    return f"{way} (else {count} launches {of}; {_held(gate)})"
