"""A loaded model with its routing instrument and whichever engine is mounted on it.

The routing instrument finds the model's MoE layers, overrides their routing if the workload does, taps them and checks
the tap. A dense model has none of this; everything is then empty, and the same code runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from moeprof.capture.engines.base import Engine, ForwardListener, ListenerSet, ServedEngine
from moeprof.capture.engines.deployment import Deployment, RoutingSource, ShownRouter
from moeprof.capture.engines.faults import slowed
from moeprof.capture.models.attention import windows_of
from moeprof.capture.models.moe_layers import find_moe_layers, layer_shapes
from moeprof.capture.protocol import WorkerPlan
from moeprof.capture.recorders.routing import PicksWriter, RoutingRecorder
from moeprof.capture.replay import Recorder, refusal, replay
from moeprof.capture.routing.check import self_check
from moeprof.capture.routing.count import RoutingBlock
from moeprof.capture.routing.override import PickOverride, PickTable
from moeprof.capture.routing.recorded import replay_table
from moeprof.capture.routing.rows import Positions
from moeprof.capture.routing.shown import ShownTap, check_shown
from moeprof.capture.routing.tap import RoutingTap
from moeprof.core.errors import EngineError
from moeprof.core.trace import Schedule, first_requests
from moeprof.core.workload.engine import EngineSettings, TransformersSettings

SELF_CHECK_REQUESTS = 2


class RoutingInstrument:
    """What is put on one model to watch and to override its routing.

    Where the module is elsewhere there is nothing of it; the engine may show its picks, or count itself.

    Args:
        model: the module, or None.
        plan: of the worker.
        source: the engine's own account of its routing.
        shown: picks that the engine shows.
    """

    def __init__(
        self, model: Any, plan: WorkerPlan, source: RoutingSource | None = None, shown: ShownRouter | None = None
    ) -> None:
        self._model, self._plan, self._source = model, plan, source
        self._instruments = plan.alone.instruments
        self.layers = () if model is None else find_moe_layers(model)
        self._replayed: PickOverride | None = None
        self._override = self._overridden(plan)
        self._tap: RoutingTap | None = None
        self._passed = True
        kept: dict[str, Any] = {
            "save_picks": self._instruments.save_detailed, "picks_cap_bytes": self._instruments.picks_cap_mib * 2**20
        }  # fmt: skip
        if shown is not None and self._instruments.routing:
            self._tap = ShownTap(shown, torch.device(plan.device), plan.alone.class_names, **kept)
        elif self.layers and self._instruments.routing:
            self._tap = RoutingTap(model, self.layers, plan.alone.class_names, **kept)
        if self._tap is not None:
            self._tap.disable()

    def _overridden(self, plan: WorkerPlan) -> PickOverride | None:
        """What replaces the router's picks; the tap sees what is executed."""
        if not self.layers or plan.model.routing.policy in ("native", "replay"):
            return None
        from moeprof.capture.routing.override import override_routing

        return override_routing(self.layers, plan.model.routing)

    @property
    def tap(self) -> RoutingTap | None:
        """The tap, switched off unless something is watched; None where there is nothing to tap."""
        return self._tap

    @property
    def unseen(self) -> str | None:
        """Why nobody can tell where tokens go, or None."""
        if self._tap is None:
            off = self.layers or not self._instruments.routing
            return "the routing tap is off (instruments.routing)" if off else "a dense model has no router"
        return None if self._passed else "the routing tap failed its self-check"

    def replay_recorded(self, schedule: Schedule, engine: ServedEngine, listeners: ListenerSet) -> None:
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
        picks = PickTable(table, Positions.of(schedule), next(self._model.parameters()).device)
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
        """The tap is on the model, and the engine tells it what each forward holds."""
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
        source = self._tap or self._source
        if source is None:
            return []
        instruments = self._instruments
        return [
            RoutingRecorder(
                folder,
                source,
                window_steps=instruments.window_steps,
                step_counts_cap_bytes=instruments.step_counts_cap_mib * 2**20,
                picks=PicksWriter(folder) if instruments.save_detailed else None,
            )
        ]

    def self_check(self, engine: Engine, listeners: ListenerSet, schedule: Schedule) -> dict[str, Any]:
        """Run two warm-up requests and check every claim the tap makes; the answer goes into the record."""
        if self._tap is None:
            return {
                "passed": None,
                "notes": ["no routed experts" if not self.layers else "routing was not recorded (instruments.routing)"],
            }
        few = first_requests(schedule, SELF_CHECK_REQUESTS, engine.facts.max_sequence_tokens).as_offline()
        self._tap.bind(few.request_class)
        with self.watching(listeners):
            if isinstance(self._tap, ShownTap):
                result = check_shown(self._tap, engine, lambda recorders: replay(engine, few, recorders))
            else:
                result = self_check(self._tap, engine, listeners, lambda: replay(engine, few, []))
        engine.reset()
        self._tap.discard()
        self._passed = result.passed
        return asdict(result)

    def close(self) -> None:
        """Take everything off the model."""
        if self._tap is not None:
            self._tap.close()
        if self._override is not None:
            self._override.close()


WARM_AGAIN_REQUESTS = 4


