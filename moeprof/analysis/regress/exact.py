"""Gates on what is counted, on routing, on quality, and bounds: no launches needed (docs/metrics.md#verdicts).

Counted facts, quality on the same text, and routing of the same tokens by the same weights, kernels and kind of device
are compared as they are, with the gate's allowance. Routing of other weights is a sample: its interval must lie on one
side of the allowance. All give one Ratio.
"""

from __future__ import annotations

import math

from moeprof.analysis.compare.same_work import other_text
from moeprof.analysis.metrics.cards import card_for
from moeprof.analysis.metrics.lookup import Key
from moeprof.analysis.regress.result import ChosenGate
from moeprof.analysis.stats.estimate import Ratio
from moeprof.analysis.stats.verdicts import SLACK
from moeprof.core.metric import Better, MetricValue
from moeprof.core.workload.gates import Gate

FINITE_SAMPLES = "differs no more than finite samples do"


def exact_gate(chosen: ChosenGate) -> Ratio:
    """A counted fact, or quality on the same text."""
    missing = _missing(chosen)
    if missing is not None:
        return missing
    assert chosen.reference is not None and chosen.other is not None, "both were measured"
    if chosen.kind == "quality" and (unlike := other_text(chosen.reference, chosen.other)) is not None:
        return Ratio(value=None, verdict="cannot tell", reason=unlike)
    return _point(chosen, "exact" if chosen.kind == "exact" else "the same text on both sides")


def routing_gate(chosen: ChosenGate, *, exact: bool, is_noise: bool = False) -> Ratio:
    """A gate on where tokens went.

    Args:
        chosen: the gate and both values.
        exact: same weights, dtype, kernels, kind of device and tokens on both sides, and the figure does not depend on
            batches: any difference is one.
        is_noise: the comparison of routing as a whole found nothing beyond finite samples; asked only where the value
            has no interval of its own.
    """
    missing = _missing(chosen)
    if missing is not None:
        return missing
    assert chosen.reference is not None and chosen.other is not None, "both were measured"
    if exact:
        return _point(chosen, "exact")
    if chosen.figure is not None and chosen.other.ci_low is None:
        ratio = _point(chosen, "same tokens, other weights or kernels")
        if is_noise and ratio.verdict in ("better", "worse"):
            return Ratio(value=ratio.value, verdict="cannot tell", reason=FINITE_SAMPLES)
        return ratio
    return _sampled(chosen)


def bound_gate(chosen: ChosenGate) -> Ratio:
    """A bound on the new run's own value: outside its interval decides, inside is undecided."""
    value, gate = chosen.other, chosen.gate
    if value is None or value.value is None:
        return _untold(value, "the new run")
    if not value.valid:
        return Ratio(value=None, verdict="cannot tell", reason=(value.reasons or ("a check failed",))[-1])
    sign, word = (1, "at most") if gate.kind == "at_most" else (-1, "at least")
    allowed = f"{word} {gate.amount:g} is allowed"
    low, high = value.ci_low, value.ci_high
    if low is None or high is None:
        if chosen.is_sample and not value.exact:
            return Ratio(value=None, verdict="cannot tell", reason=f"{value.value:g} has no interval; {allowed}")
        low = high = float(value.value)
    worst, best = (high, low) if sign > 0 else (-low, -high)
    limit = sign * gate.amount
    if worst <= limit + SLACK * abs(limit):
        return Ratio(value=None, verdict="no difference shown", reason=f"{value.value:g}: {allowed}")
    if best > limit + SLACK * abs(limit):
        return Ratio(value=None, verdict="worse", reason=f"{value.value:g}: {allowed}")
    return Ratio(value=None, verdict="cannot tell", reason=f"the interval {low:g} to {high:g} holds the bound")


def depends_on_batches(key: Key) -> bool:
    """Whether the figure depends on which requests met in a step; offline the scheduler alone decides that."""
    return card_for(key[0]).of_batches and dict(key[1]).get("traffic") in ("open", "closed")


def allowance(gate: Gate, reference: float) -> float:
    """What the value may move, in the metric's unit."""
    return gate.amount * abs(reference) if gate.kind == "ratio" else gate.amount


def worse_by(reference: float, other: float, better: Better) -> float:
    """How much worse the other value is; where both directions are worse, how far it moved."""
    moved = other - reference
    return abs(moved) if better == "neither" else moved if better == "lower" else -moved


