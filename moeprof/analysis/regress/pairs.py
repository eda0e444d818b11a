"""Timed gates from launch pairs: both sides were stepped in turn, and the launch pair is the unit (METRICS section 9).

Per launch pair and phase: log of (summed step times of new / of base). The sum is not trimmed: a few very slow steps
are real cost. Turns in which the machine took the processor away are set aside on both sides, unless that hit one side
more often than chance allows: a change that waits (for a lock, a disk, a timer) looks the same, and then all count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moeprof.analysis import stats
from moeprof.analysis.compare.keys import Key
from moeprof.analysis.compare.lanes import LaneTimes, lane_times
from moeprof.analysis.compare.stored import Welch
from moeprof.analysis.compare.verdicts import LOCKSTEP_FLOOR_RATIO, MIN_LAUNCH_PAIRS
from moeprof.analysis.document_compare import Ratio
from moeprof.analysis.regress import power
from moeprof.analysis.regress.gates import ChosenGate
from moeprof.analysis.regress.noise import Shift, taken_back
from moeprof.analysis.regress.power import enough as enough
from moeprof.analysis.regress.power import half_width as half_width
from moeprof.analysis.regress.power import needed_pairs as needed_pairs
from moeprof.analysis.regress.queue_time import Queue, queue_of
from moeprof.analysis.regress.result import GateResult
from moeprof.analysis.regress.results import result_of
from moeprof.analysis.regress.timed import TimedSample, judge_family
from moeprof.core.record_lanes import LanePass
from moeprof.core.record_pairs import BASE, NEW

FLOOR_RATIOS = {"pairs": LOCKSTEP_FLOOR_RATIO, "processes": 0.05}
METRIC = "step_mean_s"
PHASES = {"prefill": ("prefill", "mixed"), "decode": ("decode",), "all": ("prefill", "mixed", "decode")}
LOPSIDED_P = 0.01
DOUBTFUL_P = 0.05
QUIETER = "a quieter machine, with --until-precise"


@dataclass(frozen=True, slots=True, kw_only=True)
class PhasePairs:
    """One phase of all launch pairs of one model.

    Attributes:
        logs: log(new / base) of summed step times, one per launch pair.
        base_step_s: mean step of the base side, for thresholds in seconds; None without steps.
        turns: steps of all pairs.
        taken: turns in which the machine took the processor away from (base, new).
        all_count: those turns are counted, as they hit one side more often than chance allows.
        queue: what was done about time in which other programs had the processor.
        whole_logs: the same with the turns that were set aside, where these hit one side in a way that chance gives
            less than one time in twenty; else empty.
    """

    logs: tuple[float, ...]
    base_step_s: float | None
    turns: int
    taken: tuple[int, int]
    all_count: bool
    queue: Queue
    whole_logs: tuple[float, ...] = ()

    @property
    def note(self) -> str:
        """What was set aside, or why nothing was; empty where the machine was quiet."""
        return "; ".join(part for part in (self.queue.note, self._taken_note) if part)

    @property
    def _taken_note(self) -> str:
        base, new = self.taken
        if self.all_count:
            return (
                f"wall time was far above processor time in {base} turns of base and {new} of new: that is no chance, "
                f"so all {self.turns:,} turns count"
            )
        said = "1 interruption" if base + new == 1 else f"{base + new} interruptions"
        return f"{said} in {self.turns:,} turns {_was(base + new)} set aside" if base + new else ""


def judged_by_pairs(chosen: ChosenGate) -> str | None:
    """The phase of a gate that launch pairs can judge; None for every other gate."""
    labels = {name: value for name, value in chosen.gate.labels if name != "model"}
    if chosen.kind != "timed" or chosen.gate.metric != METRIC or set(labels) - {"phase"}:
        return None
    phase = labels.get("phase", "all")
    return phase if phase in PHASES else None


def turns_of(passes: Sequence[LanePass]) -> list[LaneTimes]:
    """All turns of each measurement, interrupted ones marked.

    Raises:
        RecordError: a damaged table.
    """
    return [lane_times(one, keep_taken=True) for one in passes]


def phase_pairs(times: Sequence[LaneTimes], phase: str) -> PhasePairs:
    """One phase of every launch pair: log(new / base) of its summed step times; several loads of a launch are summed.

    Args:
        times: measurements of one model, lanes ``base`` and ``new``.
        phase: ``prefill`` (every step that carries prompt tokens), ``decode`` or ``all``.
    """
    own = [np.isin(one.phase_S, PHASES[phase]) for one in times]
    sides = [[one.lanes.index(lane) for lane in (BASE, NEW)] for one in times]
    waits = [one.queued_SL[rows][:, lanes] for one, rows, lanes in zip(times, own, sides, strict=True)]
    walls = [one.time_SL[rows][:, lanes] for one, rows, lanes in zip(times, own, sides, strict=True)]
    queue = queue_of(walls, waits)
    taken = [one.taken_SL[rows][:, lanes] for one, rows, lanes in zip(times, own, sides, strict=True)]
    only = [sum(int((side[:, i] & ~side[:, 1 - i]).sum()) for side in taken) for i in (0, 1)]
    chance = _chance_of_sides(only[0], only[1])
    all_count = chance < LOPSIDED_P
    sums, whole = dict[int, list[float]](), dict[int, list[float]]()
    num_steps, base_s = 0, 0.0
    for one, wall, wait, hit in zip(times, walls, waits, taken, strict=True):
        seconds = wall - wait if queue.is_off else wall
        kept = seconds if all_count else seconds[~hit.any(axis=1)]
        for found, own_s in ((sums, kept), (whole, seconds)):
            held = found.setdefault(one.launch, [0.0, 0.0])
            held[0], held[1] = held[0] + float(own_s[:, 0].sum()), held[1] + float(own_s[:, 1].sum())
        num_steps, base_s = num_steps + len(kept), base_s + float(kept[:, 0].sum())
    return PhasePairs(
        logs=_logs(sums),
        base_step_s=base_s / num_steps if num_steps else None,
        turns=sum(int(rows.sum()) for rows in own),
        taken=(sum(int(side[:, 0].sum()) for side in taken), sum(int(side[:, 1].sum()) for side in taken)),
        all_count=all_count,
        queue=queue,
        whole_logs=_logs(whole) if LOPSIDED_P <= chance < DOUBTFUL_P else (),
    )


def _logs(sums: Mapping[int, Sequence[float]]) -> tuple[float, ...]:
    return tuple(math.log(new / base) for _, (base, new) in sorted(sums.items()) if base > 0 and new > 0)


def _chance_of_sides(base: int, new: int) -> float:
    """How likely interruptions of one side alone are so uneven, were both hit alike: binomial, two-sided."""
    from scipy.special import bdtr

    return min(1.0, float(2 * bdtr(min(base, new), base + new, 0.5))) if base + new else 1.0


def _unhidden(ratio: Ratio, found: PhasePairs, sample: TimedSample) -> Ratio:
    """No verdict where a slowdown beyond the threshold may lie in the few turns that were set aside."""
    if not found.whole_logs or ratio.verdict not in ("better", "no difference shown"):
        return ratio
    whole = float(np.mean(found.whole_logs))
    if whole <= sample.rise:
        return ratio
    said = (
        f"but with the turns that were set aside the ratio is {math.exp(whole):.3f}, and they hit one side more often"
    )
    return replace(ratio, verdict="cannot tell", reason=f"{ratio.reason}, {said}")


def pairs_gates(
    gates: Sequence[ChosenGate], times: Mapping[str, Sequence[LaneTimes]], shifts: Mapping[str, Shift | None]
) -> list[GateResult]:
    """Judge the step times of launch pairs; they are one family.

    Args:
        gates: those that :func:`judged_by_pairs` knows.
        times: model -> its turns.
        shifts: model -> how the reference kernel differed between two processes; None in one process.
    """
    measured = [phase_pairs(times.get(chosen.model, ()), judged_by_pairs(chosen) or "all") for chosen in gates]
    samples = {
        i: _sample(chosen, found)
        for i, (chosen, found) in enumerate(zip(gates, measured, strict=True))
        if len(found.logs) >= MIN_LAUNCH_PAIRS
    }
    ratios, results = judge_family(samples), []
    for i, (chosen, found) in enumerate(zip(gates, measured, strict=True)):
        ratio = _unhidden(ratios[i], found, samples[i]) if i in samples else _too_few(found)
        decide = _decide(samples.get(i), found, len(gates)) if ratio.verdict == "cannot tell" else None
        if i in samples:
            shift = shifts.get(chosen.model)
            limit = samples[i].limit_ratio
            ratio = taken_back(ratio, shift, better=chosen.better, section="latency", limit_ratio=limit)
        results.append(_result(chosen, found, ratio, decide))
    return results


def measured_gates(gates: Sequence[ChosenGate], times: Mapping[str, Sequence[LaneTimes]]) -> list[ChosenGate]:
    """Gates that launch pairs judge. A default one on a phase that the schedule does not have does not apply."""
    own = [(chosen, judged_by_pairs(chosen)) for chosen in gates]
    return [
        chosen
        for chosen, phase in own
        if phase is not None and not (chosen.is_default and _lacks(times.get(chosen.model, ()), phase))
    ]


def _lacks(times: Sequence[LaneTimes], phase: str) -> bool:
    phases = {str(name) for one in times for name in np.unique(one.phase_S)}
    return bool(phases) and not phases & set(PHASES[phase])


def are_enough(gates: Sequence[ChosenGate], times: Mapping[str, Sequence[LaneTimes]]) -> bool:
    """Whether more launch pairs would be waste for every one of these gates; see power.enough."""
    for chosen in gates:
        found = phase_pairs(times.get(chosen.model, ()), judged_by_pairs(chosen) or "all")
        if not found.logs or not power.enough(found.logs, _limit(chosen, found), len(gates)):
            return False
    return True


def _limit(chosen: ChosenGate, found: PhasePairs) -> float:
    """The threshold as a share of the base."""
    if chosen.gate.kind == "ratio" or not found.base_step_s:
        return chosen.gate.amount
    return chosen.gate.amount / found.base_step_s


def _sample(chosen: ChosenGate, found: PhasePairs) -> TimedSample:
    n = _pairs(len(found.logs))
    return TimedSample(test=_test(found.logs), limit_ratio=_limit(chosen, found), better=chosen.better, n=n)


def _test(logs: Sequence[float]) -> Welch:
    error = float(np.std(logs, ddof=1)) / math.sqrt(len(logs)) if np.ptp(logs) > 0 else 0.0
    return Welch(mean=float(np.mean(logs)), error=error, degrees=len(logs) - 1)


def _too_few(found: PhasePairs) -> Ratio:
    num, value, low, high = len(found.logs), None, None, None
    if num:
        value = math.exp(float(np.mean(found.logs)))
    if num >= 2:
        low, high = _test(found.logs).interval(stats.CONFIDENCE)
    reason = f"{_pairs(num)}; at least {MIN_LAUNCH_PAIRS} are needed" if num else "no step of this phase was measured"
    return Ratio(value=value, low=low, high=high, verdict="cannot tell", reason=reason)


def _decide(sample: TimedSample | None, found: PhasePairs, num_gates: int) -> str | None:
    num = len(found.logs)
    held = f"{num} {_was(num)} measured"
    if sample is None:
        return f"at least {MIN_LAUNCH_PAIRS} launch pairs ({held})" if num else None
    needed = power.needed_pairs(found.logs, sample.limit_ratio, num_gates)
    if needed is None:
        return f"{QUIETER} (more than {power.MOST:,} launch pairs on this one; {held})"
    near = ""
    if needed <= num:  # narrow enough, and yet on neither side
        as_is = power.needed_as_is(sample, num, num_gates)
        near = ", as the figure lies near the threshold"
        if as_is is None:
            return "no affordable number of launch pairs (the figure lies near the threshold itself)"
        needed = max(as_is, num + 1)
    if needed > power.MANY:
        return f"{QUIETER} (about {needed} launch pairs on this one{near}; {held})"
    return f"about {needed} launch pairs{near} ({held})"


def _was(num: int) -> str:
    return "was" if num == 1 else "were"


def _result(chosen: ChosenGate, found: PhasePairs, ratio: Ratio, decide: str | None) -> GateResult:
    key: Key = (METRIC, (("phase", judged_by_pairs(chosen) or "all"),))
    said = Ratio(
        value=ratio.value,
        low=ratio.low,
        high=ratio.high,
        verdict=ratio.verdict,
        reason="; ".join(part for part in (ratio.reason, found.note) if part),
    )
    ratios = tuple(math.exp(log) for log in found.logs)
    bare = replace(chosen, reference=None, other=None)  # the lone runs' values are not what was judged
    return result_of(bare, said, n=_pairs(len(found.logs)), decide=decide, launches=((), ratios), key=key)


def _pairs(num: int) -> str:
    return f"{num} pair{'' if num == 1 else 's'}"
