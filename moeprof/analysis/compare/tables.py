"""A metric of several models or runs with its ratios to a reference, and which metrics stand on the first screen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moeprof.analysis.metrics.labels import FIRST_SCREEN
from moeprof.analysis.metrics.lookup import Key, by_key, highest_percentile, key_of, pick
from moeprof.analysis.metrics.summary import ModelSummary
from moeprof.analysis.stats.estimate import Ratio
from moeprof.core.metric import MetricValue


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One metric of several models or runs: values and ratios, None in the reference's own place."""

    values: tuple[MetricValue | None, ...]
    ratios: tuple[Ratio | None, ...]


def headline_keys(models: Sequence[ModelSummary]) -> dict[str, Key]:
    """Label -> which metric stands on the first screen, as the first of the models that has it means it."""
    found: dict[str, Key] = {}
    for label, name, labels in FIRST_SCREEN:
        own = True if labels.get("own") else None
        rest = {key: value for key, value in labels.items() if key != "own"}
        if name.endswith("+"):
            quantity = name[:-1]
            name = highest_percentile(tuple(models), quantity)
            label = f"{label} {name.removeprefix(quantity + '_').removesuffix('_s').replace('_', '.')}"
        picked = (pick(model, name, own_traffic=own, **rest) for model in models if _measured(model))
        value = next((value for value in picked if value is not None), None)
        if value is not None:
            found[label] = key_of(value)
    return found


def _measured(model: ModelSummary) -> bool:
    return model.facts is not None and bool(by_key(model.metrics))
