"""The routing instruments of one model: find its MoE layers, override their routing if asked, tap them, check the tap.

A dense model has none of this; everything here is then empty, and the same code runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moeprof.capture.engine.base import Engine, ForwardListener, ListenerSet
from moeprof.capture.forced_picks import record_forced_picks
from moeprof.capture.gap import Tapped
from moeprof.capture.moe_structure import find_moe_layers
from moeprof.capture.pick_table import PickOverride, PickTable, layer_shapes
from moeprof.capture.plan import LaunchPlan
from moeprof.capture.positions import Positions
from moeprof.capture.recorders.picks import PicksWriter
from moeprof.capture.recorders.routing import RoutingRecorder
from moeprof.capture.replay import Recorder, refusal, replay
from moeprof.capture.routing_check import self_check
from moeprof.capture.routing_replay import replay_table
from moeprof.capture.routing_tap import RoutingTap
from moeprof.core.forced_picks_file import FILE_NAME, save_forced_picks
from moeprof.core.schedule_rows import first_requests
from moeprof.core.trace import Schedule

SELF_CHECK_REQUESTS = 2


class Tapping:
    """Owns the hooks of one model."""

    def __init__(self, model: Any, plan: LaunchPlan) -> None:
        self._model, self._plan, self._device = model, plan, next(model.parameters()).device
        self.layers = find_moe_layers(model)
        self._replayed: PickOverride | None = None
        self._override = self._overridden(plan)
        self._tap: RoutingTap | None = None
        self._passed = True
        if self.layers and plan.instruments.routing:
            self._tap = RoutingTap(
                model,
                self.layers,
                plan.class_names,
                save_picks=plan.instruments.save_detailed,
                picks_cap_bytes=plan.instruments.picks_cap_mib * 2**20,
            )
            self._tap.disable()

    def _overridden(self, plan: LaunchPlan) -> PickOverride | None:
        """What replaces the router's picks; the tap sees what is executed."""
        if not self.layers or plan.model.routing.policy in ("native", "replay"):
            return None
        from moeprof.capture.routing_override import override_routing

        return override_routing(self.layers, plan.model.routing)

    @property
    def tap(self) -> RoutingTap | None:
        """The tap, switched off unless something is watched; None where there is nothing to tap."""
        return self._tap

    @property
    def no_forced_picks(self) -> str | None:
        """Why it cannot be told where a fixed text is sent, or None."""
        if self._plan.engine.parallel is not None and self._override is not None:
            return "routing is overridden and ranks share the model"
        if self._tap is None:
            return "the routing tap is off (instruments.routing)" if self.layers else "a dense model has no router"
        return None if self._passed else "the routing tap failed its self-check"

    def record_forced_picks(self, schedule: Schedule, should_stop: Callable[[], bool]) -> dict[str, Any]:
        """Record where the model sends a fixed text, beside launch.json, which gets what is returned.

        No engine may be at work on the model.
        """
        found = record_forced_picks(
            self._model, self.layers, schedule, self._plan.class_names, listeners=self.always, should_stop=should_stop
        )
        if isinstance(found, str):
            return {"reason": found}
        save_forced_picks(self._plan.launch_folder / FILE_NAME, found)
        return {"tokens": found.num_tokens, "requests": found.num_requests, "sha256": found.tokens_sha256}

    def replay_recorded(self, schedule: Schedule, engine: Engine, listeners: ListenerSet) -> None:
        """Put recorded picks in force, where the model's routing policy is ``replay``.

        Raises:
            WorkloadError: picks of a request that will be sent are missing, or are of another model.
        """
        routing = self._plan.model.routing
        if not self.layers or routing.policy != "replay":
            return
        left_out = frozenset(r.index for r in schedule.requests() if refusal(engine, r) is not None)
        table = replay_table(Path(str(routing.path)), schedule, layer_shapes(self.layers), left_out=left_out)
        # Until a pass is measured, tokens are of other requests (warm-up) and borrow their picks.
        picks = PickTable(table, Positions.of(schedule), self._device)
        self._replayed = self._override = PickOverride(self.layers, picks, strict=False)
        self._replayed.enable()
        listeners.listeners.append(self._replayed)

    @property
    def always(self) -> list[ForwardListener]:
        """Listeners that any engine of this model needs, watched or not."""
        return [] if self._override is None else [self._override]

    @contextmanager
    def measuring(self, listeners: ListenerSet) -> Iterator[None]:
        """:meth:`watching`, and every token needs recorded picks of its own where picks are replayed."""
        if self._replayed is not None:
            self._replayed.strict = True
        try:
            with self.watching(listeners):
                yield
        finally:
            if self._replayed is not None:
                self._replayed.strict = False

    @contextmanager
    def watching(self, listeners: ListenerSet) -> Iterator[None]:
        """The tap's hooks are on the model, and the engine tells it what each forward holds."""
        if self._tap is None:
            yield
            return
        self._tap.enable()
        listeners.listeners.append(self._tap)
        try:
            yield
        finally:
            listeners.listeners.remove(self._tap)
            self._tap.disable()

    def tapped(self, listeners: ListenerSet) -> Tapped:
        """The tap as the itemisation of steps needs it; without layers where it is off or failed its self-check."""
        tap = self._tap if self._passed else None
        return Tapped(
            layers=() if tap is None else tuple(layer.name for layer in self.layers),
            watching=lambda: self.watching(listeners),
            seen=lambda: [] if tap is None else tap.collect_blocks(everything=True),
        )

    def recorders(self, folder: Path) -> list[Recorder]:
        """The routing recorder of a pass; empty for dense models."""
        if self._tap is None:
            return []
        instruments = self._plan.instruments
        return [
            RoutingRecorder(
                folder,
                self._tap,
                layer_names=tuple(layer.name for layer in self.layers),
                class_names=self._tap.class_names,
                top_k=tuple(layer.top_k for layer in self.layers),
                window_steps=instruments.window_steps,
                step_counts_cap_bytes=instruments.step_counts_cap_mib * 2**20,
                picks=PicksWriter(folder) if instruments.save_detailed else None,
            )
        ]

    def self_check(self, engine: Engine, listeners: ListenerSet, schedule: Schedule) -> dict[str, Any]:
        """Run two warm-up requests and check every claim the tap makes; the answer goes into the record."""
        if self._tap is None:
            return {"passed": None, "notes": ["no routed experts" if not self.layers else "the tap is off"]}
        few = first_requests(schedule, SELF_CHECK_REQUESTS, engine.facts.max_sequence_tokens).as_offline()
        self._tap.bind(few.request_class)
        with self.watching(listeners):
            result = self_check(self._tap, engine, listeners, lambda: replay(engine, few, []))
        engine.reset()
        self._tap.discard()
        self._passed = result.passed
        return asdict(result)

    def close(self) -> None:
        """Take all hooks off the model."""
        if self._tap is not None:
            self._tap.close()
        if self._override is not None:
            self._override.close()
