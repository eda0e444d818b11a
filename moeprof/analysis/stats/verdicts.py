"""Is it worse? One rule, whoever asks.

*worse* or *better*: told from chance, and the point lies beyond the floor; *no difference shown*: the interval lies
within the floor; else *cannot tell*. A sample is told from chance by a one-sided t-test on logarithms (of launch pairs,
or Welch's on the launches of two runs) whose p, adjusted by Holm over its family, is at most alpha; its interval for
*no difference* has confidence 1 - 2 alpha and is not adjusted, as it is no alarm. A figure that has only an interval is
told from chance where that excludes 1.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from moeprof.analysis.stats.estimate import Estimate, Ratio
from moeprof.analysis.stats.intervals import CONFIDENCE, Interval

Direction = Literal["lower", "higher", "neither"]  # which is better; of "neither", any change is worse
Name = TypeVar("Name", bound=Hashable)
LOCKSTEP_FLOOR_RATIO = 0.015
MIN_LAUNCH_PAIRS = 6
ALPHA = 0.01  # one-sided, of a whole family
SLACK = 1e-9  # what lies at the threshold itself is allowed, whatever the last bit says


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """How one caller says what was found, and which fall its floor allows.

    Attributes:
        told: told from chance and beyond the floor.
        within: the interval lies within the floor.
        small: told from chance, but not beyond the floor.
        far: beyond the floor, but not told from chance.
        wide: neither, and the interval reaches beyond the floor.
        floor: the floor as text.
        is_symmetric: a floor of 3 % allows a fall to 1 / 1.03; else to 0.97.
    """

    told: str
    within: str
    small: str
    far: str
    wide: str
    floor: Callable[[float], str] = "{:.1%}".format
    is_symmetric: bool = True


OF_INTERVALS = Words(
    told="the interval excludes 1 and the ratio lies beyond {floor}",
    within="the interval lies within {floor}",
    small="a difference, but not shown to be above {floor}",
    far="the interval holds 1 and reaches beyond {floor}",
    wide="the interval holds 1 and reaches beyond {floor}",
)
OF_PAIRS = Words(
    told="ratio {ratio:.3f} over {n}, p = {p:.2g}",
    within="the interval lies within {floor} over {n}",
    small="a difference, but not shown to be above {floor}",
    far="ratio {ratio:.3f}, not told from 1 (p = {p:.2g})",
    wide="ratio {ratio:.3f}, not told from 1 (p = {p:.2g})",
)
OF_RUNS = Words(
    told="p = {p:.2g} ({family}, Holm), beyond the floor of {floor}",
    within="the interval lies within {floor} ({family})",
    small="the interval reaches beyond {floor} ({family})",
    far="not told from chance: p = {p:.2g} ({family}, Holm)",
    wide="the interval reaches beyond {floor} ({family})",
    floor="{:.0%}".format,
)
OF_GATES = Words(
    told="told from chance over {n}, p = {p:.2g}{family}, and beyond {floor}",
    within="the interval over {n} lies within {floor}",
    small="a difference (over {n}, p = {p:.2g}{family}), but not shown to lie above or below {floor}",
    far="beyond {floor}, but not told from chance over {n}, p = {p:.2g}{family}",
    wide="the interval over {n} reaches beyond {floor}",
    floor=lambda ratio: f"{ratio:.3g}" if ratio < 1e-4 else f"{100 * ratio:g} %",
    is_symmetric=False,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What one figure was measured to be, before it is judged.

    Attributes:
        logs: log(new / reference) of each launch pair; with ``against``: log of each launch of the new run.
        against: log of each launch of the reference.
        floor_ratio: what the figure may move, as a share of the reference.
        better: direction.
        n: samples in words, for the reason.
    """

    logs: tuple[float, ...]
    against: tuple[float, ...] | None = None
    floor_ratio: float = 0.0
    better: Direction = "lower"
    n: str = ""

    @property
    def mean(self) -> float:
        """log(new / reference)."""
        return float(np.mean(self.logs)) - (0.0 if self.against is None else float(np.mean(self.against)))

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        sides = (self.logs,) if self.against is None else (self.logs, self.against)
        return math.hypot(*(float(np.std(x, ddof=1)) / math.sqrt(len(x)) if np.ptp(x) > 0 else 0.0 for x in sides))

    @property
    def num(self) -> int:
        """Pairs, or launches of the side that has fewer."""
        return len(self.logs) if self.against is None else min(len(self.logs), len(self.against))

    def estimate(self, reason: str | None = None) -> Estimate:
        """The geometric mean of the ratio with its 95 % interval; of a single pair without, for the given reason."""
        if self.num < 2:
            return Estimate(value=math.exp(self.mean), n=self.num, reason=reason)
        ((_, (low, high)),) = t_tests([self], CONFIDENCE)
        return Estimate(value=math.exp(self.mean), low=math.exp(low), high=math.exp(high), n=self.num)


