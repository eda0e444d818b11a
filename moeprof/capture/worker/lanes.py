"""Lanes in one process: load each model once, give each lane an engine, measure in lock-step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from moeprof.capture.devices.host_memory import host_room
from moeprof.capture.devices.peaks import cache_bytes
from moeprof.capture.engines.base import Engine, ListenerSet
from moeprof.capture.engines.deployment import Deployment
from moeprof.capture.engines.faults import slowed
from moeprof.capture.engines.static_batch import needs_static
from moeprof.capture.lockstep.lanes import (
    LaneSetup,
    Requests,
    Unfinished,
    route_ladder,
    route_models,
    route_pair,
    set_up_lane,
)
from moeprof.capture.lockstep.loop import LockstepResult, Status, run_lockstep, warm_up_lanes
from moeprof.capture.memory.predict import HEADROOM, all_at_once_tokens
from moeprof.capture.models.moe_layers import MoeLayer, find_moe_layers
from moeprof.capture.protocol import OFFLINE, LanePlan, Order, wanted_requests
from moeprof.capture.worker.session import Session
from moeprof.core.errors import EngineError
from moeprof.core.record.headers import part_of, write_header
from moeprof.core.record.lanes import LanePassHeader
from moeprof.core.trace import first_requests
from moeprof.core.units import num_bytes
from moeprof.core.workload.engine import TransformersSettings
from moeprof.core.workload.models import ModelSpec, RoutingPolicy

WARM_UP_SHARE = 0.25  # of the measurement's seconds, at most
ROUTE = {"lockstep": route_models, "ladder": route_ladder, "pairs": route_pair}


# What decides the weights: models that differ in name or routing alone share them. The two sides of a launch pair never
# do: where memory places them is part of what differs between two builds.
Weights = tuple[ModelSpec, TransformersSettings | None, str | None]


class LaneModels:
    """The loaded models of lanes, and engines on them; lanes may share a model.

    Attributes:
        lanes: those whose models are loaded, in the order of the plan.
    """

    def __init__(self, session: Session) -> None:
        self._session, self._plan = session, session.plan
        self._models: dict[Weights, tuple[Deployment, tuple[MoeLayer, ...]]] = {}
        self.lanes: list[LanePlan] = []
        session.launch |= {"kind": self._plan.kind, "lanes": {}, "models": {}, "notes": []}

    def load(self, lane: LanePlan) -> None:
        """Load the model of a lane unless it is there; an optional one that finds no room is left out, with a note."""
        key = self._weights_of(lane)
        if key in self._models or self._open(lane, key):
            self.lanes.append(lane)

    @property
    def static(self) -> bool:
        """True when a model cannot run in continuous batches."""
        return any(needs_static(opened.module) is not None for opened, _ in self._models.values())

    @property
    def positions(self) -> int | None:
        """Positions that every model has; None: none of them says."""
        limits = [_position_limit(opened.module) for opened, _ in self._models.values()]
        return min((limit for limit in limits if limit is not None), default=None)

    def requests(self, concurrency: int, positions: int | None) -> Requests:
        """The first requests of the schedule that fit into so many positions."""
        session = self._session
        number = wanted_requests(self._plan.in_turn.num_requests, concurrency, len(session.schedule))
        few = first_requests(session.schedule, number, positions)
        lengths = session.schedule.input_tokens + session.schedule.output_tokens
        fits = lengths <= positions if positions is not None else np.ones(len(lengths), dtype=np.bool_)
        if not len(few):
            raise EngineError(f"{self._plan.label}: no request fits into {positions} positions")
        schedule = few.as_offline()
        if concurrency != OFFLINE:
            schedule = replace(schedule, pattern="closed", concurrency=concurrency)
        return Requests(schedule=schedule, rows_N=tuple(np.flatnonzero(fits)[: len(few)].tolist()))

    def set_up(self, requests: Requests, *, static: bool) -> list[LaneSetup]:
        """Equal engines: room for what is in flight, static batches for all where one model needs them."""
        settings = replace(self._plan.own_engine, kv_tokens=all_at_once_tokens(requests.schedule), prefix_cache=False)
        settings = replace(settings, batching="static") if static else settings
        return [self._set_up(lane, settings) for lane in self.lanes]

    def describe(self, concurrency: int, requests: Requests, setups: Sequence[LaneSetup]) -> dict[str, Any]:
        """What pass.json says before the measurement."""
        facts = setups[0].lane.engine.facts
        return {
            "kind": self._plan.kind,
            "concurrency": concurrency,
            "pattern": requests.schedule.pattern,
            "num_requests": len(requests.schedule),
            "outputs": requests.schedule.outputs,
            "schedule_sha256": requests.schedule.sha256(),
            "source_sha256": self._session.schedule.sha256(),
            "kv_tokens": facts.kv_tokens,
            "max_batch_tokens": facts.max_batch_tokens,
            "batching": facts.batching,
            "lanes": [setup.describe() for setup in setups],
            "started_unix_s": time.time(),
            "status": "started",
            "notes": list(self._session.launch["notes"]),
        }

    def _weights_of(self, lane: LanePlan) -> Weights:
        side = lane.name if self._plan.kind == "pairs" else None
        return _nameless(lane.model), lane.engine, side

    def _open(self, lane: LanePlan, key: Weights) -> bool:
        spec = lane.model
        if lane.optional and (reason := self._no_room(lane)) is not None:
            self._note(reason)
            return False
        try:
            opened = self._session.open(lane)
        except (torch.OutOfMemoryError, MemoryError):
            if not lane.optional:
                raise
            self._note(f"{lane.name}: left out, {spec.name} does not fit into memory beside the others")
            give_memory_back()
            return False
        self._models[key] = opened, layers = opened, find_moe_layers(opened.module)
        facts = self._session.write_facts(opened, lane, layers)
        self._session.launch["models"][spec.name] = {"facts": facts, "load_s": opened.launch["load_s"]}
        return True

    def _no_room(self, lane: LanePlan) -> str | None:
        """Why a twin of a loaded MoE would not fit; its weights are the MoE's, routed experts replaced."""
        base = None if lane.base is None else self._models.get((_nameless(lane.base), lane.engine, None))
        if base is None:
            return None
        model, layers = base[0].module, base[1]
        need = sum(p.numel() * p.element_size() for p in model.parameters())
        if lane.model.match == "active":
            for layer in layers:
                idle = 1 - layer.top_k / max(1, layer.num_experts)
                need -= int(idle * sum(p.numel() * p.element_size() for p in layer.experts.parameters()))
        free = _free_bytes(self._session.device)
        if need <= HEADROOM * free:
            return None
        return f"{lane.name}: left out, {lane.model.name} needs about {num_bytes(need)}, {num_bytes(free)} is free"

    def _set_up(self, lane: LanePlan, settings: TransformersSettings) -> LaneSetup:
        key, own = self._weights_of(lane), settings
        if lane.engine is not None:  # its own kernels; what decides the batches stays equal
            own = replace(lane.engine, kv_tokens=settings.kv_tokens, batching=settings.batching, prefix_cache=False)

        opened, layers = self._models[key]

        def build(model: Any, listeners: ListenerSet) -> Engine:
            return slowed(cast("Engine", opened.build(own, listeners, in_turn=True)), lane.slowdown)

        return set_up_lane(lane, opened.module, layers, build)

    def _note(self, text: str) -> None:
        self._session.launch["notes"].append(text)


