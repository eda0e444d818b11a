"""Lock-step lanes as arrays, and the ratio of two of them (docs/metrics.md#lock-step-pairs).

All lanes did the same steps in turn, so noise of the machine hits neighbours alike and cancels in their ratio. Cycles
repeat the same steps with the same tokens: intervals speak for this schedule, not for other traffic.

What does not cancel is where a lane's memory lies: a lane keeps its place for as long as its process lives, so no
number of turns tells it. Lanes that did the same work show how much it makes (:class:`LaneOffset`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from moeprof.analysis.metrics.overhead import taken_away
from moeprof.analysis.metrics.sweep.points import to_metric
from moeprof.analysis.metrics.tables import BoolArray
from moeprof.analysis.stats import intervals
from moeprof.analysis.stats.arrays import FloatArray, IntArray
from moeprof.analysis.stats.bootstrap import (
    MIN_BLOCKS,
    Draws,
    draw_means,
    estimate_of,
    launch_estimate,
    median_estimate,
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


OVERRIDDEN = ("concentrated", "balanced", "recorded", "distinct")


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneOffset:
    """How far apart lanes of equal work were measured: rungs with picks set by hand, where all tokens share k experts.

    Attributes:
        lanes: that did the same work.
        concurrency: requests in flight while they did; None when all were sent at once.
        num_turns: over all launches.
        num_launches: fresh processes; a lane's own mean is over them, so more of them narrow it.
        sd: standard deviation between lanes, as a share of a step. What chance makes of so many turns is still in it,
            so intervals that it widens hold the truth in 97 to 99 of 100 cases where lanes do not differ.
    """

    lanes: tuple[str, ...]
    concurrency: int | None
    num_turns: int
    num_launches: int
    sd: float

    @property
    def quantile(self) -> float:
        """97.5 % of Student's t: few lanes know their own spread badly."""
        return intervals.t_quantile(0.975, len(self.lanes) - 1)

    @property
    def half_width(self) -> float:
        """95 % half-width of the difference of two lanes that do the same work, as a share of a step."""
        return self.quantile * self.sd * math.sqrt(2)


def lane_offset(times: Sequence[LaneTimes]) -> LaneOffset | None:
    """From the load with the most turns in which at least two lanes did the same work; None without such a load."""
    by_load: dict[int | None, list[LaneTimes]] = {}
    for one in times:
        by_load.setdefault(one.concurrency, []).append(one)
    found = [offset for held in by_load.values() if (offset := _offset_of(held)) is not None]
    return max(found, key=lambda offset: (len(offset.lanes), offset.num_turns), default=None)


def _offset_of(times: Sequence[LaneTimes]) -> LaneOffset | None:
    lanes = [name for name in _overridden(times[0]) if all(name in one.lanes for one in times)]
    equal = [_same_work(one, lanes) for one in times]
    # At one token all of them do the same; at more, only those that are left with k experts.
    lanes = [name for i, name in enumerate(lanes) if all(int(own[:, i].sum()) >= MIN_BLOCKS for own in equal)]
    if len(lanes) < 2:
        return None
    logs, turns = [], 0
    for one in times:
        own = _same_work(one, lanes).all(axis=1)
        if own.sum() < MIN_BLOCKS:
            return None
        logs.append(np.log(one.time_SL[own][:, [one.lanes.index(name) for name in lanes]].mean(axis=0)))
        turns += int(own.sum())
    return LaneOffset(
        lanes=tuple(lanes),
        concurrency=times[0].concurrency,
        num_turns=turns,
        num_launches=len(times),
        sd=float(np.mean(logs, axis=0).std(ddof=1)),
    )


def _overridden(times: LaneTimes) -> list[str]:
    return [lane.name for lane in times.info if lane.rung in OVERRIDDEN and lane.name in times.lanes]


def _same_work(times: LaneTimes, lanes: Sequence[str]) -> BoolArray:
    """Turns in which a lane's tokens all went to the same k experts: one token, or as few experts as concentrated."""
    places = [times.lanes.index(name) for name in lanes]
    fewest = [times.lanes.index(lane.name) for lane in times.info if lane.rung == "concentrated"]
    one_token = np.broadcast_to((times.tokens_S == 1)[:, None], (len(times.tokens_S), len(places)))
    if not fewest:
        return one_token
    same: BoolArray = one_token | (times.distinct_SL[:, places] == times.distinct_SL[:, fewest[:1]])
    return same


