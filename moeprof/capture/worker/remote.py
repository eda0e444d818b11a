"""One lane in a process of its own: loads its model as any worker does, and runs steps when the parent says so."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch

from moeprof.capture.lockstep.lanes import route_pair
from moeprof.capture.lockstep.loop import LocalLane
from moeprof.capture.worker.lanes import LaneModels, give_memory_back
from moeprof.capture.worker.session import Session
from moeprof.core.errors import EngineError

REFERENCE_REPETITIONS = 5


class StepOrders:
    """A model of one lane, and the measurement that is under way."""

    def __init__(self, session: Session) -> None:
        self._session, self._models = session, LaneModels(session)
        self._lane: LocalLane | None = None
        self.orders: dict[str, Callable[..., dict[str, Any]]] = {
            "begin": self.begin,
            "steps": self.steps,
            "restart": self.restart,
            "reference": self.reference,
            "end": self.end,
        }

    def load(self) -> dict[str, Any]:
        """Load the model; returns what launch.json says of it, and what the other lane's process must know.

        Raises:
            EngineError: the plan has more than one lane.
        """
        lanes = self._session.plan.lanes
        if len(lanes) != 1:
            raise EngineError(f"two processes: a plan of {len(lanes)} lanes; one per process is allowed")
        self._models.load(replace(lanes[0], optional=False))
        self._session.launch |= {"threads": torch.get_num_threads()}
        return {
            "launch": self._session.launch,
            "static": self._models.static,
            "positions": self._models.positions,
        }

    def begin(self, *, concurrency: int, static: bool, positions: int | None) -> dict[str, Any]:
        """Build the engine for one measurement; returns what pass.json says, the engine's facts, and notes.

        Args:
            concurrency: requests in flight, or OFFLINE.
            static: static batches, because one of the two models needs them.
            positions: the shorter of both models' position limits; None: neither says.
        """
        requests = self._models.requests(concurrency, positions)
        (setup,) = setups = self._models.set_up(requests, static=static)
        limits = self._session.limits(float("inf"))
        route_pair(setups, requests, limits)
        self._lane = setup.lane
        setup.lane.begin(requests.schedule, limits)
        gc.collect()
        gc.freeze()  # a collection in the middle of a step would be billed to this lane
        return {
            "info": self._models.describe(concurrency, requests, setups),
            "facts": asdict(setup.lane.engine.facts),
            "notes": [] if setup.note is None else [setup.note],
        }

    def steps(self, *, number: int) -> dict[str, Any]:
        """The next steps of the schedule."""
        turn = self._begun.take(number)
        return {"rows": turn.rows, "batches": turn.held(), "is_last": turn.is_last}

    def restart(self) -> dict[str, Any]:
        """The next step is the schedule's first again."""
        self._begun.restart()
        return {}

    def reference(self) -> dict[str, Any]:
        """Seconds of the reference kernel in this process."""
        return {"seconds": self._session.reference(REFERENCE_REPETITIONS)}

    def end(self) -> dict[str, Any]:
        """Give the engine's memory back."""
        gc.unfreeze()
        lane, self._lane = self._begun, None
        lane.restart()
        lane.engine.close()
        give_memory_back()
        return {}

    @property
    def _begun(self) -> LocalLane:
        if self._lane is None:
            raise EngineError("two processes: no measurement has begun")
        return self._lane
