"""A loaded model with its instruments and whichever engine is mounted on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

from moeprof.capture.engine.base import Engine, ListenerSet
from moeprof.capture.engine.select import build_engine, prepare_decode
from moeprof.capture.plan import LaunchPlan
from moeprof.capture.replay import replay
from moeprof.capture.slowdown import slowed
from moeprof.capture.tapping import Tapping
from moeprof.core.schedule_rows import first_requests
from moeprof.core.trace import Schedule
from moeprof.core.workload import EngineSettings

WARM_AGAIN_REQUESTS = 4


class Rig:
    """One model, its tap, and one engine at a time.

    Attributes:
        model: on its device.
        tapping: its routing instruments.
        listeners: of the engine.
        engine: the one that is mounted.
    """

    def __init__(self, model: Any, plan: LaunchPlan, should_stop: Callable[[], bool]) -> None:
        self.model, self._plan, self._should_stop = model, plan, should_stop
        self.tapping = Tapping(model, plan)
        self.listeners = ListenerSet(self.tapping.always)
        self.engine = self._build(plan.engine)
        self._batch_tokens = plan.engine.max_batch_tokens

    def capture_for(self, schedule: Schedule, engine: Engine | None = None) -> int:
        """Capture the decode steps that a schedule will need, where the engine captures; how many are new.

        With the listeners as they are: call it while the tap watches if the pass will be watched.
        """
        in_flight = min(len(schedule), schedule.concurrency or len(schedule))
        longest = int((schedule.input_tokens + schedule.output_tokens).max(initial=1))
        return prepare_decode(engine or self.engine, in_flight, longest)

    def use_batch_tokens(self, max_batch_tokens: int, warmup: Schedule) -> None:
        """Another engine where a sweep asks for another step size; a few warm-up requests, then it counts."""
        if max_batch_tokens == self._batch_tokens:
            return
        self.engine.close()
        self._batch_tokens = max_batch_tokens
        self.engine = self._build(replace(self._plan.engine, max_batch_tokens=max_batch_tokens))
        few = first_requests(warmup, WARM_AGAIN_REQUESTS, self.engine.facts.max_sequence_tokens).as_offline()
        replay(self.engine, few, [], should_stop=self._should_stop)
        self.engine.reset()

    def mount_pair(self, settings: EngineSettings) -> Engine:
        """A bare engine, to be stepped in turn with a watched one, which is mounted."""
        self.engine.close()
        bare = build_engine(self.model, settings, ListenerSet(self.tapping.always), in_turn=True)
        self.engine = build_engine(self.model, settings, self.listeners, in_turn=True)
        return bare

    @contextmanager
    def without_engine(self) -> Iterator[None]:
        """The bare model inside, a new engine with the workload's settings afterwards."""
        self.engine.close()
        yield
        self.engine = self._build(self._plan.engine)
        self._batch_tokens = self._plan.engine.max_batch_tokens

    @contextmanager
    def eager_engine(self) -> Iterator[Engine]:
        """An engine of which Python launches every operation, as a profiler needs it."""
        settings = replace(self._plan.engine, decode_graphs="off", run_ahead="off", compile="off")
        with self.without_engine(), closing(self._build(settings)) as eager:
            yield eager

    def close(self) -> None:
        """Remove hooks, release the engine."""
        self.tapping.close()
        self.engine.close()

    def _build(self, settings: EngineSettings) -> Engine:
        return slowed(build_engine(self.model, settings, self.listeners), self._plan.slowdown)
