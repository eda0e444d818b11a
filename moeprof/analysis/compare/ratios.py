"""From two values to the cell of a comparison: ratio, interval, verdict, reason (docs/metrics.md#verdicts)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from moeprof.analysis.metrics.cards import card_for
from moeprof.analysis.metrics.lookup import Key, number
from moeprof.analysis.metrics.summary import ModelSummary, Summary
from moeprof.analysis.stats.estimate import Estimate, Ratio, narrow
from moeprof.analysis.stats.verdicts import (
    MIN_LAUNCH_PAIRS,
    Sample,
    judge,
    judge_interval,
    sample_of,
)
from moeprof.core.metric import Better, MetricValue

PAIRED_FLOOR_RATIO = 0.05  # two processes: what differs less may be the machine
STORED_FLOOR_RATIO = 0.10
FEWEST_LAUNCHES = 5
TOO_FEW_REQUESTS = "launches repeat the requests, and these are too few to show it"


def untold(first: MetricValue, second: MetricValue, better: Better) -> Ratio:
    """A figure that one side did not measure."""
    reason = next((value.reasons[0] for value in (first, second) if value.value is None and value.reasons), None)
    return Ratio(value=None, verdict=_unless_neither("cannot tell", better), reason=reason or "not measured")


def exact_ratio(first: MetricValue, second: MetricValue, better: Better) -> Ratio:
    """Counted facts: any difference is one. The first is the denominator."""
    assert first.value is not None and second.value is not None, "both were counted"
    if first.value == second.value:
        ratio = 1.0 if first.value else None  # nothing over nothing
        return Ratio(value=ratio, verdict=_unless_neither("no difference shown", better), reason="exact")
    ratio = second.value / first.value if first.value else None
    kind = "better" if (second.value < first.value) == (better == "lower") else "worse"
    reason = "exact" if first.value else "the reference is 0"
    return Ratio(value=ratio, verdict=_unless_neither(kind, better), reason=reason)


def interval_ratio(first: MetricValue, second: MetricValue, better: Better) -> Ratio:
    """Two values with intervals of their own, not paired: the ratio's interval by the delta method on logarithms."""
    if not first.value or not second.value or first.value < 0 or second.value < 0:
        verdict = "no difference shown" if first.value == second.value else "cannot tell"
        return Ratio(value=None, verdict=_unless_neither(verdict, better), reason="no ratio: a value is not above 0")
    return estimated_ratio(unpaired_estimate(first, second), better)


def as_requests_tell(ratio: Ratio, first: MetricValue, second: MetricValue) -> Ratio:
    """A verdict that launches gave on a share of requests: all of them repeat the same ones, which must show it too."""
    card = card_for(first.name)
    if not card.of_requests or ratio.verdict not in ("better", "worse"):
        return ratio
    own = interval_ratio(first, second, card.better)
    if own.verdict == ratio.verdict:
        return ratio
    ends = [end for one in (ratio, own) for end in (one.low, one.high) if end is not None]
    low, high = (min(ends), max(ends)) if ends else (None, None)
    return replace(ratio, low=low, high=high, verdict="cannot tell", reason=TOO_FEW_REQUESTS)


def timed_pair_ratio(
    estimate: Estimate, better: Better, *, logs: Sequence[float] = (), reasons: Sequence[str] = (), invalid: str | None
) -> Ratio:
    """A paired ratio of one run, judged against the floor of two processes.

    Args:
        estimate: the ratio.
        better: direction of the metric.
        logs: log ratio per launch pair; with enough of them a t-test decides, else the interval.
        reasons: said beside the verdict's own.
        invalid: why one of the values failed a check, or None.
    """
    if invalid is not None:
        return estimate.judged(_unless_neither("cannot tell", better), invalid)
    if better != "neither" and len(logs) >= MIN_LAUNCH_PAIRS:
        sample = Sample(
            logs=tuple(logs), floor_ratio=PAIRED_FLOOR_RATIO, better=better, n=f"{len(logs)} launch pairs"
        )  # fmt: skip
        tested = judge({"": sample})[""]
        return estimate.judged(tested.verdict, tested.reason)
    return estimated_ratio(estimate, better, PAIRED_FLOOR_RATIO, reasons)