class InstrumentedModel:
    """One model, its routing instrument, and one engine at a time.

    Attributes:
        deployment: what was opened.
        routing: its routing instrument.
        windows: of its layers' attention, smallest first; empty where all see everything, or are elsewhere.
        listeners: of the engine.
        engine: the one that is mounted.
    """

    def __init__(self, deployment: Deployment, plan: WorkerPlan, should_stop: Callable[[], bool]) -> None:
        self.deployment, self._plan, self._should_stop = deployment, plan, should_stop
        self.routing = RoutingInstrument(deployment.module, plan, deployment.routing, deployment.shown)
        self.windows = () if deployment.module is None else windows_of(deployment.module)
        self.listeners = ListenerSet(self.routing.always)
        self.engine = self._build(plan.engine)
        self._batch_tokens: int | None = None

    @property
    def stepped(self) -> Engine:
        """The mounted engine, for measurements that need steps.

        Raises:
            EngineError: it steps itself.
        """
        reason = self.deployment.why_not("steps")
        if reason is not None:
            raise EngineError(f"this needs an engine that we step: {reason}")
        return cast("Engine", self.engine)

    def self_check(self, warmup: Schedule) -> dict[str, Any]:
        """The tap's check on the mounted engine; of an engine that counts itself, or cannot, why there is none."""
        reason = self.deployment.why_not("module")
        if reason is not None and self.routing.tap is None:
            reason = self.deployment.why_not("routing") or self.routing.unseen or reason
            return {"passed": None, "notes": [f"no tap of ours: {reason}"]}
        return self.routing.self_check(self.stepped, self.listeners, warmup)

    def why_not(self, need: str) -> str | None:
        """Why a measurement cannot have what it needs here, or None where it can: opened so, or seen by the tap."""
        reason = self.deployment.why_not(need)
        if reason is None and need == "routing" and self.deployment.routing is None:
            reason = self.routing.unseen
        return reason

    def capture_for(self, schedule: Schedule, engine: ServedEngine | None = None) -> int:
        """Capture the decode steps that a schedule will need, where the engine captures; how many are new.

        With the listeners as they are: call it while the tap watches if the pass will be watched.
        """
        in_flight = min(len(schedule), schedule.concurrency or len(schedule))
        longest = int((schedule.input_tokens + schedule.output_tokens).max(initial=1))
        return (engine or self.engine).prepare(in_flight, longest)

    def use_batch_tokens(self, max_batch_tokens: int | None, warmup: Schedule) -> None:
        """Another engine where a sweep asks for another step size; a few warm-up requests, then it counts.

        None: the workload's own step size.
        """
        if max_batch_tokens == self._batch_tokens:
            return
        self.engine.close()
        self._batch_tokens, settings = max_batch_tokens, self._plan.own_engine
        own = settings if max_batch_tokens is None else replace(settings, max_batch_tokens=max_batch_tokens)
        self.engine = self._build(own)
        few = first_requests(warmup, WARM_AGAIN_REQUESTS, self.engine.facts.max_sequence_tokens).as_offline()
        replay(self.engine, few, [], should_stop=self._should_stop)
        self.engine.reset()

    def mount_pair(self, settings: TransformersSettings) -> Engine:
        """A bare engine, to be stepped in turn with a watched one, which is mounted."""
        self.engine.close()
        bare = self.deployment.build(settings, ListenerSet(self.routing.always), in_turn=True)
        self.engine = self.deployment.build(settings, self.listeners, in_turn=True)
        return cast("Engine", bare)

    @contextmanager
    def without_engine(self) -> Iterator[None]:
        """The bare model inside, a new engine with the workload's settings afterwards."""
        self.engine.close()
        yield
        self.engine = self._build(self._plan.engine)
        self._batch_tokens = None

    @contextmanager
    def eager_engine(self) -> Iterator[Engine]:
        """An engine of which Python launches every operation, as a profiler needs it."""
        settings = replace(self._plan.own_engine, decode_graphs="off", run_ahead="off", compile="off")
        with self.without_engine(), closing(self._build(settings)) as eager:
            yield cast("Engine", eager)

    def close(self) -> None:
        """Take everything off the model, release the engine."""
        self.routing.close()
        self.engine.close()

    def _build(self, settings: EngineSettings) -> ServedEngine:
        return slowed(self.deployment.build(settings, self.listeners), self._plan.lanes[0].slowdown)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tapped:
    """The routing tap, as the measurement needs it.

    Attributes:
        layers: names of the MoE layers.
        watching: the tap is on inside, off outside.
        seen: counts of the forwards since the last call.
    """

    layers: tuple[str, ...]
    watching: Callable[[], AbstractContextManager[object]]
    seen: Callable[[], Sequence[RoutingBlock]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """A launch after its rounds, as something that is measured once finds it.

    Attributes:
        model: with the engine that the rounds ran on.
        plan: of the worker; what is written beside launch.json goes to ``plan.folder``.
        schedule: the workload's requests.
        warmup: other text.
        output_bytes: bytes of each output's text, in the order of the schedule; None where it is no whole text.
        should_stop: called now and then.
    """

    model: InstrumentedModel
    plan: WorkerPlan
    schedule: Schedule
    warmup: Schedule
    output_bytes: Sequence[int | None]
    should_stop: Callable[[], bool]
