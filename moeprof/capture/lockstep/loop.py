"""Lock-step: several lanes stepped in turn on one schedule, so that noise of the machine hits all of them alike.

Output lengths are forced, so step i has the same batch in every lane, and this is checked for each step: a lane that
diverges is an error, never a number. In one process all lanes take step i before any takes step i + 1. The order is
then a Williams square (https://doi.org/10.1071/CH9490149): each lane takes each place equally often, and follows each
other lane equally often, so that what one leaves in the caches burdens all alike.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from moeprof.capture.devices.run_queue import nobody_knows
from moeprof.capture.engines.base import Engine, Step
from moeprof.capture.recorders.stream import TableStream
from moeprof.capture.replay import Pacer
from moeprof.capture.routing.tables import StepLoad
from moeprof.core.errors import EngineError
from moeprof.core.trace import Schedule

Status = Literal["done", "cut", "stopped"]


# What a step held: [request, query tokens, past tokens, is prefill, finished] of each sequence, and the requests that
# lost their cache.
Batch = tuple[list[list[int]], list[int]]
Order = Callable[[int, int], Sequence[int]]


@dataclass(slots=True, kw_only=True)
class Turn:
    """Some steps of one lane.

    Attributes:
        rows: one per step, as table ``lanes`` has it, but for cycle, step, lane and place.
        held: the batch of each step; called when every lane had its turn and no clock runs.
        is_last: the schedule ended with the last of them.
    """

    rows: list[dict[str, Any]]
    held: Callable[[], list[Batch]]
    is_last: bool


class Lane(Protocol):
    """One engine with one way of routing, in this process or in another."""

    @property
    def name(self) -> str:
        """A model, a rung of the ladder, or a side of a launch pair."""

    def restart(self) -> None:
        """The next step is the schedule's first."""

    def take(self, number: int) -> Turn:
        """The next steps, so many or those that are left. After the schedule's last step it begins anew."""


@dataclass(slots=True, kw_only=True)
class LocalLane:
    """A lane of this process.

    Attributes:
        name: as :class:`Lane` has it.
        engine: its own engine, with its own KV cache; weights may be shared with other lanes.
        switched_on: puts the lane's overrides on for its turn; switching is outside of the timed part.
        loads: per step of a cycle, how the experts were loaded; None for dense lanes. Known beforehand, because forced
            lengths make every cycle the same: nothing is counted while the clock runs.
    """

    name: str
    engine: Engine
    switched_on: Callable[[], AbstractContextManager[object]] = nullcontext
    loads: Sequence[StepLoad] | None = None
    _cycle: Callable[[], Iterator[tuple[Step, dict[str, Any], bool]]] = field(init=False)
    _steps: Iterator[tuple[Step, dict[str, Any], bool]] | None = field(init=False, default=None)

    def begin(self, schedule: Schedule, limits: Limits) -> None:
        """From now on it replays ``schedule``, timed by the clocks of ``limits``."""
        self._cycle = lambda: self._once_through(schedule, limits)
        self.restart()

    def restart(self) -> None:
        """The next step is the schedule's first."""
        self._steps = None
        self.engine.reset()

    def take(self, number: int) -> Turn:
        """The next steps; see :meth:`Lane.take`.

        Raises:
            EngineError: there is nothing to run.
        """
        rows, seen, is_last = list[dict[str, Any]](), list[Step](), False
        while len(rows) < number and not is_last:
            if self._steps is None:
                self._steps = self._cycle()
            found = next(self._steps, None)
            if found is None:
                raise EngineError(f"lane {self.name}: the schedule has no request to run")
            step, row, is_last = found
            seen.append(step)
            rows.append(row)
        if is_last:
            self._steps = None
        return Turn(rows=rows, held=lambda: [_batch(step) for step in seen], is_last=is_last)

    def _once_through(self, schedule: Schedule, limits: Limits) -> Iterator[tuple[Step, dict[str, Any], bool]]:
        self.engine.reset()
        pacer, in_flight, number = Pacer(schedule, limits.clock()), 0, 0
        while True:
            for request in pacer.due(limits.clock(), in_flight):
                in_flight += 1
                self.engine.submit(request)
            if not in_flight:
                return
            step, row = self._timed_step(number, limits)
            pacer.note(step)
            in_flight -= step.num_ended
            yield step, row | self._load(number), in_flight == 0 and pacer.is_empty
            number += 1

    def _timed_step(self, number: int, limits: Limits) -> tuple[Step, dict[str, Any]]:
        with self.switched_on():
            # The machine takes the processor away where a system call ends. Those of the two accounts therefore come
            # after the clock on both ends: then every wait is in the wall time if and only if it is in the account.
            start, queued, cpu = limits.clock(), limits.queue_clock(), limits.cpu_clock()
            step = self.engine.step()
            wall_s, now, cpu_s = limits.clock() - start, limits.queue_clock(), limits.cpu_clock() - cpu
        if step is None:
            raise EngineError(f"lane {self.name}: nothing to run in step {number} while requests are in flight")
        return step, {
            "phase": step.phase,
            "prefill_tokens": step.prefill_tokens,
            "decode_tokens": step.decode_tokens,
            "context_tokens": step.context_tokens,
            "num_requests": len(step.sequences),
            "wall_s": wall_s,
            "cpu_s": cpu_s,
            "queued_s": None if now is None or queued is None else min(now - queued, wall_s),
            "device_s": step.device_s,
        }

    def _load(self, step: int) -> dict[str, int]:
        if self.loads is None:
            return {}
        if step >= len(self.loads):
            raise EngineError(f"lane {self.name}: step {step} was never seen while routing was recorded")
        load = self.loads[step]
        return {"distinct_experts": load.distinct_experts, "max_expert_load": load.max_expert_load}


