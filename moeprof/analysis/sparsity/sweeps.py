"""Cost, speed and experts against load: every model of a run at every point of its sweep (docs/metrics.md).

A closed loop bills the window; an open loop bills busy seconds where models are compared, because below saturation
every model bills the same window. Every figure is a mean over rounds (over launches where there are several);
percentiles pool the rounds and are null below their minimum sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from moeprof.analysis.metrics.cost.bounds import output_bounds
from moeprof.analysis.metrics.routing.shift import first_with_routing
from moeprof.analysis.metrics.routing.steps import distinct_nulls, routed_steps
from moeprof.analysis.metrics.routing.units import cell
from moeprof.analysis.metrics.samples import itl_samples, mean_of_steps, span_samples, summarise
from moeprof.analysis.metrics.sweep import points as figures
from moeprof.analysis.metrics.sweep.points import (
    AXES,
    SweptPoint,
    SweptRound,
    from_metric,
    over_rounds,
)
from moeprof.analysis.metrics.sweep.slo import goodput_of
from moeprof.analysis.metrics.tables import is_done
from moeprof.analysis.stats.estimate import Estimate
from moeprof.core.workload.studies import SweepPoint
from moeprof.core.workload.workload import Slo

if TYPE_CHECKING:
    from moeprof.analysis.metrics.summary import Summary


if TYPE_CHECKING:
    from moeprof.analysis.metrics.summary import ModelSummary, Summary

DENSE, NO_ROUTING = "a dense model has no router", "no routing was recorded"
HIGH_PERCENTILES = ("p99_9", "p99", "p95", "p90")


@dataclass(frozen=True, slots=True, kw_only=True)
class PointResult:
    """One model at one setting.

    Attributes:
        model: its name.
        point: the setting.
        usd_per_1m_total_tokens: dollars to compare models by: of the window in a closed loop, busy in an open one.
        usd_per_1m_output_tokens: the outputs' part of the additive split, billed alike.
        output_tokens_per_s: per device.
        tokens_per_s_per_user: 1 / mean gap between the tokens of a request: what one reader sees once it began.
        ttft_p50_s: from arrival.
        ttft_percentiles_s: from arrival, by label: ``p50``...
        itl_p50_s, itl_p99_s: gaps between tokens.
        decode_step_s: mean time of a pure decode step.
        decode_batch: mean tokens of such a step, of the steps with routing counts; of all for a dense model.
        goodput_ratio: share of all requests that met every SLO.
        busy_ratio: busy over billed seconds.
        distinct_experts: per pure decode step, mean over layers and steps.
        distinct_nulls: what routing at random would touch at these batches: ``uniform``, ``marginal``.
        saturated: the queue grew without bound in every round; ``saturation_reason`` says how that was seen.
        swept: the rounds behind it.
    """

    model: str
    point: SweepPoint
    usd_per_1m_total_tokens: Estimate
    usd_per_1m_output_tokens: Estimate
    output_tokens_per_s: Estimate
    tokens_per_s_per_user: Estimate
    ttft_p50_s: Estimate
    itl_p50_s: Estimate
    itl_p99_s: Estimate
    decode_step_s: Estimate
    decode_batch: Estimate
    goodput_ratio: Estimate
    busy_ratio: Estimate
    distinct_experts: Estimate
    distinct_nulls: Mapping[str, float] = field(default_factory=dict)
    ttft_percentiles_s: Mapping[str, Estimate] = field(default_factory=dict)
    saturated: bool = False
    saturation_reason: str | None = None
    swept: SweptPoint


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSweep:
    """One model's points, in order of load. ``stopped`` says why it has fewer than were asked for, or None."""

    model: str
    is_moe: bool
    points: tuple[PointResult, ...]
    stopped: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepResult:
    """A whole sweep.

    Attributes:
        axis: what varies along a line: ``concurrency``, ``request_rate``, else ``input_tokens``, ``max_batch_tokens``.
        rows: the other settings, one line of points each; one setting that names nothing when there are no others.
        models: each model's points.
        is_open: an open loop: dollars to compare by are of busy seconds.
    """

    axis: str
    rows: tuple[SweepPoint, ...]
    models: tuple[ModelSweep, ...]
    is_open: bool

    def line(self, model: str, row: SweepPoint) -> tuple[PointResult, ...]:
        """A model's points with these other settings, one for each load; empty for a model without a sweep."""
        points = next((m.points for m in self.models if m.model == model), ())
        return tuple(p for p in points if row_of(p.point, self.axis) == row)

    @property
    def own(self) -> SweptPoint | None:
        """The run's own rounds of the first model, where they are one of the points."""
        return next((p.swept for model in self.models for p in model.points if p.swept.own), None)

    def load(self, point: SweepPoint) -> float:
        """Where a point stands on the axis."""
        return load_of(point, self.axis)