def _point(chosen: ChosenGate, how: str) -> Ratio:
    reference, other = _numbers(chosen)
    moved, allowed = worse_by(reference, other, chosen.better), allowance(chosen.gate, reference)
    limit = allowed * (1 + SLACK)
    if moved > limit:
        verdict = "worse"
    elif -moved > limit:
        verdict = "better"
    else:
        verdict = "no difference shown"
    said = how if moved == 0 else f"{how}; moved by {_moved(reference, other)}, {_allowed(chosen)}"
    return Ratio(value=_ratio(reference, other), verdict=verdict, reason=said)


def _sampled(chosen: ChosenGate) -> Ratio:
    """A sample: how far the value moved has an interval, which must lie on one side of what is allowed."""
    reference, other = _numbers(chosen)
    between = _movement(chosen)
    if between is None:
        return Ratio(value=_ratio(reference, other), verdict="cannot tell", reason="a value has no interval")
    low, high = between
    allowed = allowance(chosen.gate, reference)
    if low > allowed * (1 + SLACK):
        verdict = "worse"
    elif high < -allowed * (1 + SLACK):
        verdict = "better"
    elif high <= allowed * (1 + SLACK):
        verdict = "no difference shown"
    else:
        verdict = "cannot tell"
    said = f"moved by {_moved(reference, other)}; worse by {low:.3g} to {high:.3g}, {_allowed(chosen)}"
    return Ratio(value=_ratio(reference, other), verdict=verdict, reason=said)


def _movement(chosen: ChosenGate) -> tuple[float, float] | None:
    """95 % interval of how much worse the value is; None where it is not known.

    A figure of the comparison of routing is a pair of the same tokens, and its interval that of the change. Two runs'
    own values are taken as independent, half their intervals add as squares.
    """
    assert chosen.reference is not None and chosen.other is not None, "both were measured"
    reference, other = _numbers(chosen)
    if chosen.figure is not None:
        ends = (chosen.other.ci_low, chosen.other.ci_high)
        moved = sorted(end - reference for end in ends if end is not None)
        if len(moved) < 2:
            return None
    else:
        halves = [_half(value) for value in (chosen.reference, chosen.other)]
        if None in halves:
            return None
        half = math.hypot(*(h for h in halves if h is not None))
        moved = [other - reference - half, other - reference + half]
    low, high = moved
    if chosen.better == "neither":
        return (0.0 if low <= 0 <= high else min(abs(low), abs(high))), max(abs(low), abs(high))
    return (low, high) if chosen.better == "lower" else (0.0 - high, 0.0 - low)


def _numbers(chosen: ChosenGate) -> tuple[float, float]:
    assert chosen.reference is not None and chosen.reference.value is not None, "the reference was measured"
    assert chosen.other is not None and chosen.other.value is not None, "the new run was measured"
    return float(chosen.reference.value), float(chosen.other.value)


def _ratio(reference: float, other: float) -> float | None:
    return other / reference if reference else None


def _half(value: MetricValue) -> float | None:
    if value.exact:
        return 0.0
    return None if value.ci_low is None or value.ci_high is None else (value.ci_high - value.ci_low) / 2


def _moved(reference: float, other: float) -> str:
    return f"{100 * (other / reference - 1):+.3g} %" if reference else f"{other - reference:+.4g}"


def _allowed(chosen: ChosenGate) -> str:
    gate = chosen.gate
    if gate.amount == 0:
        return "nothing is allowed"
    return f"{100 * gate.amount:g} % is allowed" if gate.kind == "ratio" else f"{gate.amount:g} is allowed"


def _missing(chosen: ChosenGate) -> Ratio | None:
    """Why it cannot be judged at all, or None."""
    for value, side in ((chosen.reference, "the reference"), (chosen.other, "the new run")):
        if value is None or value.value is None:
            return _untold(value, side)
        if not value.valid:
            return Ratio(value=None, verdict="cannot tell", reason=(value.reasons or ("a check failed",))[-1])
    return None


def _untold(value: MetricValue | None, side: str) -> Ratio:
    reason = value.reasons[0] if value is not None and value.reasons else "it has no such figure"
    return Ratio(value=None, verdict="cannot tell", reason=f"{side}: {reason}")
