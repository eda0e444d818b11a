"""What every worker has, whatever it measures: schedules, launch.json, limits, reference timing, and a voice."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Self

import torch

from moeprof.capture import measure
from moeprof.capture.devices.peaks import REPETITIONS, time_reference
from moeprof.capture.devices.run_queue import run_queue_clock
from moeprof.capture.engines import named
from moeprof.capture.engines.deployment import Deployment
from moeprof.capture.lockstep.loop import Limits
from moeprof.capture.memory.out_of_memory import doing
from moeprof.capture.models.moe_layers import MoeLayer, layer_shapes
from moeprof.capture.protocol import LanePlan, OnReport, Report, WorkerPlan
from moeprof.capture.routing.popularity import routing_words
from moeprof.core.files import write_json
from moeprof.core.record.headers import to_json, write_known
from moeprof.core.record.lanes import LanesHeader
from moeprof.core.record.launch import LaunchHeader
from moeprof.core.trace import Schedule

BEAT_EVERY_S = 10.0


class Session:
    """A worker's plan and what all orders share; open while the worker lives.

    Args:
        plan: what to hold and to measure.
        should_stop: called between steps.
        send: takes reports for the parent.
        writes: False where the parent writes launch.json, because two processes share the folder.

    Attributes:
        device: of the plan.
        schedule, warmup: those of the plan.
        launch: what launch.json says.
    """

    def __init__(
        self,
        plan: WorkerPlan,
        should_stop: Callable[[], bool],
        send: OnReport,
        *,
        writes: bool = True,
    ) -> None:
        self.plan, self.should_stop, self.send, self._writes = plan, should_stop, send, writes
        self.device = torch.device(plan.device)
        self.launch: dict[str, Any] = {}
        self._next_beat_s = 0.0

    def __enter__(self) -> Self:
        plan = self.plan
        if plan.threads is not None:
            torch.set_num_threads(plan.threads)
        self._queue_clock = run_queue_clock(self.device)
        plan.folder.mkdir(parents=True, exist_ok=True)
        self.schedule, self.warmup = Schedule.load(plan.schedule_file), Schedule.load(plan.warmup_file)
        return self

    def __exit__(self, *exception: object) -> None:
        self.write()

    def say(self, what: str) -> None:
        """Tell the parent, and a message about too little memory, what begins now."""
        doing(what)
        self.send(Report(event="progress", data={"doing": what}))

    def write(self) -> None:
        """Write launch.json as far as it is known."""
        if self._writes:
            kind = LaunchHeader if self.plan.kind == "solo" else LanesHeader
            write_known(
                self.plan.folder / "launch.json", kind, self.launch, free=[row.key for row in measure.MEASUREMENTS]
            )

    def open(self, lane: LanePlan, *, before_weights: Callable[[], None] = lambda: None) -> Deployment:
        """Load the model of a lane."""
        self.say("loading" if self.plan.kind == "solo" else f"loading {lane.model.name}")
        deployment: Deployment = named(self.plan.opener)(
            lane.model, lane.engine or self.plan.engine, self.device,
            base=lane.base, warmup=self.warmup, before_weights=before_weights,
        )  # fmt: skip
        return deployment

    def write_facts(self, opened: Deployment, lane: LanePlan, layers: tuple[MoeLayer, ...]) -> dict[str, Any]:
        """What is known of a loaded model, for launch.json and in model.json, where this worker has to write it."""
        words, folder = routing_words(lane.model.routing, layer_shapes(layers)), self.plan.facts_folder
        facts = to_json(opened.describe(self.plan.tokenizer_hash, words))
        if folder is not None:
            (folder / lane.model.name).mkdir(exist_ok=True)
            write_json(folder / lane.model.name / "model.json", facts)
        return facts

    def limits(self, max_seconds: float, deadline_s: float | None = None, doing: str = "") -> Limits:
        """Bounds of a measurement that says where it is now and then."""

        def beat(cycle: int, step: int) -> None:
            now = time.monotonic()
            if now >= self._next_beat_s:
                self._next_beat_s = now + BEAT_EVERY_S
                self.say(f"{doing}, cycle {cycle}, step {step}")

        return Limits(
            max_seconds=max_seconds, deadline_s=deadline_s, should_stop=self.should_stop, beat=beat,
            queue_clock=self._queue_clock,
        )  # fmt: skip

    def reference(self, repetitions: int = REPETITIONS) -> float:
        """Seconds of the reference kernel, now."""
        return time_reference(self.device, repetitions=repetitions)
