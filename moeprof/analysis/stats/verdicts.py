"""Is it worse? One rule, whoever asks.

*worse* or *better*: significant, and the point lies beyond the floor; *no difference shown*: the interval lies within
the floor; else *cannot tell*. A sample is significant by a one-sided t-test on logarithms (of launch pairs, or Welch's
on the launches of two runs) whose p, adjusted by Holm over its family, is at most alpha; its interval for *no
difference* has confidence 1 - 2 alpha and is not adjusted, as it is no alarm. A figure that has only an interval is
significant where that excludes 1.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from moeprof.analysis.stats.estimate import Estimate, Ratio, narrow, ratio_of_logs
from moeprof.analysis.stats.intervals import CONFIDENCE, FEWEST_REPEATS, Interval

Direction = Literal["lower", "higher", "neither"]  # which is better; of "neither", any change is worse
Name = TypeVar("Name", bound=Hashable)
LOCKSTEP_FLOOR_RATIO = 0.015
MIN_LAUNCH_PAIRS = 6
ALPHA = 0.01  # one-sided, of a whole family
SLACK = 1e-9  # what lies at the threshold itself is allowed, whatever the last bit says


# What was found -> how it is said, whoever asks.
WORDS = {
    "shown": "differs by more than {floor} ({why})",
    "within": "the interval lies within {floor} ({why})",
    "small": "differs ({why}), but is not shown to differ by more than {floor}",
    "far": "more than {floor} apart, but no more than repeats differ by chance ({why})",
    "wide": "the interval reaches beyond {floor} ({why})",
}


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

    def estimate(self) -> Estimate:
        """The geometric mean of the ratio with its 95 % interval; without one where there are too few launches."""
        if self.against is None:
            return ratio_of_logs(self.logs, "launch pair")
        if self.num < FEWEST_REPEATS:
            return Estimate(value=math.exp(self.mean), n=self.num)
        ((_, (low, high)),) = t_tests([self], CONFIDENCE)
        found = Estimate(value=math.exp(self.mean), low=math.exp(low), high=math.exp(high), n=self.num)
        return narrow(found, f"launches of a run differ too much for {self.num} a side")


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
                tested = stats.ttest_ind(logs, [samples[i].against for i in places], equal_var=False, axis=1)
            else:
                tested = stats.ttest_1samp(logs, 0.0, axis=1)
        ends = [np.transpose(tested.confidence_interval(confidence)).tolist() for confidence in confidences]
        for i, p, *intervals in zip(places, tested.pvalue.tolist(), *ends, strict=True):
            found[i] = (p / 2, *intervals)
    return found


def judge(
    samples: Mapping[Name, Sample],
    *,
    alpha: float = ALPHA,
    within_alpha: float | None = None,
    family: str = "",
    is_symmetric: bool = True,
) -> dict[Name, Ratio]:
    """Ratio with its 95 % interval, verdict and reason of every figure of one family.

    Args:
        samples: of two pairs, or two launches a side, or more.
        alpha: one-sided error of the whole family.
        within_alpha: one-sided error of *no difference shown*; None: alpha.
        family: what p was adjusted over, for the reason.
        is_symmetric: see :func:`limits`.
    """
    confidence = 1 - 2 * (alpha if within_alpha is None else within_alpha)
    tests = dict(zip(samples, t_tests([*samples.values()], CONFIDENCE, confidence), strict=True))
    sides = {name: 2 if sample.better == "neither" else 1 for name, sample in samples.items()}
    adjusted = holm({name: min(1.0, sides[name] * p) for name, (p, *_) in tests.items()})
    found = {}
    for name, sample in samples.items():
        _, (low, high), within = tests[name]
        fall, rise = limits(sample.floor_ratio, is_symmetric=is_symmetric)
        outcome = _outcome(sample.mean, within, (fall, rise), is_significant=adjusted[name] <= alpha)
        estimate = Estimate(value=math.exp(sample.mean), low=math.exp(low), high=math.exp(high), n=sample.num)
        parts = (f"p = {adjusted[name]:.2g}", sample.n and f"over {sample.n}", family)
        said = WORDS[outcome].format(
            floor=_floor_text(sample.floor_ratio), why=", ".join(part for part in parts if part)
        )
        found[name] = estimate.judged(_verdict(outcome, sample.mean, sample.better), said)
    return found


def judge_interval(ratio: Estimate, *, better: Direction, floor_ratio: float) -> Ratio:
    """A ratio that has an interval and no samples of its own."""
    if ratio.value is None or ratio.low is None or ratio.high is None:
        return ratio.judged("cannot tell", ratio.reason or "no interval")
    point, low, high = (math.log(x) if x > 0 else -math.inf for x in (ratio.value, ratio.low, ratio.high))
    is_significant = ratio.excludes(1.0)
    outcome = _outcome(point, (low, high), limits(floor_ratio, is_symmetric=True), is_significant=is_significant)
    why = "the interval excludes 1" if is_significant else "the interval holds 1"
    said = WORDS[outcome].format(floor=_floor_text(floor_ratio), why=why) if floor_ratio else why
    return ratio.judged(_verdict(outcome, point, better), said)


def _floor_text(ratio: float) -> str:
    return f"{ratio:.3g}" if ratio < 1e-4 else f"{100 * ratio:.3g} %"


def _outcome(point: float, within: Interval, allowed: Interval, *, is_significant: bool) -> str:
    """Which of the words it is; everything on the log scale."""
    fall, rise = allowed[0] - SLACK, allowed[1] + SLACK
    is_beyond = not fall <= point <= rise
    if is_significant and is_beyond:
        return "shown"
    if fall <= within[0] and within[1] <= rise:
        return "within"
    return "small" if is_significant else "far" if is_beyond else "wide"


def _verdict(outcome: str, point: float, better: Direction) -> str:
    if outcome != "shown":
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
