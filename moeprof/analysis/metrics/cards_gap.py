"""Cards of the itemised steps: where the time of a step goes, and how far it is from its roofline."""

from __future__ import annotations

from moeprof.core.metric import Better, Card

_SOURCE = "moeprof METRICS section 5, per part of a step; kernels and operations by torch.profiler"


def _card(name: str, title: str, formula: str, unit: str = "s", better: Better = "lower") -> Card:
    return Card(name=name, title=title, unit=unit, better=better, formula=formula, source=_SOURCE, section="gap")


CARDS: tuple[Card, ...] = (
    _card("gap_step_s", "step of this size", "median wall time of repeated steps, as the engine is configured"),
    _card("gap_step_device_s", "of it on the device", "median time between device events around the step"),
    _card("gap_roofline_s", "least time", "max(bytes / measured bandwidth, FLOPs / measured matrix rate) of the step"),
    _card("gap_time_over_roofline_ratio", "time over the limit", "gap_step_s / gap_roofline_s", "ratio"),
    _card("gap_s", "gap", "gap_step_s - sum over parts of gap_part_roofline_s: the sum of the parts' excesses"),
    _card(
        "gap_part_s",
        "part of a step",
        "seconds of the part's kernels (device) or operations (CPU), median over profiled steps; launches: device "
        "time - kernels; host: wall - device time (CPU: between operations); not_itemised: what is left of gap_step_s",
    ),
    _card(
        "gap_part_roofline_s",
        "least time of a part",
        "max(bytes / measured bandwidth, FLOPs / measured matrix rate) of the part; launches and host need 0",
    ),
    _card(
        "gap_launches_per_step",
        "launches per step",
        "kernels (device) or outermost operations (CPU) of one eager step",
        "launches",
    ),
    _card(
        "gap_profiled_over_plain_ratio",
        "profiled over plain step",
        "median wall time of the profiled, eager steps / gap_step_s: how far profiling stretched what it shows",
        "ratio",
        "neither",
    ),
)
