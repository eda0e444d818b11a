"""Failed checks reach the numbers they concern (docs/metrics.md#validity): data, not footnotes.

A routing check that failed (the tap's self-check, counts that do not add up) makes every router figure null with that
reason. Instruments that cost too much leave latencies standing, marked not valid. What a deployment does not offer
(``lacks`` of launch.json) makes every figure that would be made of it null, with the reason of the deployment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from moeprof.analysis.metrics.cards import card_for
from moeprof.analysis.metrics.overhead import LIMIT
from moeprof.core.metric import MetricValue
from moeprof.core.record.layout import LaunchRecord

ROUTING_INVARIANTS = ("routed_tokens", "counts_are_tokens_times_k")
COSTLY = f"the instruments cost more than {100 * (LIMIT - 1):.0f} % of step time: latencies are not to be used"


def judged(values: Sequence[MetricValue], launch: LaunchRecord) -> list[MetricValue]:
    """The values of one launch after its own checks."""
    broken = broken_routing(launch)
    costly = any(v.name == "instrumentation_overhead_ratio" and not v.valid for v in values)
    lacks = launch.info.lacks
    return [_without(_judge(value, broken, costly), lacks) for value in values]


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


def _without(value: MetricValue, lacks: Mapping[str, str]) -> MetricValue:
    """Null where the deployment does not offer what the figure is made of."""
    if not lacks:
        return value
    card = card_for(value.name)
    found: list[str] = [card.needs] if card.needs is not None else []
    found += ["routing"] * card.from_routing
    found += ["steps"] * (value.labels.get("window") == "steady")  # a window that is found by steps
    reason = next((lacks[need] for need in found if need in lacks), None)
    if reason is None:
        return value
    return replace(value, value=None, ci_low=None, ci_high=None, valid=False, reasons=(reason,))


def _judge(value: MetricValue, broken: str | None, costly: bool) -> MetricValue:
    card = card_for(value.name)
    if broken is not None and card.from_routing:
        return replace(value, value=None, ci_low=None, ci_high=None, valid=False, reasons=(broken,))
    is_latency = card.section == "latency" or (card.section == "conversations" and card.unit == "s")
    if costly and is_latency and value.value is not None:
        return replace(value, valid=False, reasons=(*value.reasons, COSTLY))
    return value
