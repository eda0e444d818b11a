"""Timed gates from launch pairs: both sides were stepped in turn, and the launch pair is the unit.

Per launch pair and phase: log of (summed step times of new / of base). The sum is not trimmed: a few very slow steps
are real cost. Turns in which the machine took the processor away are set aside on both sides, unless that hit one side
more often than chance allows: a change that waits (for a lock, a disk, a timer) looks the same, and then all count.

Time in which other programs had the processor: on a shared machine most of the noise, and none of the code's doing.

Where Linux tells it step by step (``queued_s`` of table ``lanes``) it is taken off both sides: what is left is what a
step computed and what it waited for by itself. Waits for locks, sleep and disk stay in, so no regression hides there.
One could hide in the queue itself: a side that starts helpers of its own waits for a processor because of them. So
where one side waited longer than chance between launch pairs allows, nothing is taken off and wall time decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moeprof.analysis.compare.lanes import LaneTimes, lane_times
from moeprof.analysis.metrics.lookup import Key
from moeprof.analysis.regress.noise import taken_back
from moeprof.analysis.regress.result import ChosenGate, GateResult
from moeprof.analysis.regress.verdict import judge_gates
from moeprof.analysis.stats import power
from moeprof.analysis.stats.arrays import FloatArray
from moeprof.analysis.stats.estimate import Estimate, Ratio
from moeprof.analysis.stats.verdicts import LOCKSTEP_FLOOR_RATIO, MIN_LAUNCH_PAIRS, Sample, limits, t_tests
from moeprof.core.record.lanes import LanePass
from moeprof.core.record.pairs import BASE, NEW

ONE_SIDED_P = 0.01
WORTH_SAYING = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """What was done about it.

    Attributes:
        is_off: it was taken off both sides.
        share_ratio: of the own time of (base, new), over all pairs; None where it was not told.
        is_one_sided: one side waited longer than chance allows, so it counts.
    """

    is_off: bool
    share_ratio: tuple[float, float] | None
    is_one_sided: bool = False

    @property
    def note(self) -> str:
        """For people; empty where there was nothing."""
        if self.share_ratio is None or max(self.share_ratio) < WORTH_SAYING:
            return ""
        base, new = (f"{100 * share:.3g} %" for share in self.share_ratio)
        if self.is_one_sided:
            return (
                f"waiting for a processor took {base} of base's own time and {new} of new's: more uneven than by "
                "chance, so it counts"
            )
        return (
            f"waiting for a processor that other programs had is taken off: {base} of base's own time, {new} of new's"
        )


def queue_of(walls: Sequence[FloatArray], waits: Sequence[FloatArray]) -> Queue:
    """Whether waiting is known, and alike on both sides.

    Args:
        walls: seconds of the turns of each measurement, shape [turns, (base, new)].
        waits: the part of them in the queue; NaN where it is not known.
    """
    held = [i for i, wall in enumerate(walls) if len(wall)]
    if not held or not all(np.isfinite(waits[i]).all() for i in held):
        return Queue(is_off=False, share_ratio=None)
    shares = np.array([waits[i].sum(axis=0) / (walls[i] - waits[i]).sum(axis=0) for i in held])
    together = np.sum([waits[i].sum(axis=0) for i in held], axis=0) / np.sum(
        [(walls[i] - waits[i]).sum(axis=0) for i in held], axis=0
    )
    one_sided = _differs(shares[:, 1] - shares[:, 0])
    return Queue(is_off=not one_sided, share_ratio=(float(together[0]), float(together[1])), is_one_sided=one_sided)


def _differs(differences: FloatArray) -> bool:
    """Student's test of launch pairs, two-sided; a difference too small to matter is none."""
    if len(differences) < 2 or abs(float(differences.mean())) < WORTH_SAYING:
        return False
    # no logarithms here, but the same test of a mean against 0
    ((p,),) = t_tests([Sample(logs=tuple(differences.tolist()))])
    return bool(2 * p < ONE_SIDED_P)


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
                f"wall time was far above processor time in {base} turns of base and {new} of new: more "
                f"unevenly than by chance, so all {self.turns:,} turns count"
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


def _unhidden(ratio: Ratio, found: PhasePairs, sample: Sample) -> Ratio:
    """No verdict where a slowdown beyond the threshold may lie in the few turns that were set aside."""
    if not found.whole_logs or ratio.verdict not in ("better", "no difference shown"):
        return ratio
    whole = float(np.mean(found.whole_logs))
    if whole <= limits(sample.floor_ratio)[1]:
        return ratio
    said = (
        f"but with the turns that were set aside the ratio is {math.exp(whole):.3f}, and they hit one side more often"
    )
    return replace(ratio, verdict="cannot tell", reason=f"{ratio.reason}, {said}")


def pairs_gates(
    gates: Sequence[ChosenGate],
    times: Mapping[str, Sequence[LaneTimes]],
    shifts: Mapping[str, Estimate | None],
    *,
    until_precise: bool = False,
) -> list[GateResult]:
    """Judge the step times of launch pairs; they are one family.

    Args:
        gates: those that :func:`judged_by_pairs` knows.
        times: model -> its turns.
        shifts: model -> how the reference kernel differed between two processes; None in one process.
        until_precise: pairs were added until they looked precise enough.
    """
    measured = [phase_pairs(times.get(chosen.model, ()), judged_by_pairs(chosen) or "all") for chosen in gates]
    samples = {
        i: _sample(chosen, found)
        for i, (chosen, found) in enumerate(zip(gates, measured, strict=True))
        if len(found.logs) >= MIN_LAUNCH_PAIRS
    }
    ratios, results = judge_gates(samples, until_precise=until_precise), []
    for i, (chosen, found) in enumerate(zip(gates, measured, strict=True)):
        ratio = _unhidden(ratios[i], found, samples[i]) if i in samples else _too_few(found)
        decide = _decide(samples.get(i), found, len(gates)) if ratio.verdict == "cannot tell" else None
        if i in samples:
            shift = shifts.get(chosen.model)
            limit = samples[i].floor_ratio
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


def _sample(chosen: ChosenGate, found: PhasePairs) -> Sample:
    n = _pairs(len(found.logs))
    return Sample(logs=found.logs, floor_ratio=_limit(chosen, found), better=chosen.better, n=n)


def _too_few(found: PhasePairs) -> Ratio:
    if not found.logs:
        return Ratio(value=None, verdict="cannot tell", reason="no step of this phase was measured")
    reason = f"{_pairs(len(found.logs))}; at least {MIN_LAUNCH_PAIRS} are needed"
    return Sample(logs=found.logs).estimate().judged("cannot tell", reason)


def _decide(sample: Sample | None, found: PhasePairs, num_gates: int) -> str | None:
    num = len(found.logs)
    held = f"{num} {_was(num)} measured"
    if sample is None:
        return f"at least {MIN_LAUNCH_PAIRS} launch pairs ({held})" if num else None
    needed = power.needed_pairs(found.logs, sample.floor_ratio, num_gates)
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
    said = replace(ratio, reason="; ".join(part for part in (ratio.reason, found.note) if part))
    ratios = tuple(math.exp(log) for log in found.logs)
    bare = replace(chosen, key=key, reference=None, other=None)  # the lone runs' values are not what was judged
    result = bare.judged(said, n=_pairs(len(found.logs)), decide=decide, launches=((), ratios))
    return replace(result, lag_1_correlation=power.lag_1_correlation(found.logs))


def _pairs(num: int) -> str:
    return f"{num} pair{'' if num == 1 else 's'}"
