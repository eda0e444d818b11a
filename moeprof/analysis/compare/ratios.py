"""From two values to the cell of a comparison: ratio, interval, verdict, reason (docs/metrics.md#verdicts)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from moeprof.analysis.metrics.lookup import number
from moeprof.analysis.metrics.summary import ModelSummary, Summary
from moeprof.analysis.stats import intervals
from moeprof.analysis.stats.bootstrap import Estimate
from moeprof.analysis.stats.ratio import Ratio
from moeprof.analysis.stats.verdicts import MIN_LAUNCH_PAIRS, interval_verdict, timed_verdict
from moeprof.core.metric import Better, MetricValue

PAIRED_FLOOR_RATIO = 0.05  # two processes: what differs less may be the machine


def untold(first: MetricValue, second: MetricValue, better: Better) -> Ratio:
    """A figure that one side did not measure."""
    reason = next((value.reasons[0] for value in (first, second) if value.value is None and value.reasons), None)
    return Ratio(value=None, verdict="cannot tell" if better != "neither" else "", reason=reason or "not measured")


def exact_ratio(first: MetricValue, second: MetricValue, better: Better) -> Ratio:
    """Counted facts: any difference is one. The first is the denominator."""
    assert first.value is not None and second.value is not None, "both were counted"
    if first.value == second.value:
        ratio = 1.0 if first.value else None  # nothing over nothing
        return Ratio(value=ratio, verdict=_judged("no difference shown", better), reason="exact")
    ratio = second.value / first.value if first.value else None
    kind = "better" if (second.value < first.value) == (better == "lower") else "worse"
    return Ratio(value=ratio, verdict=_judged(kind, better), reason="exact" if first.value else "the reference is 0")


def interval_ratio(first: MetricValue, second: MetricValue, better: Better, reasons: Sequence[str] = ()) -> Ratio:
    """Two values with intervals of their own, not paired: the ratio's interval by the delta method on logarithms."""
    if not first.value or not second.value or first.value < 0 or second.value < 0:
        same = first.value == second.value
        verdict = "no difference shown" if same else "cannot tell"
        return Ratio(value=None, verdict=_judged(verdict, better), reason="no ratio: a value is not above 0")
    estimate = unpaired_estimate(first, second)
    return _from_estimate(estimate, better, 0.0, reasons)


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
        verdict = _judged("cannot tell", better)
        return Ratio(value=estimate.value, low=estimate.low, high=estimate.high, verdict=verdict, reason=invalid)
    if better != "neither" and len(logs) >= MIN_LAUNCH_PAIRS:
        tested = timed_verdict(logs, better=better, floor_ratio=PAIRED_FLOOR_RATIO)
        return Ratio(
            value=estimate.value, low=estimate.low, high=estimate.high, verdict=tested.kind, reason=tested.reason
        )
    return _from_estimate(estimate, better, PAIRED_FLOOR_RATIO, reasons)


def unpaired_estimate(first: MetricValue, second: MetricValue) -> Estimate:
    """Second over first; half widths on the log scale add as squares. Equal intervals are taken as one and the same."""
    assert first.value and second.value, "both above 0"
    ratio = float(second.value) / float(first.value)
    halves = [_log_half(value) for value in (first, second)]
    if None in halves:
        return Estimate(value=ratio, reason="no interval: a value has none")
    half = math.hypot(*(h for h in halves if h is not None))
    return Estimate(value=ratio, low=ratio * math.exp(-half), high=ratio * math.exp(half))


def _log_half(value: MetricValue) -> float | None:
    """Half the width of the value's 95 % interval on the log scale; 0 for counted facts, None when unknown."""
    if value.exact:
        return 0.0
    if value.ci_low is None or value.ci_high is None or value.ci_low <= 0:
        return None
    return math.log(value.ci_high / value.ci_low) / 2


def _from_estimate(estimate: Estimate, better: Better, floor_ratio: float, reasons: Sequence[str]) -> Ratio:
    if better == "neither":
        said: list[str | None] = [estimate.reason]
        verdict = ""
    else:
        told = interval_verdict(estimate, better=better, floor_ratio=floor_ratio)
        said, verdict = [told.reason], str(told.kind)
        if not floor_ratio and estimate.low is not None:
            said = ["the interval excludes 1" if estimate.excludes(1.0) else "the interval holds 1"]
    text = "; ".join(dict.fromkeys(part for part in (*said, *reasons) if part)) or None
    return Ratio(value=estimate.value, low=estimate.low, high=estimate.high, verdict=verdict, reason=text)


def _judged(verdict: str, better: Better) -> str:
    return "" if better == "neither" else verdict


def _priced_models(summary: Summary) -> list[ModelSummary]:
    return [model for model in summary.models if number(model, "usd_per_1m_total_tokens") is not None]


def cost_ratio(first: ModelSummary, second: ModelSummary) -> tuple[float, intervals.Interval | None]:
    """Dollars for the same requests; 95 % t-interval on a log scale, over launches, or over rounds of one launch."""
    bills = [[[split.run_cost_usd for split in splits] for splits in model.launch_splits] for model in (first, second)]
    pairs = [list(zip(a, b, strict=False)) for a, b in zip(*bills, strict=False)]
    units_of_repetition = pairs if len(pairs) > 1 else [[pair] for pair in pairs[0]]
    ratios = [sum(a for a, _ in unit) / sum(b for _, b in unit) for unit in units_of_repetition if unit]
    flat = [pair for unit in pairs for pair in unit]
    return sum(a for a, _ in flat) / sum(b for _, b in flat), intervals.mean_interval(ratios)
