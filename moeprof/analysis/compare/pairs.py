"""Two models of one run, measured on the same schedule: which of their samples belong together.

A launch of one pairs with the same launch of the other; in a run of one launch, a round with the same round. Both are
interleaved, so a pair shares the state of the machine. Means over requests are also paired request by request.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from moeprof.analysis.metrics.cards import card_for
from moeprof.analysis.metrics.cost.metrics import cost_metrics
from moeprof.analysis.metrics.latency import latency_metrics
from moeprof.analysis.metrics.lookup import Key, by_key, by_launch, labels_of
from moeprof.analysis.metrics.resources.energy import energy_metrics
from moeprof.analysis.metrics.samples import span_samples, tpot_samples
from moeprof.analysis.metrics.summary import ModelSummary
from moeprof.analysis.metrics.tables import ALL, PassTables
from moeprof.analysis.metrics.throughput import throughput_metrics
from moeprof.analysis.metrics.variance import variance_metrics
from moeprof.analysis.stats import intervals
from moeprof.analysis.stats.arrays import FloatArray
from moeprof.analysis.stats.estimate import Estimate, narrow, ratio_of_logs
from moeprof.core.metric import MetricValue
from moeprof.core.pricing import Pricing
from moeprof.core.workload.workload import Slo

FEWEST_SHARED = 10  # requests of two models that a paired ratio needs
REQUEST_MEAN = re.compile(r"((?:queue|ttft|e2e)(?:_from_sent)?|tpot)_mean_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeats:
    """Every timed figure of a model once per unit of repetition.

    Attributes:
        unit: ``launch``, or ``round`` in a run of one launch.
        of_launches: metric -> number of the launch -> value; empty in a run of one launch.
        of_rounds: works out the same by number of the round: of the bill, or of everything else.
    """

    unit: str
    of_launches: Mapping[Key, Mapping[int, float]]
    of_rounds: Callable[[bool], Mapping[Key, Mapping[int, float]]]

    def of(self, key: Key) -> Mapping[int, float]:
        """Number of the launch or round -> the figure's value in it."""
        found = self.of_launches if self.unit == "launch" else self.of_rounds(card_for(key[0]).section == "cost")
        return found.get(key, {})


def repeats(model: ModelSummary, pricing: Pricing, slo: Slo) -> Repeats:
    """The repeated measurements of a model. Those of rounds are computed when asked for, from each round alone."""
    launches = by_launch(model.metrics)

    @cache
    def of_rounds(is_bill: bool) -> Mapping[Key, Mapping[int, float]]:
        found: dict[Key, dict[int, float]] = {}
        for tables in (*model.rounds, *model.capacity):
            number = int(tables.name.rpartition("-")[2])  # a round that never began leaves a gap, and pairs nobody
            values = _bill(model, tables, pricing) if is_bill else _all_else(tables, slo)
            for key, value in by_key(values).items():
                if value.value is not None:
                    found.setdefault(key, {})[number] = float(value.value)
        return found

    return Repeats(unit="launch" if launches else "round", of_launches=launches, of_rounds=of_rounds)


def _bill(model: ModelSummary, tables: PassTables, pricing: Pricing) -> list[MetricValue]:
    splits = [split for split in model.splits if split.name == tables.name]
    if not splits or model.facts is None:
        return []
    return cost_metrics([tables], pricing, model.facts, splits=splits)


def _all_else(tables: PassTables, slo: Slo) -> list[MetricValue]:
    values = latency_metrics([tables], slo) + throughput_metrics([tables], slo)
    return values + energy_metrics([tables]) + variance_metrics([tables])


def paired_logs(first: Mapping[int, float], second: Mapping[int, float]) -> list[float]:
    """log(first / second) per launch or round that both have, where both are above 0."""
    both = sorted(set(first) & set(second))
    return [math.log(first[i] / second[i]) for i in both if first[i] > 0 and second[i] > 0]


def ratio_of_pairs(logs: Sequence[float], unit: str = "round") -> Estimate:
    """The geometric mean of paired ratios with its 95 % t-interval on the log scale; ``unit``: launch or round."""
    if not logs:
        return Estimate(value=None, reason="no pair of launches or rounds has this figure in both")
    return ratio_of_logs(logs, unit)


def ratio_of_requests(key: Key, first: ModelSummary, second: ModelSummary, seed: int = 0) -> Estimate | None:
    """Ratio of two means over the same requests; 95 % interval by resampling blocks of neighbouring requests in pairs.

    None for figures that are no mean over requests, and where the models share fewer than ten requests.
    """
    matched, labels = REQUEST_MEAN.fullmatch(key[0]), labels_of(key)
    if matched is None or labels.get("window") != "total":
        return None
    one, other = (_per_request(model, matched[1], labels) for model in (first, second))
    both = sorted(set(one) & set(other))
    if len(both) < FEWEST_SHARED:
        return None
    return _ratio_of_sums(np.array([[one[row], other[row]] for row in both]), seed)


def ratio_of_texts(first: ModelSummary, second: ModelSummary, seed: int = 0) -> Estimate | None:
    """Ratio of the bits that two models need for the same outputs, request by request; None where texts differ.

    Some text is hard for every model: what differs between requests is not what differs between models.
    """
    sides = [next((q.per_request for one in m.record.launches if (q := one.info.quality)), ()) for m in (first, second)]
    one, other = (np.array(pairs, dtype=np.float64).reshape(-1, 2) for pairs in sides)
    if len(one) < FEWEST_SHARED or len(one) != len(other) or (one[:, 1] != other[:, 1]).any():
        return None
    return _ratio_of_sums(np.column_stack([one[:, 0], other[:, 0]]), seed)


def _ratio_of_sums(values: FloatArray, seed: int) -> Estimate | None:
    """Of two columns of shape [requests, 2]; blocks of neighbouring rows are drawn in pairs."""
    blocks = np.array([part.sum(axis=0) for part in np.array_split(values, min(len(values), intervals.MAX_BLOCKS))])
    if (blocks.sum(axis=0) <= 0).any():
        return None
    drawn = np.random.default_rng(seed).multinomial(
        len(blocks), np.full(len(blocks), 1 / len(blocks)), size=intervals.RESAMPLES
    )
    sums = drawn @ blocks
    if (sums <= 0).any():
        return None
    low, high = intervals.percentile_interval(sums[:, 0] / sums[:, 1])
    total = blocks.sum(axis=0)
    return Estimate(value=float(total[0] / total[1]), low=low, high=high, n=len(values))


def _per_request(model: ModelSummary, quantity: str, labels: Mapping[str, str]) -> dict[int, float]:
    """Mean over rounds of each request's span, by its row in the schedule."""
    found: dict[int, list[float]] = {}
    request_class = labels.get("request_class", ALL)
    for tables in (*model.rounds, *model.capacity):
        if tables.traffic != labels.get("traffic", tables.traffic):
            continue
        read = tpot_samples(tables, None, request_class) if quantity == "tpot" else None
        samples = read if read is not None else span_samples(tables, None, quantity, request_class)
        for row, value in zip(samples.units.tolist(), samples.values.tolist(), strict=True):
            found.setdefault(row, []).append(value)
    return {row: sum(values) / len(values) for row, values in found.items()}


def wider(first: Estimate, second: Estimate | None) -> Estimate:
    """The first estimate with an interval that holds those of both: neither source of chance is left out.

    Where the first has none, the spread of repeats is not known, and so there is none.
    """
    if first.low is None or first.high is None or second is None or second.low is None or second.high is None:
        return first
    held = replace(first, low=min(first.low, second.low), high=max(first.high, second.high))
    return narrow(held, "too few requests")
