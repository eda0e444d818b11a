"""From a plan to lanes that can be stepped: engines, overrides, and what each step's experts will be.

Routing is recorded once, in a pass that nobody times; forced lengths make every later cycle the same, so the timed
lanes carry no tap. Suffix legend: L MoE layers, T tokens, K top-k.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moeprof.capture.engines.base import BatchLayout, Engine, ListenerSet
from moeprof.capture.lockstep.loop import Limits, LocalLane
from moeprof.capture.models.moe_layers import MoeLayer, layer_shapes
from moeprof.capture.models.shapes import LayerShape
from moeprof.capture.protocol import LanePlan
from moeprof.capture.routing.override import PickOverride, PickTable, check_overridable, override_routing
from moeprof.capture.routing.recorded import replay_table
from moeprof.capture.routing.rows import Positions
from moeprof.capture.routing.tables import StepPicks, change_for, changed, loads_of, table_of
from moeprof.capture.routing.tap import RoutingTap
from moeprof.core.errors import EngineError, UnsupportedModelError
from moeprof.core.trace import Schedule

CHECKED_STEPS = 8


class Unfinished(Exception):  # noqa: N818 - no error: someone requested a stop, or time is up
    """The recording pass did not get to its end."""


@dataclass(slots=True, kw_only=True)
class Requests:
    """The requests of one measurement.

    Attributes:
        schedule: what is replayed.
        rows_N: which rows of the run's schedule they are.
    """

    schedule: Schedule
    rows_N: tuple[int, ...]


@dataclass(slots=True, kw_only=True)
class LaneSetup:
    """A lane with what is needed to route it.

    Attributes:
        plan: what it is.
        lane: what is stepped.
        model: its model, shared with other lanes.
        layers: the model's MoE layers; empty for dense ones.
        listeners: of its engine.
        note: what a reader should know, or None.
    """

    plan: LanePlan
    lane: LocalLane
    model: Any
    layers: tuple[MoeLayer, ...]
    listeners: ListenerSet
    note: str | None = None
    shapes: list[LayerShape] = field(init=False)

    def __post_init__(self) -> None:
        self.shapes = layer_shapes(self.layers)

    @property
    def rung(self) -> str:
        """Its rung; what the loaded model says where the plan does not."""
        policy = self.plan.model.routing.policy
        by_policy = {"replay": "recorded", "balanced": "balanced", "concentrated": "concentrated"}
        return self.plan.rung or ("dense" if not self.layers else by_policy.get(policy, "native"))

    def describe(self) -> dict[str, Any]:
        """For pass.json."""
        spec = self.plan.model
        found = {
            "name": self.plan.name,
            "model": spec.name,
            "rung": self.rung,
            "twin_of": spec.twin_of,
            "match": spec.match,
            "routing_policy": spec.routing.policy,
        }
        return found if self.plan.distinct is None else found | {"distinct": self.plan.distinct}


def set_up_lane(
    plan: LanePlan, model: Any, layers: tuple[MoeLayer, ...], build: Callable[[Any, ListenerSet], Engine]
) -> LaneSetup:
    """A lane with an engine of its own."""
    listeners = ListenerSet()
    lane = LocalLane(name=plan.name, engine=build(model, listeners))
    return LaneSetup(plan=plan, lane=lane, model=model, layers=layers, listeners=listeners)


def route_models(setups: Sequence[LaneSetup], requests: Requests, limits: Limits) -> None:
    """Give each lane of ``lockstep`` its routing policy, and find out how its experts are loaded.

    Raises:
        Unfinished: time was up, or someone requested a stop.
        WorkloadError: recorded picks do not fit.
    """
    for setup in setups:
        if not setup.layers:
            continue
        _use_policy(setup, requests)
        setup.lane.loads = loads_of(record_steps(setup, requests.schedule, limits), setup.shapes)


def route_pair(setups: Sequence[LaneSetup], requests: Requests, limits: Limits) -> None:
    """Give each side of a launch pair its routing policy; where tokens go is the business of the solo runs.

    Raises:
        WorkloadError: recorded picks do not fit.
    """
    for setup in setups:
        if setup.layers:
            _use_policy(setup, requests)


def _use_policy(setup: LaneSetup, requests: Requests) -> None:
    policy = setup.plan.model.routing
    if policy.policy == "replay":
        table = replay_table(Path(str(policy.path)), requests.schedule, setup.shapes, rows_N=requests.rows_N)
        _use_table(setup, table, requests.schedule)
    elif policy.policy != "native":
        override = override_routing(setup.layers, policy)
        assert override is not None
        override.close()
        setup.listeners.listeners.append(override)
        setup.lane.switched_on = override.switched_on


def route_ladder(setups: Sequence[LaneSetup], requests: Requests, limits: Limits) -> None:
    """Record the router of the native lane, and derive every other rung from it.

    Raises:
        Unfinished: time was up, or someone requested a stop.
        UnsupportedModelError: a layer whose picks cannot be replaced.
        EngineError: an override does not do what it should.
    """
    native = next(setup for setup in setups if setup.plan.rung == "native")
    check_ladder(native.layers)
    steps = record_steps(native, requests.schedule, limits)
    native.lane.loads = loads_of(steps, native.shapes)
    num_rows = Positions.of(requests.schedule).num_rows
    for setup in setups:
        if setup is native or setup.rung == "dense":
            continue
        required = changed(steps, setup.shapes, change_for(setup.rung, setup.plan.distinct))
        setup.lane.loads = loads_of(required, setup.shapes)
        _use_table(setup, table_of(required, num_rows), requests.schedule)
        _check_in_force(setup, required, requests.schedule, limits)


def check_ladder(layers: Sequence[MoeLayer]) -> None:
    """Refuse models whose picks cannot all be replaced by other experts.

    Raises:
        UnsupportedModelError: which layer, and why.
    """
    if not layers:
        raise UnsupportedModelError("ladder: this model has no routed experts; choose an MoE with --model")
    check_overridable(layers, "the sparsity ladder")
    for layer in layers:
        if layer.skips_zero_weight or layer.num_identity or layer.executes_all_experts:
            why = "runs every expert on every token" if layer.executes_all_experts else "has picks that are no experts"
            raise UnsupportedModelError(
                f"{layer.name}: the sparsity ladder cannot be climbed, {type(layer.block).__name__} {why}"
            )


def record_steps(setup: LaneSetup, schedule: Schedule, limits: Limits, max_steps: int | None = None) -> list[StepPicks]:
    """One cycle of a lane alone, with a tap: what each step routed.

    Raises:
        Unfinished: time was up, or someone requested a stop.
        EngineError: a layer was called without picks.
    """
    positions, steps = Positions.of(schedule), list[StepPicks]()
    tap = RoutingTap(setup.model, setup.layers)
    tap.disable()

    def keep(seen: list[torch.Tensor | None], layout: BatchLayout) -> bool:
        steps.append(StepPicks(rows_T=positions.rows(layout), picks_LTK=_real_picks(setup, seen, layout)))
        return False  # nothing to count

    tap.on_picks = keep
    limits.start()
    setup.listeners.listeners.append(tap)
    watched = LocalLane(
        name=setup.lane.name, engine=setup.lane.engine, switched_on=_watched(setup.lane.switched_on, tap)
    )
    watched.begin(schedule, limits)
    try:
        while not watched.take(1).is_last and len(steps) != max_steps:
            limits.beat(0, len(steps))
            if limits.over():
                raise Unfinished
    finally:
        setup.listeners.listeners.remove(tap)
        tap.close()
        setup.lane.engine.reset()
    return steps


def _watched(
    switched_on: Callable[[], AbstractContextManager[object]], tap: RoutingTap
) -> Callable[[], AbstractContextManager[object]]:
    @contextmanager
    def watched() -> Iterator[None]:
        with switched_on():  # first, so that the tap sees what is executed
            tap.enable()
            try:
                yield
            finally:
                tap.disable()

    return watched


def _real_picks(setup: LaneSetup, seen: Sequence[torch.Tensor | None], layout: BatchLayout) -> Any:
    top_k = max(shape.top_k for shape in setup.shapes)
    picks_LTK = np.zeros((len(setup.layers), sum(layout.query_tokens), top_k), dtype=np.int32)
    for i, (layer, picks) in enumerate(zip(setup.layers, seen, strict=True)):
        if picks is None:
            raise EngineError(f"{layer.name}: called without picks by position, so its routing cannot be recorded")
        values = picks.reshape(-1, picks.shape[-1]).cpu().numpy()
        if layout.token_mask is not None:
            values = values[: len(layout.token_mask)][np.array(layout.token_mask, dtype=np.bool_)]
        picks_LTK[i, :, : layer.top_k] = values[: picks_LTK.shape[1]]
    return picks_LTK


def _use_table(setup: LaneSetup, table_LRK: Any, schedule: Schedule) -> None:
    device = next(setup.model.parameters()).device
    override = PickOverride(setup.layers, PickTable(table_LRK, Positions.of(schedule), device))
    setup.listeners.listeners.append(override)
    setup.lane.switched_on = override.switched_on


def _check_in_force(setup: LaneSetup, required: Sequence[StepPicks], schedule: Schedule, limits: Limits) -> None:
    """The experts of the first steps must be called with the picks of the table."""
    found = record_steps(setup, schedule, limits, CHECKED_STEPS)
    for number, (seen, step) in enumerate(zip(found, required, strict=False)):
        if not (np.array_equal(seen.rows_T, step.rows_T) and np.array_equal(seen.picks_LTK, step.picks_LTK)):
            raise EngineError(f"lane {setup.lane.name}: step {number} was not routed as it should be; this is a bug")
