"""Verdicts of timed gates, one family (docs/metrics.md#verdicts): one-sided tests on logarithms, adjusted by Holm.

*worse*: the adjusted interval excludes 1 and the point lies beyond the threshold; *better*: mirrored; *no difference
shown*: the interval (of confidence 1 - 2 alpha, not adjusted: it is no alarm) lies within the threshold; else *cannot
tell*. A threshold of 3 % is a rise to 1.03 or a fall to 0.97.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import TypeVar

from moeprof.analysis.stats import intervals
from moeprof.analysis.stats.ratio import Ratio
from moeprof.analysis.stats.verdicts import ALPHA, TimedSample, holm

Name = TypeVar("Name", bound=Hashable)


def judge_family(samples: Mapping[Name, TimedSample], alpha: float = ALPHA) -> dict[Name, Ratio]:
    """Ratio with its 95 % interval, verdict and reason of every gate of the family.

    Args:
        samples: all timed gates in use that have enough launches.
        alpha: one-sided error of the whole family.
    """
    adjusted = holm({name: sample.p for name, sample in samples.items()})
    return {name: _judged(sample, adjusted[name], len(samples), alpha) for name, sample in samples.items()}


def _judged(sample: TimedSample, p: float, family: int, alpha: float) -> Ratio:
    low, high = sample.test.interval(intervals.CONFIDENCE)
    least, most = (math.log(end) for end in sample.test.interval(1 - 2 * alpha))
    limit = f"{sample.limit_ratio:.3g}" if sample.limit_ratio < 1e-4 else f"{100 * sample.limit_ratio:g} %"
    how = f"over {sample.n}, p = {p:.2g}" + (f" (Holm over {family} timed gates)" if family > 1 else "")
    if p <= alpha and sample.is_beyond:
        verdict, reason = _side(sample), f"told from chance {how}, and beyond {limit}"
    elif -sample.fall <= least and most <= sample.rise:
        verdict, reason = "no difference shown", f"the interval over {sample.n} lies within {limit}"
    elif p <= alpha:
        verdict, reason = "cannot tell", f"a difference ({how}), but not shown to lie above or below {limit}"
    elif sample.is_beyond:
        verdict, reason = "cannot tell", f"beyond {limit}, but not told from chance {how}"
    else:
        verdict, reason = "cannot tell", f"the interval over {sample.n} reaches beyond {limit}"
    return Ratio(value=math.exp(sample.test.mean), low=low, high=high, verdict=verdict, reason=reason)


def _side(sample: TimedSample) -> str:
    if sample.better == "neither":
        return "worse"
    return "better" if (sample.test.mean < 0) == (sample.better == "lower") else "worse"