def lanes_estimate(
    launches: Sequence[Draws],
    figure: Callable[[dict[str, float]], float | None],
    offset: LaneOffset | None,
    *,
    signed: bool = False,
) -> Estimate:
    """:func:`estimate_of`, with what lanes differ by for no reason of theirs added in quadrature.

    A lane's offset is taken as a share of its own time and independent of the others', so that a figure f of lane means
    s_l has the variance ``sum (sd * s_l * df/ds_l)^2``.
    """
    told = estimate_of(launches, figure, signed=signed)
    if offset is None or told.low is None:
        return told
    spread = _spread([draws for draws in launches if draws.num_steps], figure, offset.sd)
    return _widened(told, offset.quantile * spread, signed=signed)


def _widened(told: Estimate, half: float, *, signed: bool) -> Estimate:
    """An interval with another half-width in quadrature: on the logarithm where the figure is positive."""
    if told.value is None or told.low is None or told.high is None:
        return told
    if not signed and told.low > 0:
        relative = half / told.value
        down, up = math.log(told.value / told.low), math.log(told.high / told.value)
        low, high = (told.value * math.exp(sign * math.hypot(x, relative)) for sign, x in ((-1, down), (1, up)))
    else:
        low = told.value - math.hypot(told.value - told.low, half)
        high = told.value + math.hypot(told.high - told.value, half)
    return replace(told, low=low, high=high)


def _spread(launches: Sequence[Draws], figure: Callable[[dict[str, float]], float | None], sd: float) -> float:
    """Standard deviation of a figure whose lanes are each off by ``sd`` of their own time, one after the other."""
    names = launches[0].lanes
    mean_L = np.mean([draws.mean_L for draws in launches], axis=0)
    parts = []
    for i in range(len(names)):
        ends = []
        for sign in (1, -1):
            moved = mean_L.copy()
            moved[i] *= 1 + sign * sd
            ends.append(figure(dict(zip(names, moved.tolist(), strict=True))))
        if ends[0] is not None and ends[1] is not None:
            parts.append((ends[0] - ends[1]) / 2)
    return math.hypot(*parts)


def pair_ratio(
    times: Sequence[LaneTimes], of: str, against: str, phase: str | None, offset: LaneOffset | None = None
) -> Estimate:
    """Summed step times of one lane over those of another, on the same steps; interval as in :func:`lanes_estimate`.

    Args:
        times: one per launch, all at one load.
        of: the lane in the numerator.
        against: the lane in the denominator.
        phase: prefill, decode or mixed; None: all steps.
        offset: how far apart lanes of equal work were measured, where that was.
    """
    launches = [one.draws(phase) for one in _at_one_load(times, phase)]
    return lanes_estimate(launches, lambda seconds: seconds[of] / seconds[against], offset)


def pair_median(
    times: Sequence[LaneTimes], of: str, against: str, phase: str | None, offset: LaneOffset | None = None
) -> Estimate:
    """Median over steps of the same ratio; its interval resamples runs of steps with their content."""
    told = _median_of_steps(times, of, against, phase)
    return told if offset is None else _widened(told, offset.half_width * (told.value or 0.0), signed=False)


def _median_of_steps(times: Sequence[LaneTimes], of: str, against: str, phase: str | None) -> Estimate:
    launches = [_step_ratios(one, of, against, phase) for one in _at_one_load(times, phase)]
    medians = [float(np.median(ratios)) for ratios in launches]
    if not medians:
        return Estimate(value=None, reason="no steps were measured")
    if len(medians) > 1:
        return launch_estimate(medians)
    return median_estimate(launches[0])


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
        offset: what lanes of equal work differ by, in every interval: as the same run's ladder shows it; None without.
    """

    moe: str
    dense: str
    concurrency: int | None
    num_requests: int | None = None
    ratios: dict[str | None, Estimate]
    medians: dict[str | None, Estimate]
    offset: LaneOffset | None = None


def offset_of(record: Record) -> LaneOffset | None:
    """What lanes of equal work differ by in a run: its ladder has such lanes, its models stepped in turn have none."""
    return lane_offset([lane_times(one) for one in record.ladder])


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
    offset, found = offset_of(record) if by_load else None, list[LockstepPair]()
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
                ratios={phase: pair_ratio(both, moe, other, phase, offset) for phase in phases},
                medians={phase: pair_median(both, moe, other, phase, offset) for phase in phases},
                offset=offset,
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
