"""Lock-step: several lanes stepped in turn on one schedule, so that noise of the machine hits all of them alike.

A lane is an engine with one way of routing. Output lengths are forced, so step i has the same batch in every lane, and
this is checked for each step: a lane that diverges is an error, never a number. All lanes take step i before any takes
step i + 1. The order is a Williams square (https://doi.org/10.1071/CH9490149): each lane takes each place equally
often, and follows each other lane equally often, so that what one leaves in the caches burdens all alike.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from moeprof.capture.devices.run_queue import nobody_knows
from moeprof.capture.engines.base import Engine, Step
from moeprof.capture.recorders.stream import TableStream
from moeprof.capture.replay import Pacer
from moeprof.capture.routing.tables import StepLoad
from moeprof.core.errors import EngineError
from moeprof.core.trace import Schedule

Status = Literal["done", "cut", "stopped"]


@dataclass(slots=True, kw_only=True)
class Lane:
    """One engine with one way of routing.

    Attributes:
        name: a model, or a rung of the ladder.
        engine: its own engine, with its own KV cache; weights may be shared with other lanes.
        switched_on: puts the lane's hooks on for its turn; switching is outside of the timed part.
        loads: per step of a cycle, how the experts were loaded; None for dense lanes. Known beforehand, because forced
            lengths make every cycle the same: nothing is counted while the clock runs.
    """

    name: str
    engine: Engine
    switched_on: Callable[[], AbstractContextManager[object]] = nullcontext
    loads: Sequence[StepLoad] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LockstepResult:
    """How a measurement went.

    Attributes:
        status: ``done`` (a whole cycle or more within the time), ``cut`` (not even one), ``stopped`` (asked to).
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
        should_stop: asked between turns.
        beat: told between turns how far it is: cycle and step.
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
        """True when time is up or someone asked to stop."""
        now = self.clock()
        late = now - self.started_s >= self.max_seconds or (self.deadline_s is not None and now >= self.deadline_s)
        return late or self.should_stop()


def run_lockstep(lanes: Sequence[Lane], schedule: Schedule, folder: Path, limits: Limits) -> LockstepResult:
    """Replay ``schedule`` in all lanes until the time is up; writes table ``lanes`` (one row per step and lane).

    Raises:
        EngineError: lanes differ in KV space or batch size, or a lane's step holds another batch than the others'.
    """
    check_alike(lanes)
    stream = TableStream(folder, "lanes")
    orders, cycles, steps = turn_orders(len(lanes)), 0, 0
    try:
        with _no_collections():
            limits.start()
            while not limits.over():
                for step, (turn, is_last) in enumerate(cycle(lanes, schedule, orders, cycles, limits)):
                    for row in turn:
                        stream.append({"cycle": cycles, "step": step} | row)
                    stream.flush_if_due()
                    limits.beat(cycles, step)
                    steps, cycles = steps + 1, cycles + is_last
                    if limits.over():
                        break
    finally:
        stream.close()
        for lane in lanes:
            lane.engine.reset()
    status: Status = "stopped" if limits.should_stop() else "done" if cycles else "cut"
    return LockstepResult(status=status, cycles=cycles, steps=steps, duration_s=limits.clock() - limits.started_s)


def warm_up_lanes(lanes: Sequence[Lane], schedule: Schedule, limits: Limits) -> int:
    """One cycle (or the part of it that ``limits`` leave time for) whose times nobody keeps; returns its steps."""
    limits.start()
    steps = 0
    for _ in cycle(lanes, schedule, turn_orders(len(lanes)), 0, limits, with_loads=False):
        steps += 1
        limits.beat(0, steps)
        if limits.over():
            break
    for lane in lanes:
        lane.engine.reset()
    return steps