def estimated_ratio(estimate: Estimate, better: Better, floor_ratio: float = 0.0, reasons: Sequence[str] = ()) -> Ratio:
    """A ratio judged by its interval; what differs by less than the floor may be the machine."""
    judged = judge_interval(estimate, better=better, floor_ratio=floor_ratio)
    said = estimate.reason if better == "neither" else judged.reason
    text = (
        "; ".join(dict.fromkeys(part for part in (said, *(reasons if estimate.low is not None else ())) if part))
        or None
    )
    return estimate.judged(_unless_neither(judged.verdict, better), text)


def stored_ratios(
    samples: Mapping[Key, tuple[Sequence[float], Sequence[float]]], gates: Collection[Key]
) -> dict[Key, Ratio]:
    """Ratio, interval and verdict of every timed figure of two runs, by each launch's value in either.

    The few gates share one error (Holm); every other timed figure belongs to a second family of its own, so that a page
    with hundreds of figures does not call chance a change.
    """
    known = {key: sample_of(*pair) for key, pair in samples.items()}
    enough = {
        key: replace(
            sample,
            floor_ratio=STORED_FLOOR_RATIO,
            better="higher" if _better(key) == "higher" else "lower",
            n=" against ".join(str(len(side)) for side in reversed(samples[key])) + " launches",
        )
        for key, sample in known.items()
        if sample is not None and sample.num >= FEWEST_LAUNCHES
    }
    few = {key: _too_few(sample, samples[key]) for key, sample in known.items() if key not in enough}
    own = {key: sample for key, sample in enough.items() if key in gates}
    others = {key: sample for key, sample in enough.items() if key not in gates}
    families = judge(own, family="Holm over gates"), judge(others, family="Holm over all figures without a gate")
    found = few | families[0] | families[1]
    return {key: replace(ratio, verdict=_unless_neither(ratio.verdict, _better(key))) for key, ratio in found.items()}


def _better(key: Key) -> Better:
    return card_for(key[0]).better


def _too_few(sample: Sample | None, pair: tuple[Sequence[float], Sequence[float]]) -> Ratio:
    num = min(map(len, pair))
    if sample is None and num:
        return Ratio(value=None, verdict="cannot tell", reason="no ratio: a value is not above 0")
    estimate = Estimate(value=None) if sample is None else sample.estimate()
    return estimate.judged("cannot tell", f"needs {FEWEST_LAUNCHES} launches a side, found {num}")


def _unless_neither(verdict: str, better: Better) -> str:
    return "" if better == "neither" else verdict


def unpaired_estimate(first: MetricValue, second: MetricValue) -> Estimate:
    """Second over first; half widths on the log scale add as squares, as the two are taken to be independent."""
    assert first.value and second.value, "both above 0"
    ratio = float(second.value) / float(first.value)
    halves = [_log_half(value) for value in (first, second)]
    if None in halves:
        bare = first if halves[0] is None else second
        why = next(
            (reason for reason in bare.reasons if reason.startswith("no interval")),
            "one launch gives no interval of it",
        )
        return Estimate(value=ratio, reason=why)
    half = math.hypot(*(h for h in halves if h is not None))
    found = Estimate(value=ratio, low=ratio * math.exp(-half), high=ratio * math.exp(half))
    return narrow(found, "no interval: that of the values is too wide")


def _log_half(value: MetricValue) -> float | None:
    """Half the width of the value's 95 % interval on the log scale; 0 for counted facts, None when unknown."""
    if value.exact:
        return 0.0
    if value.ci_low is None or value.ci_high is None or value.ci_low <= 0:
        return None
    return math.log(value.ci_high / value.ci_low) / 2


def priced_models(summary: Summary) -> list[ModelSummary]:
    """The models that have a price."""
    return [model for model in summary.models if number(model, "usd_per_1m_total_tokens") is not None]
