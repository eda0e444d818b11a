"""One lane in a process of its own: loads its model as a lock-step session does, and runs steps when told to."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from moeprof.capture.devices.peaks import time_reference
from moeprof.capture.engines.base import Step, WrappedEngine
from moeprof.capture.lockstep.lanes import Seat
from moeprof.capture.lockstep.loop import Lane, Limits, cycle, turn_orders
from moeprof.capture.lockstep.protocol import Batch
from moeprof.capture.lockstep.session import EQUIP, LockstepSession
from moeprof.capture.protocol import LockstepPlan, Report
from moeprof.core.errors import EngineError
from moeprof.core.trace import Schedule

REFERENCE_REPETITIONS = 5


class SeenEngine(WrappedEngine):
    """An engine that keeps its last step, so that the batch can be told to the parent after the clock was read."""

    last: Step | None = None

    def step(self) -> Step | None:
        """Hand on, and keep."""
        self.last = self._engine.step()
        return self.last

    @property
    def batch(self) -> Batch:
        """What the last step held."""
        assert self.last is not None
        rows = [[s.request, s.query_tokens, s.past_tokens, s.is_prefill, s.finished] for s in self.last.sequences]
        return rows, list(self.last.preempted)


@dataclass(slots=True)
class Turns:
    """A lane that takes so many steps at a time. A turn ends where the schedule ends; the next begins it anew."""

    lane: Lane
    engine: SeenEngine
    schedule: Schedule
    queue_clock: Callable[[], float | None]
    cycle: Iterator[tuple[list[dict[str, Any]], bool]] | None = None

    def take(self, number: int) -> dict[str, Any]:
        """The next ``number`` steps, or those that are left: rows as the table has them, and what each step held."""
        rows, batches, is_last = list[dict[str, Any]](), list[Batch](), False
        while len(rows) < number and not is_last:
            if self.cycle is None:
                limits = Limits(max_seconds=float("inf"), queue_clock=self.queue_clock)
                self.cycle = cycle([self.lane], self.schedule, turn_orders(1), 0, limits)
            found = next(self.cycle, None)
            if found is None:
                raise EngineError(f"lane {self.lane.name}: the schedule has no request to run")
            (row,), is_last = found
            rows.append(row)
            batches.append(self.engine.batch)
        if is_last:
            self.cycle = None
        return {"rows": rows, "batches": batches, "is_last": is_last}

    def restart(self) -> None:
        """Forget where it was."""
        self.cycle = None
        self.engine.reset()


class StepSession(LockstepSession):
    """A model of one lane, and the measurement that is under way."""

    def __init__(self, plan: LockstepPlan, send: Callable[[dict[str, Any]], None]) -> None:
        def report(said: Report) -> None:
            send({"event": said.event, "data": said.data})

        super().__init__(plan, lambda: False, report)
        self._turns: Turns | None = None
        self._together: dict[str, Any] = {}

    @property
    def orders(self) -> dict[str, Callable[..., dict[str, Any]]]:
        """What it can be told to do, beside to close."""
        return {
            "begin": self.begin,
            "steps": self.steps,
            "restart": self.restart,
            "reference": self.reference,
            "end": self.end,
        }

    def finish(self) -> None:
        """The parent writes; two processes share the folder."""

    def load(self) -> dict[str, Any]:
        """Load the model; returns what launch.json says of it, and what the other lane's process must know.

        Raises:
            EngineError: the plan has more than one lane.
        """
        if len(self._plan.lanes) != 1:
            raise EngineError(f"two processes: a plan of {len(self._plan.lanes)} lanes; one per process is allowed")
        (lane,) = self._plan.lanes
        self._open(replace(lane, optional=False), self._weights_of(lane))
        self._lanes.append(lane)
        self._launch |= {"threads": torch.get_num_threads()}
        return {"launch": self._launch, "static": super()._static(), "positions": super()._longest()}

    def begin(self, *, concurrency: int, static: bool, positions: int | None) -> dict[str, Any]:
        """Build the engine for one measurement; returns what pass.json says, the engine's facts, and notes.

        Args:
            concurrency: requests in flight, or OFFLINE.
            static: static batches, because one of the two models needs them.
            positions: the shorter of both models' position limits; None: neither says.
        """
        self._together = {"static": static, "positions": positions}
        requests = self._requests(concurrency)
        seat = self._seat(self._lanes[0], self._settings(requests.schedule))
        EQUIP[self._plan.kind]([seat], requests, Limits(max_seconds=float("inf")))
        self._turns = _turns(seat, requests.schedule, self._queue_clock)
        gc.collect()
        gc.freeze()  # a collection in the middle of a step would be billed to this lane
        return {
            "info": self._described(concurrency, requests, [seat]),
            "facts": asdict(seat.lane.engine.facts),
            "notes": [] if seat.note is None else [seat.note],
        }

    def steps(self, *, number: int) -> dict[str, Any]:
        """The next steps of the schedule; see :meth:`Turns.take`."""
        return self._measurement.take(number)

    def restart(self) -> dict[str, Any]:
        """The next step is the schedule's first again."""
        self._measurement.restart()
        return {}

    def reference(self) -> dict[str, Any]:
        """Seconds of the reference kernel in this process."""
        return {"seconds": time_reference(self._device, repetitions=REFERENCE_REPETITIONS)}

    def end(self) -> dict[str, Any]:
        """Give the engine's memory back."""
        gc.unfreeze()
        turns, self._turns = self._measurement, None
        turns.restart()
        turns.engine.close()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return {}

    @property
    def _measurement(self) -> Turns:
        if self._turns is None:
            raise EngineError("two processes: no measurement has begun")
        return self._turns

    def _static(self) -> bool:
        return bool(self._together["static"])

    def _longest(self) -> int | None:
        longest: int | None = self._together["positions"]
        return longest


def _turns(seat: Seat, schedule: Schedule, queue_clock: Callable[[], float | None]) -> Turns:
    engine = SeenEngine(seat.lane.engine)
    seat.lane.engine = engine
    return Turns(lane=seat.lane, engine=engine, schedule=schedule, queue_clock=queue_clock)
