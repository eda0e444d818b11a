"""What the machine did meanwhile, by a fixed reference kernel that was timed between measurements.

It never corrects a figure (tried: correction made it worse). Where the machine itself got slower or
faster between two sides, a timed verdict in the same direction is taken back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from moeprof.analysis.metrics.lookup import by_key, by_launch
from moeprof.analysis.regress.gates import ModelPair
from moeprof.analysis.regress.result import Mode, Noise
from moeprof.analysis.stats import intervals
from moeprof.analysis.stats.estimate import Estimate, Ratio
from moeprof.analysis.stats.verdicts import Sample, sample_of, t_tests
from moeprof.core.baseline.baseline import BaselineModel
from moeprof.core.metric import Better
from moeprof.core.record.lanes import LanePass
from moeprof.core.record.pairs import BASE, NEW

NAME = "reference_kernel_s"
ENOUGH_TO_EXPLAIN = 0.5  # the machine explains a figure that moved at most twice as far
OF_TIME = {"latency", "throughput", "cost", "work", "energy"}  # sections that a slow machine shows in


# A shift is log(new / reference) of the kernel's mean, with its 95 % interval; none with one launch a side.


def _percent(shift: Estimate) -> str:
    """``+4.1 %``."""
    return f"{100 * math.expm1(shift.value or 0.0):+.1f} %"


def kernel_seconds(model: BaselineModel) -> tuple[float, ...]:
    """The kernel's mean of each launch of a model; empty where it was not timed."""
    own = by_launch(model.metrics).get((NAME, ()))
    if own:
        return tuple(own.values())
    value = by_key(model.metrics).get((NAME, ()))
    return () if value is None or value.value is None else (float(value.value),)


def stored_shift(reference: Sequence[float], other: Sequence[float]) -> Estimate | None:
    """Between launches of two runs; None where a side was not timed."""
    return _shift(sample_of(reference, other))


def _shift(sample: Sample | None) -> Estimate | None:
    if sample is None:
        return None
    if sample.num < 2:
        return Estimate(value=sample.mean, n=sample.num)
    ((_, (low, high)),) = t_tests([sample], intervals.CONFIDENCE)
    return Estimate(value=sample.mean, low=low, high=high, n=sample.num)


def pair_kernels(passes: Sequence[LanePass]) -> dict[int, dict[str, list[float]]]:
    """Launch -> lane -> timings before and after its measurements; launches without them are left out."""
    found: dict[int, dict[str, list[float]]] = {}
    for one in passes:
        for lane, seconds in (one.info.reference_kernel_s or {}).items():
            known = [s for s in seconds if s is not None and s > 0]
            if known:
                found.setdefault(one.launch, {}).setdefault(lane, []).extend(known)
    return found


def pairs_shift(passes: Sequence[LanePass]) -> Estimate | None:
    """Between the two processes of each launch pair; None where they were not timed."""
    logs = tuple(
        math.log(float(np.mean(lanes[NEW])) / float(np.mean(lanes[BASE])))
        for lanes in pair_kernels(passes).values()
        if {BASE, NEW} <= set(lanes)
    )
    return _shift(Sample(logs=logs) if logs else None)


def taken_back(ratio: Ratio, shift: Estimate | None, *, better: Better, section: str, limit_ratio: float) -> Ratio:
    """The verdict of a timed gate after a look at the machine: it may become *cannot tell*, nothing else.

    Args:
        ratio: as judged.
        shift: of the reference kernel between the two sides.
        better: direction of the metric: a slow machine raises times and lowers rates.
        section: of the metric; memory knows no slow machine.
        limit_ratio: the gate's threshold.
    """
    if shift is None or shift.value is None or ratio.value is None or section not in OF_TIME:
        return ratio
    moved = math.log(ratio.value) * (-1 if better == "higher" else 1)
    machine = f"the reference kernel moved by {_percent(shift)} too: it may be the machine"
    if ratio.verdict in ("better", "worse"):
        explains = moved * shift.value > 0 and abs(shift.value) >= ENOUGH_TO_EXPLAIN * abs(moved) and shift.excludes(0)
        return replace(ratio, verdict="cannot tell", reason=f"{ratio.reason}, but {machine}") if explains else ratio
    if ratio.verdict == "no difference shown" and abs(shift.value) > math.log1p(limit_ratio):
        hidden = f"the reference kernel moved by {_percent(shift)}: the machine may hide a difference"
        return replace(ratio, verdict="cannot tell", reason=f"{ratio.reason}, but {hidden}")
    return ratio


def stored_noise(pairs: Sequence[ModelPair]) -> Noise:
    """Of a run against a stored one, all models together."""
    sides = [[s for pair in pairs for s in kernel_seconds(pair[side])] for side in (0, 1)]
    shift = stored_shift(sides[0], sides[1])
    if shift is None:
        return Noise(drift_ratio=None, shift=None, text=_not_timed(sides))
    drift = max(*sides[0], *sides[1]) / min(*sides[0], *sides[1])
    text = (
        f"The reference kernel moved by {_percent(shift)} between the two runs; its slowest launch took "
        f"{drift:.2f} times its fastest. It corrects no figure."
    )
    return Noise(drift_ratio=drift, shift=shift.value, text=text)


def pairs_noise(passes: Mapping[str, Sequence[LanePass]], mode: Mode) -> Noise:
    """Of launch pairs, all models together."""
    every = [one for own in passes.values() for one in own]
    timed = [s for lanes in pair_kernels(every).values() for own in lanes.values() for s in own]
    if not timed:
        return Noise(drift_ratio=None, shift=None, text=_not_timed([[], []]))
    drift = max(timed) / min(timed)
    text = f"The reference kernel's slowest timing took {drift:.2f} times its fastest"
    shift = pairs_shift(every) if mode == "processes" else None
    if shift is None or shift.value is None:
        return Noise(drift_ratio=drift, shift=None, text=f"{text}; both sides were stepped in turn.")
    said = f"{text}; in the new side's process it took {_longer(shift.value)} the base's. It corrects no figure."
    return Noise(drift_ratio=drift, shift=shift.value, text=said)


def _longer(shift: float) -> str:
    """``0.9 % less time than in``, of a difference on the log scale."""
    size = f"{abs(100 * math.expm1(shift)):.1f}"
    if float(size) == 0:
        return "the same time as in"
    return f"{size} % {'more' if shift > 0 else 'less'} time than in"


def _not_timed(sides: Sequence[Sequence[float]]) -> str:
    which = "the reference" if sides[1] else "the new run" if sides[0] else "either side"
    return f"The reference kernel was not timed on {which}: nothing is known of the machine."
