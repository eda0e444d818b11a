"""What a rank that follows does for each command of rank 0.

It holds the same model, routing overrides and engines as rank 0, each over its own part, and a routing tap of its own:
its counts are what rank 0 gathers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from moeprof.capture import compat
from moeprof.capture.engines.base import Engine, ListenerSet
from moeprof.capture.engines.hf import build_engine
from moeprof.capture.instrumented import RoutingInstrument
from moeprof.capture.memory import measure
from moeprof.capture.models.open import open_model
from moeprof.capture.models.wrap import plain_forward
from moeprof.capture.parallel.engine import digest, settings_of_rank
from moeprof.capture.parallel.group import Group
from moeprof.capture.parallel.load import load_part
from moeprof.capture.parallel.mirror import on_device
from moeprof.capture.protocol import WorkerPlan
from moeprof.capture.routing.tap import RoutingTap
from moeprof.core.trace import Request, Schedule
from moeprof.core.workload.engine import TransformersSettings

if TYPE_CHECKING:
    from moeprof.capture.parallel.group import Group


def handlers(plan: WorkerPlan, group: Group) -> dict[str, Callable[..., None]]:
    """Command -> what to do."""
    follower = Follower(plan, group)
    return {
        "open": follower.open,
        "build": follower.build,
        "step": follower.step,
        "reset": follower.reset,
        "close": follower.close,
        "forward": follower.forward,
        "experts": follower.experts,
        "memory": follower.memory,
    }


class Follower:
    """One rank's part of a model, with its engines."""

    def __init__(self, plan: WorkerPlan, group: Group) -> None:
        self._plan, self._group = plan, group
        self._engines: dict[int, Engine] = {}
        self._digests: dict[int, int] = {}
        self._watch = measure.Watch(group.device)

    def open(self) -> None:
        """Load the model, override its routing if the workload does, tap it."""
        plan = self._plan
        self._model = open_model(
            plan.model, plan.lanes[0].base, plan.own_engine, self._group.device, load_part=load_part
        ).model
        self._watch.loaded()
        self._routing = RoutingInstrument(self._model, plan)
        self._listeners = ListenerSet(self._routing.always)
        self._counter = PicksCounter(self._routing.tap)

    def build(self, number: int, settings: TransformersSettings, eos_ids: tuple[int, ...]) -> None:
        """Build an engine; the first one brings recorded picks in force, as rank 0 does."""
        engine = build_engine(self._model, settings_of_rank(settings, self._model), self._listeners, eos_ids)
        if not self._digests:
            self._watch.engine_ready(engine.facts.kv_bytes)
            self._routing.replay_recorded(Schedule.load(self._plan.schedule_file), engine, self._listeners)
        self._engines[number], self._digests[number] = engine, 0
        self._group.gather(engine.facts)

    def step(self, number: int, requests: tuple[Request, ...], watched: bool) -> None:
        """Take the new requests, then one step."""
        engine = self._engines[number]
        for request in requests:
            engine.submit(request)
        self._counter.watch(watched, self._listeners)
        self._digests[number] = digest(self._digests[number], engine.step())
        self._counter.collect()

    def reset(self, number: int) -> None:
        """Forget all requests; tell what was chosen and counted since the last time."""
        self._engines[number].reset()
        counts = self._counter.take()
        self._group.gather((self._digests[number], counts))
        self._digests[number] = 0

    def close(self, number: int) -> None:
        """Release an engine."""
        self._engines.pop(number).close()

    def forward(self, attention: str | None, args: Any, kwargs: Any) -> None:
        """The whole model, without an engine."""
        if compat.attention_of(self._model.config) != attention:
            self._model.set_attn_implementation(attention)
        with torch.inference_mode():
            self._model(*on_device(args, self._group.device), **on_device(kwargs, self._group.device))

    def experts(self, name: str, args: Any, kwargs: Any) -> None:
        """One experts module alone, without what is wrapped around it."""
        run = plain_forward(self._model.get_submodule(name))
        with torch.inference_mode():
            run(*on_device(args, self._group.device), **on_device(kwargs, self._group.device))

    def memory(self) -> None:
        """Tell what this rank's memory is like."""
        self._group.gather(self._watch.summary())


class PicksCounter:
    """Sums what a tap counts, while it is to be watched.

    Args:
        tap: switched off, or None where there is nothing to tap.
    """

    def __init__(self, tap: RoutingTap | None) -> None:
        self._tap, self._watching = tap, False
        self._counts_LE: npt.NDArray[np.int64] | None = None

    def watch(self, wanted: bool, listeners: ListenerSet) -> None:
        """Put the tap on or take it off, as rank 0 does with its own."""
        if self._tap is None or wanted == self._watching:
            return
        self._watching = wanted
        if wanted:
            self._tap.enable()
            listeners.listeners.append(self._tap)
        else:
            listeners.listeners.remove(self._tap)
            self._tap.disable()

    def collect(self, *, everything: bool = False) -> None:
        """Add the blocks that are ready."""
        if self._tap is None:
            return
        for block in self._tap.collect_blocks(everything=everything):
            counts_LE = block.counts_SLGE.sum(axis=(0, 2), dtype=np.int64)
            self._counts_LE = counts_LE if self._counts_LE is None else self._counts_LE + counts_LE

    def take(self) -> npt.NDArray[np.int64] | None:
        """Picks by layer and expert since the last time, [L, E]; None where nothing was watched."""
        self.collect(everything=True)
        counts_LE, self._counts_LE = self._counts_LE, None
        return counts_LE