@dataclass(frozen=True, slots=True, kw_only=True)
class LockstepResult:
    """How a measurement went.

    Attributes:
        status: ``done`` (a whole cycle or more within the time), ``cut`` (not even one), ``stopped`` (requested).
        cycles: whole times through the schedule.
        steps: turns of all lanes, those of an unfinished cycle included.
        duration_s: seconds.
    """

    status: Status
    cycles: int
    steps: int
    duration_s: float


@dataclass(slots=True, kw_only=True)
class Limits:
    """When to end.

    Attributes:
        max_seconds: after the start of the measurement.
        deadline_s: clock time, or None.
        should_stop: called between turns.
        beat: called between turns with cycle and step.
        clock, cpu_clock: seconds; replaced in tests.
        queue_clock: seconds that the machine let this thread wait for a processor, where known (run_queue.py).
    """

    max_seconds: float
    deadline_s: float | None = None
    should_stop: Callable[[], bool] = lambda: False
    beat: Callable[[int, int], None] = lambda cycle, step: None
    clock: Callable[[], float] = time.perf_counter
    cpu_clock: Callable[[], float] = time.process_time
    queue_clock: Callable[[], float | None] = nobody_knows
    started_s: float = field(init=False, default=0.0)

    def start(self) -> None:
        """The measurement begins."""
        self.started_s = self.clock()

    def over(self) -> bool:
        """True when time is up or someone requested a stop."""
        now = self.clock()
        late = now - self.started_s >= self.max_seconds or (self.deadline_s is not None and now >= self.deadline_s)
        return late or self.should_stop()


def run_lockstep(lanes: Sequence[LocalLane], schedule: Schedule, folder: Path, limits: Limits) -> LockstepResult:
    """Replay ``schedule`` in all lanes of this process until the time is up, a step each in turn.

    Raises:
        EngineError: lanes differ in KV space or batch size, or as :func:`measure_turns` does.
    """
    check_alike({lane.name: asdict(lane.engine.facts) for lane in lanes}, ("batching", "kv_tokens", "max_batch_tokens"))
    for lane in lanes:
        lane.begin(schedule, limits)
    orders = turn_orders(len(lanes))
    try:
        with _no_collections():
            # The cycle's number shifts the order, so that a step does not keep its places from cycle to cycle.
            return measure_turns(lanes, folder, limits, lambda cycle, turn: orders[(turn + cycle) % len(orders)])
    finally:
        for lane in lanes:
            lane.restart()


def measure_turns(
    lanes: Sequence[Lane], folder: Path, limits: Limits, order: Order, turn_steps: int = 1
) -> LockstepResult:
    """Step all lanes in turn until the time is up; writes table ``lanes`` (one row per step and lane).

    Args:
        lanes: each at the first step of one schedule.
        folder: of the table.
        limits: when to end.
        order: of the lanes, by cycle and turn.
        turn_steps: steps of one lane before the next lane's turn.

    Raises:
        EngineError: a lane's step holds another batch than the others', or none.
    """
    stream, cycles, steps = TableStream(folder, "lanes"), 0, 0
    try:
        limits.start()
        while not limits.over():
            step = 0
            for rows, is_last in _cycle(lanes, cycles, order, turn_steps):
                for number, row in rows:
                    stream.append({"cycle": cycles, "step": number} | row)
                step = rows[-1][0]
                stream.flush_if_due()
                limits.beat(cycles, step)
                steps, cycles = steps + len(rows) // len(lanes), cycles + is_last
                if is_last or limits.over():
                    break
    finally:
        stream.close()
    status: Status = "stopped" if limits.should_stop() else "done" if cycles else "cut"
    return LockstepResult(status=status, cycles=cycles, steps=steps, duration_s=limits.clock() - limits.started_s)


