"""Failed checks reach the numbers they concern (METRICS section 10): data, not footnotes.

A routing check that failed (the tap's self-check, counts that do not add up) makes every router figure null with that
reason. Instruments that cost too much leave latencies standing, marked not valid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from moeprof.analysis.metrics.cards import card_for
from moeprof.analysis.metrics.overhead import LIMIT
from moeprof.core.metric import MetricValue
from moeprof.core.record.layout import LaunchRecord

FROM_ROUTING = {
    "touched_params_per_step",
    "idle_expert_bytes_per_step",
    "cold_expert_bytes",
    "hot_set_bytes_90",
    "hot_set_bytes_99",
    "cold_expert_usd_per_hour",
    "bytes_per_step",
    "flops_per_step",
    "mbu_ratio",
    "mfu_ratio",
    "roofline_s",
    "time_over_roofline_ratio",
}
ROUTING_INVARIANTS = ("routed_tokens", "counts_are_tokens_times_k")
COSTLY = f"the instruments cost more than {100 * (LIMIT - 1):.0f} % of step time: latencies are not to be used"


def judged(values: Sequence[MetricValue], launch: LaunchRecord) -> list[MetricValue]:
    """The values of one launch after its own checks."""
    broken = broken_routing(launch)
    costly = any(v.name == "instrumentation_overhead_ratio" and not v.valid for v in values)
    return [_judge(value, broken, costly) for value in values]


def broken_routing(launch: LaunchRecord) -> str | None:
    """Why router figures of this launch are void, or None."""
    failure = launch.info.self_check.failure
    if failure is not None:
        return f"the routing tap failed its self-check: {failure}"
    for passed in launch.passes:
        invariants = passed.info.invariants or {}
        for name in ROUTING_INVARIANTS:
            if name in invariants and not invariants[name].passed:
                return f"{passed.name}: {name.replace('_', ' ')}: {invariants[name].text}"
    return None


def _judge(value: MetricValue, broken: str | None, costly: bool) -> MetricValue:
    section = card_for(value.name).section
    if broken is not None and (section == "routing" or value.name in FROM_ROUTING):
        return replace(value, value=None, ci_low=None, ci_high=None, valid=False, reasons=(broken,))
    if costly and section == "latency" and value.value is not None:
        return replace(value, valid=False, reasons=(*value.reasons, COSTLY))
    return value