def sweep_results(summary: Summary) -> SweepResult | None:
    """The sweep of a run, or None when it has none."""
    swept = [model for model in summary.models if model.sweep]
    if not swept:
        return None
    axis = axis_of([one.point for model in swept for one in model.sweep])
    with_own = all(any(one.own for one in model.sweep) for model in swept)
    slo, num_devices = summary.record.slo, summary.pricing.num_devices
    models = tuple(
        ModelSweep(
            model=model.name,
            is_moe=_is_moe(model),
            points=tuple(
                point_result(model.name, one, slo, num_devices, is_moe=_is_moe(model))
                for one in _one_per_load(model.sweep, axis, with_own=with_own)
            ),
            stopped=None if model.launch.sweep_stopped is None else model.launch.sweep_stopped.reason,
        )
        for model in swept
    )
    rows = tuple(dict.fromkeys(row_of(one.point, axis) for model in models for one in model.points))
    is_open = any(one.tables.traffic == "open" for model in swept for point in model.sweep for one in point.rounds)
    return SweepResult(axis=axis, rows=rows, models=models, is_open=is_open)


def _one_per_load(sweep: Sequence[SweptPoint], axis: str, *, with_own: bool) -> list[SweptPoint]:
    """In order of load. Where the run's own rounds had the load of a point, the one with more requests stands for it.

    Args:
        sweep: of one model.
        axis: the load.
        with_own: every model has rounds of its own; else they are left out, as models are compared point by point.
    """
    found: dict[SweepPoint, SweptPoint] = {}
    for one in sweep:
        other = found.get(one.point)
        if (with_own or not one.own) and (other is None or one.num_requests > other.num_requests):
            found[one.point] = one
    return sorted(found.values(), key=lambda one: load_of(one.point, axis))


def _is_moe(model: ModelSummary) -> bool:
    return model.facts is not None and model.facts.is_moe


def axis_of(points: list[SweepPoint]) -> str:
    """The first setting that any point names."""
    return next(name for name in AXES if any(getattr(point, name) is not None for point in points))


def load_of(point: SweepPoint, axis: str) -> float:
    """Where a point stands on an axis; 0 when it does not name it."""
    return float(getattr(point, axis) or 0)


def row_of(point: SweepPoint, axis: str) -> SweepPoint:
    """The point without its place on the axis."""
    return replace(point, **{axis: None})


