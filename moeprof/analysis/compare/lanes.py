"""Lock-step lanes as arrays, and the ratio of two of them (docs/metrics.md#lock-step-pairs).

All lanes did the same steps in turn, so noise of the machine hits neighbours alike and cancels in their ratio. Cycles
repeat the same steps with the same tokens: intervals speak for this schedule, not for other traffic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moeprof.analysis.metrics.overhead import taken_away
from moeprof.analysis.metrics.sweep import to_metric
from moeprof.analysis.metrics.tables import BoolArray
from moeprof.analysis.stats import intervals
from moeprof.analysis.stats.arrays import FloatArray, IntArray
from moeprof.analysis.stats.bootstrap import (
    FEW_STEPS,
    Draws,
    draw_means,
    estimate_of,
    launch_estimate,
    memory_stretch,
    run_blocks,
    widened_interval,
)
from moeprof.analysis.stats.estimate import Estimate
from moeprof.core.errors import RecordError
from moeprof.core.metric import MetricValue
from moeprof.core.record.lanes import LaneHeader, LanePass
from moeprof.core.record.layout import Record

MIN_CYCLES = 3  # with so many whole cycles, a last one that was cut short is left out


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneTimes:
    """Complete, undisturbed turns of one launch at one load.

    Attributes:
        launch: number of the launch.
        concurrency: requests in flight; None when all were sent at once.
        lanes: names, in the order of the second axis.
        info: what each lane is, as pass.json has it; empty where it was not written.
        step_S: number of the step within the cycle.
        phase_S: prefill | decode | mixed.
        tokens_S: prompt and output tokens of the step's batch.
        time_SL: wall seconds (on a GPU the host waits for the device).
        cpu_SL: processor seconds of the process.
        queued_SL: seconds of ``time_SL`` in which another program had the processor; NaN where that is not known, or
            does not add up.
        distinct_SL: experts with a token, summed over MoE layers; NaN for dense lanes.
        set_aside: turns left out because the machine took the processor away in some lane.
        taken_SL: turns in which the machine took the processor away, by lane; all False unless they were kept.
    """

    launch: int
    concurrency: int | None
    lanes: tuple[str, ...]
    info: tuple[LaneHeader, ...]
    step_S: IntArray
    phase_S: npt.NDArray[np.str_]
    tokens_S: FloatArray
    time_SL: FloatArray
    cpu_SL: FloatArray
    queued_SL: FloatArray
    distinct_SL: FloatArray
    set_aside: int
    taken_SL: BoolArray

    def of_phase(self, phase: str | None) -> BoolArray:
        """True for steps of this phase; None: all steps."""
        return np.ones(len(self.phase_S), dtype=np.bool_) if phase is None else self.phase_S == phase

    def draws(self, phase: str | None) -> Draws:
        """Seconds per step of every lane, with their joint block bootstrap."""
        own = self.of_phase(phase)
        return draw_means(self.lanes, self.time_SL[own], self.step_S[own])


def lane_times(lane_pass: LanePass, *, keep_taken: bool = False) -> LaneTimes:
    """Turns of a measurement in which every lane did its step and none was interrupted.

    A last cycle that was cut short is left out when MIN_CYCLES whole ones stand, so that every step counts alike.

    Args:
        lane_pass: the measurement.
        keep_taken: keep turns in which the machine took the processor away, and say which they are: those whose own
            time (without ``queued_SL``, where it is known) is far above processor time.

    Raises:
        RecordError: a lane did the same step of a cycle twice.
    """
    table = lane_pass.table.sort_values(["cycle", "step", "place"], kind="stable")
    if bool(table.duplicated(["cycle", "step", "lane"]).any()):
        raise RecordError(f"{lane_pass.path / 'lanes'}: damaged table, a lane has the same step of a cycle twice")
    lanes = tuple(lane.name for lane in lane_pass.info.lanes) or tuple(dict.fromkeys(map(str, table["lane"])))
    wide = table.set_index(["cycle", "step", "lane"])

    def values(column: str) -> FloatArray:
        own = wide[column].unstack("lane").reindex(columns=list(lanes))
        return np.asarray(own.to_numpy(dtype=np.float64, na_value=np.nan), dtype=np.float64)

    phase = wide["phase"].unstack("lane").bfill(axis=1)
    cycle, step = (phase.index.get_level_values(name).to_numpy(dtype=np.int64) for name in ("cycle", "step"))
    time, cpu, queued = values("wall_s"), values("cpu_s"), values("queued_s")
    whole = np.isfinite(time).all(axis=1) & _in_whole_cycle(cycle, step)
    if keep_taken and not _adds_up(time[whole], cpu[whole], queued[whole]):
        queued = np.full_like(queued, np.nan)
    taken = taken_away(time - np.nan_to_num(queued) if keep_taken else time, cpu)
    kept = whole if keep_taken else whole & ~taken.any(axis=1)
    tokens = values("prefill_tokens") + values("decode_tokens")
    return LaneTimes(
        launch=lane_pass.launch,
        concurrency=lane_pass.concurrency,
        lanes=lanes,
        info=lane_pass.info.lanes,
        step_S=step[kept],
        phase_S=np.asarray(phase.iloc[:, 0] if len(phase) else [], dtype=np.str_)[kept],
        tokens_S=tokens[kept, 0] if lanes else np.empty(0),
        time_SL=time[kept],
        cpu_SL=cpu[kept],
        queued_SL=queued[kept],
        distinct_SL=values("distinct_experts")[kept],
        set_aside=int(whole.sum() - kept.sum()),
        taken_SL=taken[kept],
    )


def _adds_up(time_SL: FloatArray, cpu_SL: FloatArray, queued_SL: FloatArray) -> bool:
    """No more seconds computed and waited than there were, but for what the clocks' own calls take; else no account."""
    known = np.isfinite(time_SL) & np.isfinite(cpu_SL) & np.isfinite(queued_SL)
    return bool((cpu_SL + queued_SL)[known].sum() <= 1.02 * time_SL[known].sum())