def cycle(
    lanes: Sequence[Lane],
    schedule: Schedule,
    orders: Sequence[tuple[int, ...]],
    number: int,
    limits: Limits,
    *,
    with_loads: bool = True,
) -> Iterator[tuple[list[dict[str, Any]], bool]]:
    """Once through the schedule; yields the rows of each turn, in the order of the turn, and whether it was the last.

    Raises:
        EngineError: a lane's step holds another batch than the others', or none.
    """
    for lane in lanes:
        lane.engine.reset()
    pacer, in_flight, step = Pacer(schedule, limits.clock()), 0, 0
    while True:
        for request in pacer.due(limits.clock(), in_flight):
            in_flight += 1
            for lane in lanes:
                lane.engine.submit(request)
        if not in_flight:
            return
        turn: dict[int, tuple[Step, dict[str, Any]]] = {}
        # The cycle's number shifts the order, so that a step does not keep its places from cycle to cycle.
        for place, i in enumerate(orders[(step + number) % len(orders)]):
            turn[i] = _timed_step(lanes[i], step, place, limits)
        first = turn[0][0]
        for i, lane in enumerate(lanes):
            _check_same_batch(lanes[0], first, lane, turn[i][0], step)
            if with_loads:
                turn[i][1].update(_load(lane, step))
        in_flight -= sum(sequence.finished for sequence in first.sequences)
        yield [row for _, row in turn.values()], in_flight == 0 and pacer.is_empty
        step += 1


def turn_orders(n: int) -> list[tuple[int, ...]]:
    """Orders of ``n`` lanes: 2n rows in which each lane has each place twice and follows each other lane twice."""
    zigzag = [(i + 1) // 2 if i % 2 else -(i // 2) % n for i in range(n)]
    rows = [tuple((lane + shift) % n for lane in zigzag) for shift in range(n)]
    return [order for row in rows for order in (row, row[::-1])]


def check_alike(lanes: Sequence[Lane]) -> None:
    """Lanes must schedule alike.

    Raises:
        EngineError: two of them differ; the message names lane and fact.
    """
    first = lanes[0]
    for lane in lanes[1:]:
        for fact in ("batching", "kv_tokens", "max_batch_tokens"):
            mine, theirs = getattr(lane.engine.facts, fact), getattr(first.engine.facts, fact)
            if mine != theirs:
                raise EngineError(
                    f"lane {lane.name}: {fact} is {mine}, {theirs} in lane {first.name}; lanes in lock-step need equal "
                    "engines"
                )


def _timed_step(lane: Lane, number: int, place: int, limits: Limits) -> tuple[Step, dict[str, Any]]:
    with lane.switched_on():
        # The machine takes the processor away where a system call ends. Those of the two accounts therefore come after
        # the clock on both ends: then every wait is in the wall time if and only if it is in the account.
        start, queued, cpu = limits.clock(), limits.queue_clock(), limits.cpu_clock()
        step = lane.engine.step()
        wall_s, now, cpu_s = limits.clock() - start, limits.queue_clock(), limits.cpu_clock() - cpu
    if step is None:
        raise EngineError(f"lane {lane.name}: nothing to run in step {number} while requests are in flight")
    return step, {
        "lane": lane.name,
        "place": place,
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


def _check_same_batch(first_lane: Lane, first: Step, lane: Lane, step: Step, number: int) -> None:
    if lane is first_lane:
        return
    mine, theirs = _batch(step), _batch(first)
    if mine != theirs or step.preempted != first.preempted:
        raise EngineError(
            f"lane {lane.name}: step {number} is {step.phase} of {len(mine)} requests and "
            f"{sum(row[1] for row in mine)} tokens, in lane {first_lane.name} {first.phase} of {len(theirs)} requests "
            f"and {sum(row[1] for row in theirs)} tokens; lanes in lock-step need equal batches"
        )


def _batch(step: Step) -> list[tuple[int, int, int, bool, bool]]:
    return [(s.request, s.query_tokens, s.past_tokens, s.is_prefill, s.finished) for s in step.sequences]


def _load(lane: Lane, step: int) -> dict[str, int]:
    if lane.loads is None:
        return {}
    if step >= len(lane.loads):
        raise EngineError(f"lane {lane.name}: step {step} was never seen while routing was recorded")
    load = lane.loads[step]
    return {"distinct_experts": load.distinct_experts, "max_expert_load": load.max_expert_load}


@contextmanager
def _no_collections() -> Iterator[None]:
    """A collection in the middle of a step would be billed to the lane whose turn it is."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
