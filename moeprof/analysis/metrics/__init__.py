"""All subjects: one file each, with the cards of its metrics (``CARDS``) and the function that works them out.

Adding a metric is one file with ``CARDS`` and ``compute(context) -> list[MetricValue]``, and a row here. The values of
a model stand in the order of the rows.
"""

from __future__ import annotations

from typing import Literal

# How often ``compute`` is called: once a model; once a launch; in each launch with the rounds of the workload's own
# traffic; in each launch for each kind of traffic (the rounds, and the capacity passes of an open loop). None: a run
# alone has no such figure, comparisons work it out.
Scope = Literal["model", "launch", "rounds", "traffic"]

SUBJECTS: dict[str, Scope | None] = {
    "moeprof.analysis.metrics.resources.parameters": "model",
    "moeprof.analysis.metrics.quality": "model",
    "moeprof.analysis.metrics.latency": "traffic",
    "moeprof.analysis.metrics.throughput": "traffic",
    "moeprof.analysis.metrics.cost.metrics": "traffic",
    "moeprof.analysis.metrics.resources.energy": "traffic",
    "moeprof.analysis.metrics.resources.work": "traffic",
    "moeprof.analysis.metrics.variance": "traffic",
    "moeprof.analysis.metrics.attribution": "traffic",
    "moeprof.analysis.metrics.routing.metrics": "rounds",
    "moeprof.analysis.metrics.resources.memory": "rounds",
    "moeprof.analysis.metrics.overhead": "launch",
    "moeprof.analysis.metrics.resources.reference_kernel": "launch",
    "moeprof.analysis.metrics.routing.picks": "model",
    "moeprof.analysis.metrics.resources.breakdown": "model",
    "moeprof.analysis.metrics.comparison": None,
}