class LockstepOrders:
    """Orders about several lanes in one process: load each model once, give each lane an engine, step them in turn."""

    def __init__(self, session: Session) -> None:
        self._session, self._plan, self._models = session, session.plan, LaneModels(session)
        self.orders: dict[str, Callable[[Order], dict[str, Any]]] = {"prepare": self.prepare, "lockstep": self.lockstep}

    def prepare(self, order: Order) -> dict[str, Any]:
        """Load every model once."""
        for lane in self._plan.lanes:
            self._models.load(lane)
        if len(self._models.lanes) < 2:
            raise EngineError(f"{self._plan.label}: fewer than two lanes fit into memory; nothing to compare")
        launch = self._session.launch
        launch |= {"threads": torch.get_num_threads(), "cache_bytes": cache_bytes(self._session.device)}
        self._session.write()
        return {"lanes": [lane.name for lane in self._models.lanes], "notes": launch["notes"]}

    def lockstep(self, order: Order) -> dict[str, Any]:
        """Every concurrency of the plan in turn."""
        statuses = {}
        for concurrency in self._plan.in_turn.concurrency:
            late = order.deadline_s is not None and time.perf_counter() >= order.deadline_s
            if self._session.should_stop() or late:
                break
            statuses[f"c{concurrency}"] = self._measure(concurrency, order.deadline_s)
            self._session.write()
        return {"measured": statuses}

    def finish(self) -> None:
        """Nothing is left to do."""

    def _measure(self, concurrency: int, deadline_s: float | None) -> str:
        plan, session, models = self._plan, self._session, self._models
        folder = plan.folder / f"c{concurrency}"
        folder.mkdir(exist_ok=True)
        requests = models.requests(concurrency, models.positions)
        setups = models.set_up(requests, static=models.static)
        info = models.describe(concurrency, requests, setups)
        write_header(folder / "pass.json", part_of(LanePassHeader, info))
        session.launch["lanes"] = {setup.plan.name: asdict(setup.lane.engine.facts) for setup in setups}
        timed = [session.reference()] if plan.kind == "pairs" else []
        try:
            result = self._step(setups, requests, folder, deadline_s)
        except Unfinished:
            status: Status = "stopped" if session.should_stop() else "cut"
            result = LockstepResult(status=status, cycles=0, steps=0, duration_s=0.0)
        finally:
            for setup in setups:
                setup.lane.engine.close()
            give_memory_back()
        if timed:  # one process: what the machine did, it did to both sides
            timed.append(session.reference())
            info["reference_kernel_s"] = {setup.plan.name: timed for setup in setups}
        info["notes"] += [setup.note for setup in setups if setup.note is not None]
        write_header(folder / "pass.json", part_of(LanePassHeader, info | asdict(result)))
        return result.status

    def _step(
        self, setups: Sequence[LaneSetup], requests: Requests, folder: Path, deadline_s: float | None
    ) -> LockstepResult:
        limits, schedule, seconds = self._session.limits, requests.schedule, self._plan.in_turn.max_seconds
        name = "offline" if schedule.concurrency is None else f"{schedule.concurrency} in flight"
        ROUTE[self._plan.kind](setups, requests, limits(float("inf"), deadline_s, f"{name}: recording routing"))
        lanes = [setup.lane for setup in setups]
        longest = int((schedule.input_tokens + schedule.output_tokens).max())
        for lane in lanes:
            with lane.switched_on():  # what a captured step routes by is baked in
                lane.engine.prepare(schedule.concurrency or len(schedule), longest)
        warm_up_lanes(lanes, schedule, limits(WARM_UP_SHARE * seconds, deadline_s, f"{name}: warming up"))
        return run_lockstep(
            lanes, schedule, folder, limits(seconds, deadline_s, f"{name}: measuring {len(lanes)} lanes")
        )


def _nameless(spec: ModelSpec) -> ModelSpec:
    return replace(spec, name="weights", routing=RoutingPolicy())


def _position_limit(model: Any) -> int | None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) else None


def _free_bytes(device: torch.device) -> int:
    return int(torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else host_room().free_bytes)


def give_memory_back() -> None:
    """What closed engines held goes back to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
