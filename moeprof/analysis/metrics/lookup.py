"""Finding a metric among a model's values, the way a reader means it.

"TTFT" means the workload's own traffic, "dollars" the priced passes (the capacity pass of an open-loop run); both mean
the total window unless said otherwise.

Metric values by what they are: name and labels, without those that only say how a figure came about.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from moeprof.analysis.metrics.cards import card_for
from moeprof.analysis.metrics.summary import ModelSummary
from moeprof.core.baseline.baseline import BaselineModel
from moeprof.core.metric import MetricValue

PROVENANCE = {"traffic", "energy_source", "memory", "split_method"}  # say how a figure came about, not which it is
PRICED_SECTIONS = ("cost", "throughput", "work", "energy")
HIGH_PERCENTILES = ("p99_9", "p99", "p95", "p90")


def pick(model: ModelSummary, name: str, *, own_traffic: bool | None = None, **labels: str) -> MetricValue | None:
    """The value of ``name`` with these labels and no others but traffic and window.

    Args:
        model: whose.
        name: full metric name.
        own_traffic: True = the workload's own traffic, False = the priced passes, None = by the metric's section.
        labels: phase, layer, request_class, group...
    """
    passes = model.rounds if _means_own(name, own_traffic) else model.priced
    return _pick_among(model.metrics, name, passes[0].traffic if passes else None, labels)


def pick_frozen(
    model: BaselineModel, name: str, *, own_traffic: bool | None = None, **labels: str
) -> MetricValue | None:
    """As :func:`pick`, among the values of a baseline."""
    traffic = model.own_traffic if _means_own(name, own_traffic) else model.priced_traffic
    return _pick_among(model.metrics, name, traffic, labels)


def _means_own(name: str, own_traffic: bool | None) -> bool:
    return card_for(name).section not in PRICED_SECTIONS if own_traffic is None else own_traffic


def _pick_among(
    values: Iterable[MetricValue], name: str, traffic: str | None, labels: Mapping[str, str]
) -> MetricValue | None:
    wanted = {"window": "total", **labels}
    for value in values:
        if value.name != name or value.labels.get("traffic", traffic) != traffic:
            continue
        rest = {key: label for key, label in value.labels.items() if key not in PROVENANCE}
        if "window" not in rest:
            rest["window"] = wanted["window"]
        if rest == wanted:
            return value
    return None


def number(model: ModelSummary, name: str, *, own_traffic: bool | None = None, **labels: str) -> float | None:
    """The bare number, or None."""
    value = pick(model, name, own_traffic=own_traffic, **labels)
    return None if value is None or value.value is None else float(value.value)


def highest_percentile(models: tuple[ModelSummary, ...], quantity: str) -> str:
    """The highest percentile of ``quantity`` that some model's sample supports, as a metric name."""
    for label in HIGH_PERCENTILES:
        name = f"{quantity}_{label}_s"
        if any(number(model, name) is not None for model in models):
            return name
    return f"{quantity}_{HIGH_PERCENTILES[-1]}_s"


Key = tuple[str, tuple[tuple[str, str], ...]]
HOW = {"energy_source", "memory", "split_method"}
DETAIL = {"layer", "experts", "launch"}  # too many to set side by side: they stay in summary.json


def key_of(value: MetricValue) -> Key:
    """What the value is, whichever launch it is of."""
    labels = {name: label for name, label in value.labels.items() if name not in HOW and name != "launch"}
    return value.name, tuple(sorted(labels.items()))


def by_key(values: Iterable[MetricValue]) -> dict[Key, MetricValue]:
    """Values of all launches together, without the finest cuts."""
    return {key_of(value): value for value in values if not DETAIL & set(value.labels)}


def by_launch(values: Iterable[MetricValue]) -> dict[Key, dict[int, float]]:
    """Each launch's own value of each metric, by number of the launch; empty for a run of one launch."""
    found: dict[Key, dict[int, float]] = {}
    for value in values:
        if "launch" in value.labels and value.value is not None and not {"layer", "experts"} & set(value.labels):
            found.setdefault(key_of(value), {})[int(value.labels["launch"])] = float(value.value)
    return found


def labels_of(key: Key) -> Mapping[str, str]:
    """The labels of a key."""
    return dict(key[1])