def sample_of(reference: Sequence[float], other: Sequence[float]) -> Sample | None:
    """Launches of two runs; None where a side has none, or a value has no logarithm."""
    if not reference or not other or min(*reference, *other) <= 0:
        return None
    return Sample(logs=tuple(np.log(other).tolist()), against=tuple(np.log(reference).tolist()))


def t_tests(samples: Sequence[Sample], *confidences: float) -> list[tuple[Any, ...]]:
    """Of each sample the one-sided p of the side that its mean lies on, and two-sided intervals of the mean.

    Student's test of pairs, Welch's of two runs; samples of one shape in one call, as a call costs more than its sums.
    """
    from scipy import stats

    found = [(0.0 if one.mean else 0.5, *((one.mean, one.mean) for _ in confidences)) for one in samples]
    shapes: dict[tuple[int, int], list[int]] = {}
    for i, one in enumerate(samples):
        if one.error:  # else scipy would divide by it
            shapes.setdefault((len(one.logs), len(one.against or ())), []).append(i)
    for (_, num_against), places in shapes.items():
        logs = np.array([samples[i].logs for i in places])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # one side may have launches that are all equal
            if num_against:
                told = stats.ttest_ind(logs, [samples[i].against for i in places], equal_var=False, axis=1)
            else:
                told = stats.ttest_1samp(logs, 0.0, axis=1)
        ends = [np.transpose(told.confidence_interval(confidence)).tolist() for confidence in confidences]
        for i, p, *intervals in zip(places, told.pvalue.tolist(), *ends, strict=True):
            found[i] = (p / 2, *intervals)
    return found


def judge(samples: Mapping[Name, Sample], words: Words, *, alpha: float = ALPHA, family: str = "") -> dict[Name, Ratio]:
    """Ratio with its 95 % interval, verdict and reason of every figure of one family.

    Args:
        samples: of two pairs, or two launches a side, or more.
        words: the caller's.
        alpha: one-sided error of the whole family.
        family: what the words call it.
    """
    tests = dict(zip(samples, t_tests([*samples.values()], CONFIDENCE, 1 - 2 * alpha), strict=True))
    sides = {name: 2 if sample.better == "neither" else 1 for name, sample in samples.items()}
    adjusted = holm({name: min(1.0, sides[name] * p) for name, (p, *_) in tests.items()})
    found = {}
    for name, sample in samples.items():
        _, (low, high), within = tests[name]
        outcome = _outcome(sample.mean, within, sample.floor_ratio, words, is_told=adjusted[name] <= alpha)
        estimate = Estimate(value=math.exp(sample.mean), low=math.exp(low), high=math.exp(high), n=sample.num)
        said = getattr(words, outcome).format(
            floor=words.floor(sample.floor_ratio),
            ratio=estimate.value,
            n=sample.n,
            p=adjusted[name],
            family=family,
        )
        found[name] = estimate.judged(_verdict(outcome, sample.mean, sample.better), said)
    return found


def judge_interval(ratio: Estimate, *, better: Direction, floor_ratio: float, words: Words = OF_INTERVALS) -> Ratio:
    """A ratio that has an interval and no samples of its own."""
    if ratio.value is None or ratio.low is None or ratio.high is None:
        return ratio.judged("cannot tell", ratio.reason or "no interval")
    point, low, high = (math.log(x) if x > 0 else -math.inf for x in (ratio.value, ratio.low, ratio.high))
    outcome = _outcome(point, (low, high), floor_ratio, words, is_told=ratio.excludes(1.0))
    said = getattr(words, outcome).format(floor=words.floor(floor_ratio))
    return ratio.judged(_verdict(outcome, point, better), said)


def _outcome(point: float, within: Interval, floor_ratio: float, words: Words, *, is_told: bool) -> str:
    """Which of the words it is; everything on the log scale."""
    fall, rise = limits(floor_ratio, is_symmetric=words.is_symmetric)
    is_beyond = not fall - SLACK <= point <= rise + SLACK
    if is_told and is_beyond:
        return "told"
    if fall - SLACK <= within[0] and within[1] <= rise + SLACK:
        return "within"
    return "small" if is_told else "far" if is_beyond else "wide"


def _verdict(outcome: str, point: float, better: Direction) -> str:
    if outcome != "told":
        return "no difference shown" if outcome == "within" else "cannot tell"
    return "better" if better == ("lower" if point < 0 else "higher") else "worse"


def limits(floor_ratio: float, *, is_symmetric: bool = False) -> Interval:
    """How far a log ratio may fall and rise; without end where nothing can fall so far."""
    rise = math.log1p(floor_ratio)
    if is_symmetric:
        return -rise, rise
    return math.log1p(-floor_ratio) if floor_ratio < 1 else -math.inf, rise


def holm(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """Holm's step-down adjustment of a family's p-values (Holm 1979)."""
    adjusted, worst = {}, 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p))
        adjusted[name] = worst
    return adjusted
