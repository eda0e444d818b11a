"""From a summarised run to a baseline: what is worth keeping of it, in the form in which it is judged.

A record and a saved file go the same way, so that they cannot be judged differently.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeGuard

import numpy as np

from moeprof.analysis.compare.comparable import device, device_kind, model_facts, run_facts
from moeprof.analysis.metrics.summary import ModelSummary, Summary
from moeprof.analysis.metrics.tables import column
from moeprof.analysis.metrics.validity import broken_routing
from moeprof.core.baseline.baseline import STEP_PHASES, Baseline, BaselineModel, RoutingLoad, StepSums
from moeprof.core.baseline.file import compact_picks
from moeprof.core.baseline.json_text import launch_number
from moeprof.core.metric import MetricValue
from moeprof.core.record.layout import PHASES, LaunchRecord, ModelRecord, Record
from moeprof.core.record.picks import ForcedPicks
from moeprof.core.record.routing import Routing

FINEST = {"layer", "experts", "part"}  # labels of the cuts that stay in the record


def freeze(summary: Summary, name: str | None = None) -> Baseline:
    """What a later run can be judged against."""
    record = summary.record
    return Baseline(
        name=name or record.run,
        run=record.run,
        created_at=record.experiment.started_at or "",
        moeprof=record.environment.moeprof or "",
        workload=record.workload.name or "",
        device=device(record),
        device_kind=device_kind(record),
        status=record.status,
        facts=run_facts(record),
        usd_per_second=None if summary.pricing.usd_per_hour is None else summary.pricing.usd_per_second,
        models=tuple(_model(record, model) for model in summary.models),
        label=record.workload.label,
    )


def _model(record: Record, model: ModelSummary) -> BaselineModel:
    layers = model.facts.moe_layers if model.facts is not None else ()
    return BaselineModel(
        name=model.name,
        facts=model_facts(record, model.record),
        metrics=frozen_metrics(model.metrics),
        routing=_routing(model.record, tuple(layer.num_experts for layer in layers)),
        steps=_steps(model),
        picks=_picks(model.record),
        top_k=tuple(layer.top_k for layer in layers),
        num_experts=tuple(layer.num_experts for layer in layers),
        own_traffic=model.rounds[0].traffic if model.rounds else None,
        priced_traffic=model.priced[0].traffic if model.priced else None,
    )


def frozen_metrics(values: Iterable[MetricValue]) -> tuple[MetricValue, ...]:
    """Values without the finest cuts, each followed by its launches' own; of those only the number is kept."""
    kept = [value for value in values if not FINEST & set(value.labels)]
    launches: dict[object, list[MetricValue]] = {}
    for value in kept:
        if launch_number(value) is not None and value.value is not None:
            launches.setdefault(_without_launch(value), []).append(
                MetricValue(name=value.name, value=value.value, labels=dict(value.labels))
            )
    together = (value for value in kept if launch_number(value) is None)
    return tuple(one for value in together for one in (value, *launches.pop(_without_launch(value), ())))


def _without_launch(value: MetricValue) -> tuple[str, frozenset[tuple[str, str]]]:
    return value.name, frozenset(item for item in value.labels.items() if item[0] != "launch")


# -- arrays ------------------------------------------------------------------------------------------------------------


def _steps(model: ModelSummary) -> StepSums | None:
    """Wall seconds and number of steps by phase, over the passes that dollars come from, launch by launch."""
    launches = [launch for launch in model.record.launches if any(len(passed.steps) for passed in launch.rounds)]
    sums = [_step_sums(launch, capacity=bool(model.capacity)) for launch in launches]
    if not sums:
        return None
    return StepSums(
        launches=tuple(range(len(launches))),
        seconds_LP=np.array([seconds for seconds, _ in sums], dtype=np.float64),
        steps_LP=np.array([steps for _, steps in sums], dtype=np.int64),
    )


def _step_sums(launch: LaunchRecord, *, capacity: bool) -> tuple[list[float], list[int]]:
    tables = [passed.steps for passed in (launch.capacity if capacity else launch.rounds)]
    seconds_s, steps = [0.0] * len(STEP_PHASES), [0] * len(STEP_PHASES)
    for table in tables:
        wall_s = column(table, "end_s") - column(table, "start_s")
        for place, phase in enumerate(STEP_PHASES):
            own = wall_s[np.asarray(table["phase"] == phase, dtype=np.bool_)]
            own = own[np.isfinite(own)]
            seconds_s[place] += float(own.sum())
            steps[place] += len(own)
    return seconds_s, steps


def _routing(model: ModelRecord, num_experts: tuple[int, ...]) -> RoutingLoad | None:
    """Of the first launch with counts that passed their checks."""
    for launch in model.launches:
        found = [passed.routing for passed in launch.rounds]
        if _is_whole(found) and broken_routing(launch) is None:
            return _load(found, num_experts)
    return None


def _is_whole(found: list[Routing | None]) -> TypeGuard[list[Routing]]:
    return bool(found) and all(routing is not None for routing in found)


def _load(rounds: list[Routing], num_experts: tuple[int, ...]) -> RoutingLoad:
    counts_PLE = sum(routing.counts_WPCLE.sum(axis=(0, 2)) for routing in rounds)
    tokens_P = sum(routing.real_tokens_WPC.sum(axis=(0, 2)) for routing in rounds)
    assert isinstance(counts_PLE, np.ndarray) and isinstance(tokens_P, np.ndarray), "there is a round"
    layers = rounds[0].layer_names
    widths = num_experts if len(num_experts) == len(layers) else (counts_PLE.shape[-1],) * len(layers)
    return RoutingLoad(
        layers=layers,
        counts={
            phase: tuple(
                tuple(int(count) for count in counts_PLE[place, layer, :width]) for layer, width in enumerate(widths)
            )
            for place, phase in enumerate(PHASES)
        },
        tokens={phase: int(tokens_P[place]) for place, phase in enumerate(PHASES)},
    )


def _picks(model: ModelRecord) -> ForcedPicks | None:
    """Of the first launch that recorded them with a tap to trust; they are a fact of weights, kernels and text."""
    for launch in model.launches:
        picks = launch.forced_picks
        if picks is not None and broken_routing(launch) is None:
            return compact_picks(picks)
    return None