def _in_whole_cycle(cycle: IntArray, step: IntArray) -> BoolArray:
    """False for a last cycle that ended early, where MIN_CYCLES others did not."""
    everything: BoolArray = np.ones(len(cycle), dtype=np.bool_)
    if not len(cycle):
        return everything
    last = [int(step[cycle == c].max()) for c in np.unique(cycle)]
    if last[-1] == max(last) or len(last) <= MIN_CYCLES:
        return everything
    kept: BoolArray = cycle < cycle.max()
    return kept


def pair_ratio(times: Sequence[LaneTimes], of: str, against: str, phase: str | None) -> Estimate:
    """Summed step times of one lane over those of another, on the same steps; interval as in :func:`estimate_of`.

    Args:
        times: one per launch, all at one load.
        of: the lane in the numerator.
        against: the lane in the denominator.
        phase: prefill, decode or mixed; None: all steps.
    """
    launches = [one.draws(phase) for one in _at_one_load(times, phase)]
    return estimate_of(launches, lambda seconds: seconds[of] / seconds[against])


def pair_median(times: Sequence[LaneTimes], of: str, against: str, phase: str | None) -> Estimate:
    """Median over steps of the same ratio; its interval resamples runs of steps with their content."""
    launches = [_step_ratios(one, of, against, phase) for one in _at_one_load(times, phase)]
    medians = [float(np.median(ratios)) for ratios in launches]
    if not medians:
        return Estimate(value=None, reason="no steps were measured")
    if len(medians) > 1:
        return launch_estimate(medians)
    (ratios,), num = launches, len(launches[0])
    blocks = run_blocks(num)
    sample = intervals.BlockSample(values=ratios, weights=np.ones(num), blocks=blocks)
    drawn = intervals.bootstrap_percentiles(sample, (50.0,))
    if drawn is None:
        return Estimate(value=medians[0], n=num, reason=FEW_STEPS.format(n=num))
    sums = np.bincount(blocks, weights=np.log(ratios / medians[0])) / np.bincount(blocks)
    stretch = memory_stretch(sums[:, None])
    low, high = widened_interval(medians[0], drawn[:, 0], int(blocks.max()), signed=False, stretch=stretch)
    return Estimate(value=medians[0], low=low, high=high, n=num)