def warm_up_turns(lanes: Sequence[Lane], limits: Limits, order: Order, turn_steps: int = 1) -> int:
    """One cycle (or the part of it that ``limits`` leave time for) whose times nobody keeps; returns its steps."""
    limits.start()
    steps = 0
    for rows, is_last in _cycle(lanes, 0, order, turn_steps):
        steps += len(rows) // len(lanes)
        limits.beat(0, steps)
        if is_last or limits.over():
            break
    for lane in lanes:
        lane.restart()
    return steps


def warm_up_lanes(lanes: Sequence[LocalLane], schedule: Schedule, limits: Limits) -> int:
    """:func:`warm_up_turns` of lanes of this process."""
    for lane in lanes:
        lane.begin(schedule, limits)
    orders = turn_orders(len(lanes))
    return warm_up_turns(lanes, limits, lambda cycle, turn: orders[turn % len(orders)])


def _cycle(
    lanes: Sequence[Lane], number: int, order: Order, turn_steps: int
) -> Iterator[tuple[list[tuple[int, dict[str, Any]]], bool]]:
    """Once through the schedule: the rows of each turn with their steps' numbers, and whether it was the last turn."""
    turn, start = 0, 0
    while True:
        places = order(number, turn)
        taken = {i: lanes[i].take(turn_steps) for i in places}
        for i in range(1, len(lanes)):
            _check_same(lanes[0], taken[0], lanes[i], taken[i], start)
        num_steps = len(taken[0].rows)
        yield (
            [
                (start + step, {"lane": lanes[i].name, "place": place} | taken[i].rows[step])
                for step in range(num_steps)
                for place, i in enumerate(places)
            ],
            taken[0].is_last,
        )
        turn, start = turn + 1, start + num_steps


def turn_orders(n: int) -> list[tuple[int, ...]]:
    """Orders of ``n`` lanes: 2n rows in which each lane has each place twice and follows each other lane twice."""
    zigzag = [(i + 1) // 2 if i % 2 else -(i // 2) % n for i in range(n)]
    rows = [tuple((lane + shift) % n for lane in zigzag) for shift in range(n)]
    return [order for row in rows for order in (row, row[::-1])]


def check_alike(facts: Mapping[str, Mapping[str, Any]], keys: Sequence[str]) -> None:
    """Lanes must schedule alike.

    Args:
        facts: of each lane, by its name.
        keys: of those facts that must be equal.

    Raises:
        EngineError: two of them differ; the message names lane and fact.
    """
    first = next(iter(facts))
    for lane, key in ((lane, key) for lane in facts for key in keys):
        mine, theirs = facts[lane][key], facts[first][key]
        if mine != theirs:
            raise EngineError(
                f"lane {lane}: {key} is {mine}, {theirs} in lane {first}; lanes in lock-step need equal engines"
            )


def _check_same(first: Lane, its: Turn, lane: Lane, turn: Turn, start: int) -> None:
    mine, theirs = turn.held(), its.held()
    if mine == theirs and turn.is_last == its.is_last:
        return
    number = next((i for i, (one, other) in enumerate(zip(mine, theirs, strict=False)) if one != other), None)
    if number is None:
        most = max(len(mine), len(theirs))
        raise EngineError(
            f"lane {lane.name}: the schedule ends after {len(mine)} of {most} steps from step {start} on, in lane "
            f"{first.name} after {len(theirs)}; lanes in lock-step need equal batches"
        )
    raise EngineError(
        f"lane {lane.name}: step {start + number} is {_described(turn, number)}, in lane {first.name} "
        f"{_described(its, number)}; lanes in lock-step need equal batches"
    )


def _described(turn: Turn, number: int) -> str:
    sequences, _ = turn.held()[number]
    return f"{turn.rows[number]['phase']} of {len(sequences)} requests and {sum(s[1] for s in sequences)} tokens"


def _batch(step: Step) -> Batch:
    rows = [[s.request, s.query_tokens, s.past_tokens, s.is_prefill, s.finished] for s in step.sequences]
    return rows, list(step.preempted)


@contextmanager
def _no_collections() -> Iterator[None]:
    """A collection in the middle of a step would be billed to the lane whose turn it is."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