def point_result(model: str, swept: SweptPoint, slo: Slo, num_devices: int, *, is_moe: bool) -> PointResult:
    """All figures of one model at one setting."""
    ttft, itl = _percentiles(swept, "ttft"), _percentiles(swept, "itl")
    experts, nulls, batch = _experts(swept, is_moe=is_moe)
    output_price = _mean(swept, figures.usd_output, "no output tokens, or no decode step that made one")
    bounds = output_bounds([one.split for one in swept.rounds])
    return PointResult(
        model=model,
        point=swept.point,
        usd_per_1m_total_tokens=_mean(swept, figures.usd_total, "no tokens"),
        usd_per_1m_output_tokens=output_price if bounds is None else bounds.held(output_price),
        output_tokens_per_s=_mean(swept, lambda r: _per_device(figures.outputs_per_s(r), num_devices), "empty window"),
        tokens_per_s_per_user=_mean(swept, figures.tokens_per_s_per_user, "no request had two tokens"),
        ttft_p50_s=ttft["p50"],
        itl_p50_s=itl["p50"],
        itl_p99_s=itl["p99"],
        ttft_percentiles_s=ttft,
        decode_step_s=_mean(swept, figures.decode_step_s, "no pure decode steps"),
        decode_batch=batch,
        goodput_ratio=goodput_of(swept, slo),
        busy_ratio=_mean(swept, lambda r: r.split.busy_ratio, "empty window", bounded=True),
        distinct_experts=experts,
        distinct_nulls=nulls,
        saturated=swept.saturated,
        saturation_reason=swept.saturation_reason,
        swept=swept,
    )


def _mean(
    swept: SweptPoint, figure: Callable[[SweptRound], float | None], reason: str, *, bounded: bool = False
) -> Estimate:
    return over_rounds([(one.launch, figure(one)) for one in swept.rounds], reason, bounded=bounded)


def _percentiles(swept: SweptPoint, quantity: str) -> dict[str, Estimate]:
    """By label: ``p50``, ``p90``..."""
    samples = [
        itl_samples(one.tables, None) if quantity == "itl" else span_samples(one.tables, None, quantity)
        for one in swept.rounds
    ]
    values = summarise(quantity, samples, {}, missing_reason="no samples")
    return {v.name.removeprefix(f"{quantity}_").removesuffix("_s"): from_metric(v) for v in values}


def _per_device(rate: float | None, num_devices: int) -> float | None:
    return None if rate is None else rate / num_devices


def _experts(swept: SweptPoint, *, is_moe: bool) -> tuple[Estimate, dict[str, float], Estimate]:
    """Distinct experts per pure decode step, their nulls, the batch: of the first round, whose tokens others repeat."""
    found = first_with_routing([one.tables for one in swept.rounds]) if is_moe else None
    if found is None:
        nothing = Estimate(value=None, reason=NO_ROUTING if is_moe else DENSE)
        return nothing, {}, _mean(swept, figures.decode_batch, "no pure decode steps")
    tables, routing = found
    steps = routed_steps(tables, routing, "decode")
    if not len(steps.rows):
        nothing = Estimate(value=None, reason="no pure decode steps")
        return nothing, {}, nothing
    own = cell(routing, "decode")
    nulls = {name: float(np.mean(values)) for name, values in distinct_nulls(steps, own.counts_LE, own.tokens).items()}
    experts = mean_of_steps("distinct_experts_per_step", [steps.distinct_SL.mean(axis=1)], {}, "")
    return from_metric(experts), nulls, Estimate(value=float(steps.tokens.mean()))


def lost_requests(point: PointResult) -> tuple[int, int]:
    """Requests that did not end well, of all that were asked for, over all rounds."""
    done = [is_done(one.tables.requests) for one in point.swept.rounds]
    return sum(int((~mask).sum()) for mask in done), sum(len(mask) for mask in done)


def reference_of(summary: Summary, result: SweepResult, wanted: str | None) -> int:
    """Index among the models of the sweep."""
    names = [model.model for model in result.models]
    if wanted in names:
        return names.index(wanted)
    facts = [summary.model(name).facts for name in names]
    twins = [(i, f.twin) for i, f in enumerate(facts) if f is not None and f.twin is not None]
    totals = [i for i, twin in twins if twin.is_total_matched]
    actives = [i for i, twin in twins if twin.is_active_matched]
    denses = [i for i, model in enumerate(result.models) if not model.is_moe]
    return (*totals, *actives, *denses, 0)[0]