def _at_one_load(times: Sequence[LaneTimes], phase: str | None) -> list[LaneTimes]:
    """Launches that have steps of the phase."""
    assert len({one.concurrency for one in times}) == 1, "one load"
    return [one for one in times if one.of_phase(phase).any()]


def _step_ratios(times: LaneTimes, of: str, against: str, phase: str | None) -> FloatArray:
    own = times.time_SL[times.of_phase(phase)]
    ratios: FloatArray = own[:, times.lanes.index(of)] / own[:, times.lanes.index(against)]
    return ratios


PHASES: tuple[str | None, ...] = ("prefill", "decode", "mixed", None)


@dataclass(frozen=True, slots=True, kw_only=True)
class LockstepPair:
    """An MoE against a dense model (or two models of one kind), stepped in turn at one load.

    Attributes:
        moe, dense: the lanes; ``dense`` is the denominator.
        concurrency: requests in flight; None when all were sent at once.
        num_requests: how many were sent; None where it was not written.
        ratios: of summed step times, per phase that had steps; None stands for all of them.
        medians: of the steps' ratios, likewise.
    """

    moe: str
    dense: str
    concurrency: int | None
    num_requests: int | None = None
    ratios: dict[str | None, Estimate]
    medians: dict[str | None, Estimate]


def lockstep_pairs(record: Record) -> tuple[LockstepPair, ...]:
    """Each MoE lane against each dense lane, by load; empty where nothing was stepped in turn.

    Models of one kind alone are set against the first of them. A launch that lacks a lane (its model failed before)
    says nothing of it.
    """
    by_load: dict[int | None, list[LaneTimes]] = {}
    sent: dict[int | None, int | None] = {}
    for one in record.lockstep:
        by_load.setdefault(one.concurrency, []).append(lane_times(one))
        sent.setdefault(one.concurrency, one.info.num_requests)
    found = []
    for concurrency in sorted(by_load, key=lambda load: (load is None, load or 0)):
        times = by_load[concurrency]
        for moe, other in _lane_pairs(times):
            both = [one for one in times if moe in one.lanes and other in one.lanes]
            phases = [phase for phase in PHASES if _has(both, phase)]
            pair = LockstepPair(
                moe=moe,
                dense=other,
                concurrency=concurrency,
                num_requests=sent[concurrency],
                ratios={phase: pair_ratio(both, moe, other, phase) for phase in phases},
                medians={phase: pair_median(both, moe, other, phase) for phase in phases},
            )
            found.append(pair)
    return tuple(found)


def _lane_pairs(times: Sequence[LaneTimes]) -> list[tuple[str, str]]:
    names = list(dict.fromkeys(name for one in times for name in one.lanes))
    dense = {lane.name for one in times for lane in one.info if lane.rung == "dense"}
    moes, others = [name for name in names if name not in dense], [name for name in names if name in dense]
    if not moes or not others:
        moes, others = names[1:], names[:1]
    together = [{*one.lanes} for one in times]
    return [(moe, other) for moe in moes for other in others if any({moe, other} <= lanes for lanes in together)]


def _has(times: Sequence[LaneTimes], phase: str | None) -> bool:
    return any(bool(one.of_phase(phase).any()) for one in times)


def lockstep_metrics(pairs: Sequence[LockstepPair]) -> tuple[tuple[str, MetricValue], ...]:
    """``lockstep_ratio`` and its median sister by MoE, with the dense model, phase and load as labels."""
    found = []
    for pair in pairs:
        for phase, ratio in pair.ratios.items():
            labels = {"against": pair.dense, "phase": phase or "all", "concurrency": str(pair.concurrency or "offline")}
            found.append((pair.moe, to_metric("lockstep_ratio", ratio, **labels)))
            found.append((pair.moe, to_metric("lockstep_median_ratio", pair.medians[phase], **labels)))
    return tuple(found)
