"""Ratios of stored runs: Welch on launches, Holm over a family, and a floor."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from moeprof.analysis.metrics.cards import card_for
from moeprof.analysis.metrics.lookup import Key
from moeprof.analysis.stats import intervals
from moeprof.analysis.stats.ratio import Ratio
from moeprof.analysis.stats.verdicts import ALPHA, holm
from moeprof.analysis.stats.welch import Welch, welch
from moeprof.core.metric import Better

STORED_FLOOR_RATIO = 0.10


FEWEST_LAUNCHES = 5


def stored_ratios(
    samples: Mapping[Key, tuple[Sequence[float], Sequence[float]]], gates: Collection[Key]
) -> dict[Key, Ratio]:
    """Ratio, interval and verdict of every timed figure.

    Args:
        samples: figure -> each launch's value in the reference and in the other run.
        gates: those that share the first family.
    """
    tests = {key: welch(*pair) for key, pair in samples.items()}
    enough = {key for key, pair in samples.items() if min(map(len, pair)) >= FEWEST_LAUNCHES}
    judged = {key: test for key, test in tests.items() if test is not None and key in enough}
    families = ([key for key in judged if key in gates], [key for key in judged if key not in gates])
    adjusted = {key: p for family in families for key, p in holm({k: judged[k].p_one_sided for k in family}).items()}
    found = {}
    for key, test in tests.items():
        better = card_for(key[0]).better
        if test is None or key not in enough:
            found[key] = _too_few(test, samples[key], better)
        else:
            found[key] = _judged(test, adjusted[key], better, gate=key in gates)
    return found


def _too_few(test: Welch | None, pair: tuple[Sequence[float], Sequence[float]], better: Better) -> Ratio:
    num = min(map(len, pair))
    value, low, high = None, None, None
    if test is not None:
        value, (low, high) = math.exp(test.mean), test.interval(intervals.CONFIDENCE)
    elif num and min(*pair[0], *pair[1]) > 0:
        value = math.exp(float(np.log(pair[1]).mean() - np.log(pair[0]).mean()))
    reason = f"needs {FEWEST_LAUNCHES} launches a side, found {num}"
    if num >= 1 and value is None:
        reason = "no ratio: a value is not above 0"
    return Ratio(value=value, low=low, high=high, verdict="" if better == "neither" else "cannot tell", reason=reason)


def _judged(test: Welch, p: float, better: Better, *, gate: bool) -> Ratio:
    low, high = test.interval(intervals.CONFIDENCE)
    floor = math.log1p(STORED_FLOOR_RATIO)
    beyond = abs(test.mean) > floor
    family = "gate" if gate else "one of many, no gate"
    if p <= ALPHA and beyond:
        verdict = "better" if (test.mean < 0) == (better == "lower") else "worse"
        reason = f"p = {p:.2g} ({family}, Holm), beyond the floor of {STORED_FLOOR_RATIO:.0%}"
    elif max(abs(math.log(end)) for end in test.interval(1 - 2 * ALPHA)) <= floor:
        verdict, reason = "no difference shown", f"the interval lies within {STORED_FLOOR_RATIO:.0%} ({family})"
    else:
        verdict = "cannot tell"
        reason = f"not told from chance: p = {p:.2g} ({family}, Holm)"
        reason = reason if beyond else f"the interval reaches beyond {STORED_FLOOR_RATIO:.0%} ({family})"
    return Ratio(value=math.exp(test.mean), low=low, high=high, verdict="" if better == "neither" else verdict,
                 reason=reason)  # fmt: skip
