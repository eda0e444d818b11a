"""Metric values by what they are: name and labels, without those that only say how a figure came about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from moeprof.core.metric import MetricValue

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
