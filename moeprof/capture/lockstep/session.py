"""Several models or rungs in one process: load each model once, give each lane an engine, measure in lock-step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Self, cast

import numpy as np
import psutil
import torch

from moeprof.capture.devices.peaks import time_reference
from moeprof.capture.devices.run_queue import run_queue_clock
from moeprof.capture.engines import hf
from moeprof.capture.engines.base import Engine, ListenerSet
from moeprof.capture.engines.deployment import Deployment
from moeprof.capture.engines.faults import slowed
from moeprof.capture.engines.static_batch import needs_static
from moeprof.capture.lockstep.lanes import Requests, Seat, Unfinished, equip_ladder, equip_models, equip_pair, take_seat
from moeprof.capture.lockstep.loop import Limits, LockstepResult, run_lockstep, warm_up_lanes
from moeprof.capture.memory.predict import HEADROOM, all_at_once_tokens
from moeprof.capture.models.moe_layers import MoeLayer, find_moe_layers, layer_shapes
from moeprof.capture.protocol import OFFLINE, LanePlan, LockstepPlan, Order, Report, wanted_requests
from moeprof.capture.routing.popularity import routing_words
from moeprof.core.errors import EngineError
from moeprof.core.jsonfile import write_json
from moeprof.core.trace import Schedule, first_requests
from moeprof.core.units import num_bytes
from moeprof.core.workload.engine import TransformersSettings
from moeprof.core.workload.models import ModelSpec, RoutingPolicy

WARM_UP_SHARE = 0.25  # of the measurement's seconds, at most
BEAT_EVERY_S = 10.0
EQUIP = {"lockstep": equip_models, "ladder": equip_ladder, "pairs": equip_pair}


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """What decides the weights: models that differ in name or routing alone share them.

    The two sides of a launch pair never do: where memory places them is part of what differs between two builds.
    """

    model: ModelSpec
    engine: TransformersSettings | None
    side: str | None


class LockstepSession:
    """Loaded models, and the measurements made with them."""

    def __init__(self, plan: LockstepPlan, should_stop: Callable[[], bool], send: Callable[[Report], None]) -> None:
        self._plan, self._should_stop, self._send = plan, should_stop, send
        self._device = torch.device(plan.device)
        self._models: dict[Weights, Deployment] = {}
        self._layers: dict[Weights, tuple[MoeLayer, ...]] = {}
        self._lanes: list[LanePlan] = []
        self._launch: dict[str, Any] = {"kind": plan.kind, "lanes": {}, "models": {}, "notes": []}
        self._next_beat_s = 0.0

    def __enter__(self) -> Self:
        plan = self._plan
        if plan.threads is not None:
            torch.set_num_threads(plan.threads)
        self._queue_clock = run_queue_clock(self._device)
        plan.folder.mkdir(parents=True, exist_ok=True)
        self._schedule = Schedule.load(plan.schedule_file)
        self._warmup = Schedule.load(plan.warmup_file)
        return self

    def __exit__(self, *exception: object) -> None:
        self.finish()

    @property
    def handlers(self) -> dict[str, Callable[[Order], dict[str, Any]]]:
        """What it can be ordered to do."""
        return {"prepare": self.prepare, "measure": self.measure}

    def prepare(self, order: Order) -> dict[str, Any]:
        """Load every model once; optional ones that find no room are left out, with a note."""
        for lane in self._plan.lanes:
            key = self._weights_of(lane)
            if key in self._models or self._open(lane, key):
                self._lanes.append(lane)
        if len(self._lanes) < 2:
            raise EngineError(f"{self._plan.label}: fewer than two lanes fit into memory; nothing to compare")
        self._launch |= {"threads": torch.get_num_threads()}
        self.finish()
        return {"lanes": [lane.name for lane in self._lanes], "notes": self._launch["notes"]}

    def measure(self, order: Order) -> dict[str, Any]:
        """Every concurrency of the plan in turn."""
        statuses = {}
        for concurrency in self._plan.concurrency:
            if self._should_stop() or (order.deadline_s is not None and time.perf_counter() >= order.deadline_s):
                break
            statuses[f"c{concurrency}"] = self._measure_one(concurrency, order.deadline_s)
            self.finish()
        return {"measured": statuses}

    def finish(self) -> None:
        """Write what is known."""
        write_json(self._plan.folder / "launch.json", self._launch)

    # -- models ----------------------------------------------------------------------------------------------------

    def _weights_of(self, lane: LanePlan) -> Weights:
        side = lane.name if self._plan.kind == "pairs" else None
        return Weights(model=_nameless(lane.model), engine=lane.engine, side=side)

    def _open(self, lane: LanePlan, key: Weights) -> bool:
        plan, spec = self._plan, lane.model
        if lane.optional and (reason := self._no_room(lane)) is not None:
            self._note(reason)
            return False
        self._say(f"loading {spec.name}")
        try:
            settings = lane.engine or plan.engine
            opened = hf.open(spec, settings, self._device, base=lane.base, warmup=self._warmup)
        except (torch.OutOfMemoryError, MemoryError):
            if not lane.optional:
                raise
            self._note(f"{lane.name}: left out, {spec.name} does not fit into memory beside the others")
            _give_memory_back()
            return False
        self._models[key], self._layers[key] = opened, find_moe_layers(opened.module)
        overridden = routing_words(spec.routing, layer_shapes(self._layers[key]))
        facts = opened.describe(plan.tokenizer_hash, overridden).to_json()
        self._launch["models"][spec.name] = {"facts": facts, "load_s": opened.launch["load_s"]}
        if plan.facts_folder is not None:
            (plan.facts_folder / spec.name).mkdir(exist_ok=True)
            write_json(plan.facts_folder / spec.name / "model.json", facts)
        return True

    def _no_room(self, lane: LanePlan) -> str | None:
        """Why a twin of a loaded MoE would not fit; its weights are the MoE's, routed experts replaced."""
        key = None if lane.base is None else Weights(model=_nameless(lane.base), engine=lane.engine, side=None)
        if key is None or key not in self._models:
            return None
        model, layers = self._models[key].module, self._layers[key]
        need = sum(p.numel() * p.element_size() for p in model.parameters())
        if lane.model.match == "active":
            for layer in layers:
                idle = 1 - layer.top_k / max(1, layer.num_experts)
                need -= int(idle * sum(p.numel() * p.element_size() for p in layer.experts.parameters()))
        free = _free_bytes(self._device)
        if need <= HEADROOM * free:
            return None
        return f"{lane.name}: left out, {lane.model.name} needs about {num_bytes(need)}, {num_bytes(free)} is free"

    # -- one measurement -------------------------------------------------------------------------------------------

    def _measure_one(self, concurrency: int, deadline_s: float | None) -> str:
        plan = self._plan
        folder = plan.folder / f"c{concurrency}"
        folder.mkdir(exist_ok=True)
        requests = self._requests(concurrency)
        settings = self._settings(requests.schedule)
        seats = [self._seat(lane, settings) for lane in self._lanes]
        info = self._described(concurrency, requests, seats)
        write_json(folder / "pass.json", info)
        self._launch["lanes"] = {seat.plan.name: asdict(seat.lane.engine.facts) for seat in seats}
        timed = [self._reference()]
        try:
            result = self._lockstep(seats, requests, folder, deadline_s)
        except Unfinished:
            stopped = self._should_stop()
            result = LockstepResult(status="stopped" if stopped else "cut", cycles=0, steps=0, duration_s=0.0)
        finally:
            for seat in seats:
                seat.lane.engine.close()
            _give_memory_back()
        if plan.kind == "pairs":  # one process: what the machine did, it did to both sides
            timed.append(self._reference())
            info["reference_kernel_s"] = {seat.plan.name: timed for seat in seats}
        info["notes"] += [seat.note for seat in seats if seat.note is not None]
        write_json(folder / "pass.json", info | asdict(result))
        return result.status

    def _reference(self) -> float | None:
        return time_reference(self._device) if self._plan.kind == "pairs" else None

    def _described(self, concurrency: int, requests: Requests, seats: list[Seat]) -> dict[str, Any]:
        """What pass.json says before the measurement."""
        facts = seats[0].lane.engine.facts
        return {
            "kind": self._plan.kind,
            "concurrency": concurrency,
            "pattern": requests.schedule.pattern,
            "num_requests": len(requests.schedule),
            "outputs": requests.schedule.outputs,
            "schedule_sha256": requests.schedule.sha256(),
            "source_sha256": self._schedule.sha256(),
            "kv_tokens": facts.kv_tokens,
            "max_batch_tokens": facts.max_batch_tokens,
            "batching": facts.batching,
            "lanes": [seat.describe() for seat in seats],
            "started_unix_s": time.time(),
            "status": "started",
            "notes": list(self._launch["notes"]),
        }

    def _lockstep(self, seats: list[Seat], requests: Requests, folder: Any, deadline_s: float | None) -> LockstepResult:
        plan, schedule = self._plan, requests.schedule
        name = "offline" if schedule.concurrency is None else f"{schedule.concurrency} in flight"
        unbounded = self._limits(float("inf"), deadline_s, f"{name}: recording routing")
        EQUIP[plan.kind](seats, requests, unbounded)
        lanes = [seat.lane for seat in seats]
        longest = int((schedule.input_tokens + schedule.output_tokens).max())
        for lane in lanes:
            with lane.switched_on():  # what a captured step routes by is baked in
                lane.engine.prepare(schedule.concurrency or len(schedule), longest)
        warm_up_lanes(
            lanes, schedule, self._limits(WARM_UP_SHARE * plan.max_seconds, deadline_s, f"{name}: warming up")
        )
        limits = self._limits(plan.max_seconds, deadline_s, f"{name}: measuring {len(lanes)} lanes")
        return run_lockstep(lanes, schedule, folder, limits)

    def _requests(self, concurrency: int) -> Requests:
        """The first requests that every model's position limit allows."""
        longest = self._longest()
        wanted = wanted_requests(self._plan.num_requests, concurrency, len(self._schedule))
        few = first_requests(self._schedule, wanted, longest)
        lengths = self._schedule.input_tokens + self._schedule.output_tokens
        fits = lengths <= longest if longest is not None else np.ones(len(lengths), dtype=np.bool_)
        if not len(few):
            raise EngineError(f"{self._plan.label}: no request fits into {longest} positions")
        schedule = few.as_offline()
        if concurrency != OFFLINE:
            schedule = replace(schedule, pattern="closed", concurrency=concurrency)
        return Requests(schedule=schedule, rows_N=tuple(np.flatnonzero(fits)[: len(few)].tolist()))

    def _longest(self) -> int | None:
        """Positions that every model has; None: none of them says."""
        limits = [_position_limit(opened.module) for opened in self._models.values()]
        return min((limit for limit in limits if limit is not None), default=None)

    def _settings(self, schedule: Schedule) -> TransformersSettings:
        """Equal engines: room for what is in flight, static batches for all where one model needs them."""
        settings = replace(self._plan.engine, kv_tokens=all_at_once_tokens(schedule), prefix_cache=False)
        return replace(settings, batching="static") if self._static() else settings

    def _static(self) -> bool:
        """True when a model cannot run in continuous batches."""
        return any(needs_static(opened.module) is not None for opened in self._models.values())

    def _seat(self, lane: LanePlan, settings: TransformersSettings) -> Seat:
        key, own = self._weights_of(lane), settings
        if lane.engine is not None:  # its own kernels; what decides the batches stays equal
            own = replace(lane.engine, kv_tokens=settings.kv_tokens, batching=settings.batching, prefix_cache=False)

        opened = self._models[key]

        def build(model: Any, listeners: ListenerSet) -> Engine:
            return slowed(cast("Engine", opened.build(own, listeners, in_turn=True)), lane.slowdown)

        return take_seat(lane, opened.module, self._layers[key], build)

    # -- talk ------------------------------------------------------------------------------------------------------

    def _limits(self, max_seconds: float, deadline_s: float | None, doing: str) -> Limits:
        def beat(cycle: int, step: int) -> None:
            now = time.monotonic()
            if now >= self._next_beat_s:
                self._next_beat_s = now + BEAT_EVERY_S
                self._say(f"{doing}, cycle {cycle}, step {step}")

        return Limits(
            max_seconds=max_seconds, deadline_s=deadline_s, should_stop=self._should_stop, beat=beat,
            queue_clock=self._queue_clock,
        )  # fmt: skip

    def _say(self, what: str) -> None:
        self._send(Report(event="progress", data={"doing": what}))

    def _note(self, text: str) -> None:
        self._launch["notes"].append(text)


def _nameless(spec: ModelSpec) -> ModelSpec:
    return replace(spec, name="weights", routing=RoutingPolicy())


def _position_limit(model: Any) -> int | None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) else None


def _free_bytes(device: torch.device) -> int:
    return int(torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available)


def _give_memory_back() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
