"""Timed gates against a stored baseline: Welch's test on logarithms of launches (docs/metrics.md#verdicts)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moeprof.analysis.compare.runs import launch_samples
from moeprof.analysis.compare.stored import FEWEST_LAUNCHES, STORED_FLOOR_RATIO
from moeprof.analysis.metrics.lookup import by_launch
from moeprof.analysis.regress.gates import ChosenGate, ModelPair
from moeprof.analysis.regress.noise import Shift, taken_back
from moeprof.analysis.regress.pairs import judged_by_pairs
from moeprof.analysis.regress.result import GateResult
from moeprof.analysis.regress.timed import judge_family
from moeprof.analysis.regress.verdict import result_of
from moeprof.analysis.stats import intervals, power
from moeprof.analysis.stats.ratio import Ratio
from moeprof.analysis.stats.verdicts import TimedSample
from moeprof.analysis.stats.welch import Welch, welch

FLOOR_RATIO = STORED_FLOOR_RATIO
WANTED_LAUNCHES = FEWEST_LAUNCHES + 1
Launches = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gate:
    """A timed gate with its launches; either a sample to test, or why there is none."""

    chosen: ChosenGate
    launches: Launches
    test: Welch | None
    reason: str | None
    limit_ratio: float

    @property
    def n(self) -> str:
        reference, other = map(len, self.launches)
        return "1 launch a side" if reference == other == 1 else f"{reference} against {other} launches"


def stored_gates(
    gates: Sequence[ChosenGate], pairs: Sequence[ModelPair], shifts: Mapping[str, Shift | None]
) -> list[GateResult]:
    """Judge the timed gates in use; they are one family.

    Args:
        gates: all of kind ``timed``.
        pairs: the models that they are of.
        shifts: model -> how the reference kernel moved.
    """
    models = {pair[1].name: pair for pair in pairs}
    prepared = [_prepared(chosen, models[chosen.model]) for chosen in gates]
    samples = {
        i: TimedSample(test=gate.test, limit_ratio=gate.limit_ratio, better=gate.chosen.better, n=gate.n)
        for i, gate in enumerate(prepared)
        if gate.test is not None and gate.reason is None
    }
    found, results = judge_family(samples), []
    for i, gate in enumerate(prepared):
        if i not in samples:
            results.append(_undecided(gate))
            continue
        ratio = taken_back(
            found[i],
            shifts.get(gate.chosen.model),
            better=gate.chosen.better,
            section=gate.chosen.card.section,
            limit_ratio=gate.limit_ratio,
        )
        decide = _decide(gate, samples[i], len(samples)) if found[i].verdict == "cannot tell" else None
        results.append(result_of(gate.chosen, ratio, n=gate.n, decide=decide, launches=gate.launches))
    return results


def _prepared(chosen: ChosenGate, pair: ModelPair) -> _Gate:
    sides = chosen.reference, chosen.other
    launches: Launches = tuple(  # type: ignore[assignment]  # two models, two sides
        () if value is None else launch_samples(by_launch(model.metrics), value)
        for model, value in zip(pair, sides, strict=True)
    )
    invalid = next((v for v in sides if v is not None and not v.valid), None)
    test = welch(*launches) if all(launches) else None
    reason = _other_work(chosen, pair) if invalid is None else (invalid.reasons or ("a check failed",))[-1]
    if reason is None and not all(launches):
        which, value = ("the reference", sides[0]) if not launches[0] else ("the new run", sides[1])
        why = value.reasons[0] if value is not None and value.reasons else "it has no such figure"
        reason = f"{which}: {why}"
    elif reason is None and min(*launches[0], *launches[1]) <= 0:
        reason = "no ratio: a value is not above 0"
    elif reason is None and min(map(len, launches)) < FEWEST_LAUNCHES:
        reason = _too_few(launches)
    return _Gate(chosen=chosen, launches=launches, test=test, reason=reason, limit_ratio=_limit(chosen, launches))


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
    if chosen.gate.kind == "ratio" or not launches[0]:
        return chosen.gate.amount
    mean = abs(float(np.mean(launches[0])))
    return chosen.gate.amount / mean if mean else 0.0


def _too_few(launches: Launches) -> str:
    reference, other = map(len, launches)
    held = f"{other} {_word(other)}" if reference == other else f"{reference} against {other} launches"
    return f"{held}; at least {FEWEST_LAUNCHES} a side are needed: run with --launches {WANTED_LAUNCHES}"


def _word(num: int) -> str:
    return "launch" if num == 1 else "launches"


def _undecided(gate: _Gate) -> GateResult:
    """No test: the ratio stands without a verdict."""
    value = low = high = None
    known = all(gate.launches) and min(*gate.launches[0], *gate.launches[1]) > 0
    if gate.test is not None:
        value, (low, high) = float(np.exp(gate.test.mean)), gate.test.interval(intervals.CONFIDENCE)
    elif known:
        value = gate.launches[1][0] / gate.launches[0][0] if max(map(len, gate.launches)) == 1 else _mean_ratio(gate)
    ratio = Ratio(value=value, low=low, high=high, verdict="cannot tell", reason=gate.reason)
    few = known and min(map(len, gate.launches)) < FEWEST_LAUNCHES
    wanted = f"{FEWEST_LAUNCHES} launches a side ({_held(gate)}): moeprof run WORKLOAD --launches {WANTED_LAUNCHES}"
    return result_of(gate.chosen, ratio, n=gate.n, decide=wanted if few else None, launches=gate.launches)


def _mean_ratio(gate: _Gate) -> float:
    reference, other = (np.log(side).mean() for side in gate.launches)
    return float(np.exp(other - reference))


def _held(gate: _Gate) -> str:
    """``1 was measured``, ``6 against 3 were measured``."""
    reference, other = map(len, gate.launches)
    if reference != other:
        return f"{reference} against {other} were measured"
    return "1 was measured" if other == 1 else f"{other} were measured"


def _decide(gate: _Gate, sample: TimedSample, family: int) -> str:
    """What would decide: launches of the new run; where none would do, of the baseline too; of many, another way."""
    logs = [np.log(side).tolist() for side in gate.launches]
    new = power.needed_launches(logs[0], logs[1], gate.limit_ratio, family)
    if new is not None and new > len(logs[1]):
        return _needed(gate, new, "of the new run")
    if new is not None:  # narrow enough, and yet on neither side
        num = power.needed_as_is(sample, min(map(len, logs)), family)
        if num is None:
            return "no affordable number of launches (the figure lies near the threshold itself)"
        return _needed(gate, num, "a side, as the figure lies near the threshold")
    both = power.needed_launches(logs[0], logs[1], gate.limit_ratio, family, fixed=False)
    return _needed(gate, both, "a side, the baseline's too")


def _needed(gate: _Gate, num: int | None, of: str) -> str:
    """So many launches; where that is many, launch pairs if they measure the figure, else a quieter machine."""
    if num is not None and num <= power.MANY:
        return f"about {num} launches {of} ({_held(gate)})"
    way = "launch pairs, with regress --ab" if judged_by_pairs(gate.chosen) else "a quieter machine"
    count = f"more than {power.MOST:,}" if num is None else f"about {num}"
    return f"{way} (else {count} launches {of}; {_held(gate)})"
