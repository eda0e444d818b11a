"""THE loop: a schedule through an engine, watched by recorders.

Engines that we step tell each step, engines that step themselves tell the tokens that arrived. One loop, three
patterns. Open: a request is sent when its arrival comes, whatever the engine does, and latency counts from the arrival.
Closed: a new request follows each finished one. Offline: all at once. In each of them a turn of a conversation may wait
for the answer to another (sessions.py): it arrives when that has ended, after its pause. A request that can never fit
is refused before it reaches the engine, because an over-long one would stop the whole batch.
"""

from __future__ import annotations

import heapq
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from moeprof.capture.engines.base import ServedEngine, Step, TokenEvents
from moeprof.capture.sessions import NotSent, Sessions
from moeprof.core.errors import EngineError
from moeprof.core.trace import Request, Schedule

IDLE_NAP_S = 0.05  # upper bound of one wait, so that a stop is heard


class Recorder:
    """Listens to a replay. Appends; computes no statistics, prints nothing, answers nobody. Notes nothing by itself."""

    def on_start(self, schedule: Schedule, origin_s: float) -> None:
        """The pass begins; all times given later minus ``origin_s`` are seconds from its start."""

    def on_send(self, request: Request, sent_s: float, slack_s: float, refused: str | None) -> None:
        """A request was handed over, or refused with a reason."""

    def on_not_sent(self, request: Request, reason: str) -> None:
        """A turn will never be sent, because the one before it came to nothing."""

    def on_step(self, step: Step, num_waiting: int) -> None:
        """A step ended; never called for an engine that steps itself."""

    def on_tokens(self, told: TokenEvents) -> None:
        """Tokens arrived; never called for a stepped engine."""

    def on_end(self, end_s: float) -> None:
        """The pass is over; write what is left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayResult:
    """How a pass went. Times are clock seconds.

    Attributes:
        status: ``done``, ``cut`` (deadline) or ``stopped`` (signal).
        sent, refused, finished: numbers of requests.
        not_sent: turns whose predecessor came to nothing, or had not ended when the pass did.
    """

    status: Literal["done", "cut", "stopped"]
    origin_s: float
    end_s: float
    sent: int
    refused: int
    finished: int
    not_sent: int = 0


class Pacer:
    """Decides which requests are due, on the engine's clock. ``in_flight`` counts requests sent and not finished.

    What ends makes room, in a closed loop for the next request of the schedule, and where turns wait for answers for
    those that waited: one mechanism. Where both are there a turn goes first, for its conversation is under way.
    """

    def __init__(self, schedule: Schedule, origin_s: float) -> None:
        self._limit = schedule.concurrency if schedule.pattern == "closed" else None
        self._timed, self._origin_s = schedule.pattern == "open", origin_s
        self._free_s = origin_s
        self._first: deque[Request] = deque()
        self._due: list[tuple[float, int, Request]] = []  # heap of turns whose answer has ended
        self._sessions = Sessions(schedule)
        for request in schedule.requests():
            if not self._sessions.hold(request):
                self._first.append(request)

    def due(self, now_s: float, in_flight: int) -> list[Request]:
        """Requests to send at clock time ``now_s``, in order."""
        now_s = max(now_s, self._free_s)
        room = len(self._first) + len(self._due) if self._limit is None else max(0, self._limit - in_flight)
        ready: list[Request] = []
        while len(ready) < room and (request := self._next(now_s)) is not None:
            arrived_s = self._origin_s + request.arrival_s if self._timed else now_s
            self._sessions.sent(request, arrived_s)
            ready.append(request)
        return ready

    def _next(self, now_s: float) -> Request | None:
        turn_s = self._due[0][0] if self._due else math.inf
        first_s = math.inf
        if self._first:
            first_s = self._origin_s + self._first[0].arrival_s if self._timed else now_s
        if turn_s <= now_s and (turn_s <= first_s or not self._timed):
            return heapq.heappop(self._due)[2]
        return self._first.popleft() if first_s <= now_s else None

    @property
    def is_empty(self) -> bool:
        """True when nothing is left to hand out, unless a request ends for whose answer turns wait."""
        return not self._first and not self._due

    def wait_s(self, now_s: float) -> float:
        """Seconds until the next request arrives; 0 or less when it has."""
        times = [self._due[0][0]] if self._due else []
        if self._first:
            times.append(self._origin_s + self._first[0].arrival_s)
        return min(times) - now_s

    def nap_s(self, now_s: float, in_flight: int) -> float:
        """How long nothing will be due unless a request ends."""
        full = self._limit is not None and in_flight >= self._limit
        if full or self.is_empty or not (self._timed or self._due):
            return IDLE_NAP_S
        return max(0.0, min(IDLE_NAP_S, self.wait_s(now_s)))

    def ready_s(self, request: Request) -> float:
        """When it could have been sent: at its arrival, and not while a step held the loop or its place was taken."""
        return max(self._origin_s + request.arrival_s, self._free_s)

    def note(self, told: Step | TokenEvents) -> list[NotSent]:
        """What ended makes way for others; returns turns that will never be sent, because the one before failed.

        A step holds the loop until it ends; of what steps itself only the end of a request frees a place.
        """
        ended, lost = self._sessions.ended(told), []
        if isinstance(told, Step):
            self._free_s = told.end_s
        elif not self._timed:
            self._free_s = max((event.at_s for event in told.events if event.finished), default=self._free_s)
        for index, at_s, error in ended:
            if error is not None:
                lost += self.lost(index, f"failed ({error})")
                continue
            for due_s, request in self._sessions.follow(index, at_s):
                if isinstance(request, NotSent):
                    lost += [request, *self.lost(request.request.index, "was not sent")]
                else:
                    turn = replace(request, arrival_s=due_s - self._origin_s)
                    heapq.heappush(self._due, (due_s, turn.index, turn))
        return lost

    def left(self) -> list[NotSent]:
        """Turns of conversations under way that the end of the pass leaves unsent."""
        paused = [NotSent(request, "the pass ended before its pause was over") for _, _, request in sorted(self._due)]
        followers = [turn for one in paused for turn in self.lost(one.request.index, "was not sent")]
        return [*paused, *followers, *self._sessions.give_up_all("had not ended when the pass did")]

    def lost(self, index: int, how: str) -> list[NotSent]:
        """The turns that will never be sent because request ``index`` came to nothing."""
        return list(self._sessions.give_up(index, how))


def replay(
    engine: ServedEngine,
    schedule: Schedule,
    recorders: Sequence[Recorder],
    *,
    should_stop: Callable[[], bool] = lambda: False,
    deadline_s: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> ReplayResult:
    """Run one pass. ``deadline_s`` is a clock time after which the pass is cut.

    A closed-loop request "arrives" when its place becomes free, so its latency counts from when it was sent. When the
    engine fails, the recorders still write what they have seen before the error goes on.
    """
    origin = clock()
    for recorder in recorders:
        recorder.on_start(schedule, origin)
    try:
        result = _loop(engine, Pacer(schedule, origin), recorders, origin, should_stop, deadline_s, clock, sleep)
    except Exception as error:
        _end_after(error, recorders, clock())
        raise
    for recorder in recorders:
        recorder.on_end(result.end_s)
    return result


def _loop(
    engine: ServedEngine,
    pacer: Pacer,
    recorders: Sequence[Recorder],
    origin: float,
    should_stop: Callable[[], bool],
    deadline_s: float | None,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> ReplayResult:
    in_flight = sent = refused = finished = not_sent = 0
    status: Literal["done", "cut", "stopped"] = "done"
    while True:
        for request in pacer.due(clock(), in_flight):
            reason = refusal(engine, request)
            now = clock()
            if reason is None:
                engine.submit(request)
                sent, in_flight = sent + 1, in_flight + 1
            else:
                refused += 1
            for recorder in recorders:
                recorder.on_send(request, now, now - pacer.ready_s(request), reason)
            if reason is not None:
                not_sent += _tell_lost(recorders, pacer.lost(request.index, f"was refused ({reason})"))
        told = engine.poll(pacer.nap_s(clock(), in_flight)) if in_flight else None
        if told is not None:
            lost = pacer.note(told)
            finished += _tell(recorders, told, in_flight)
            not_sent += _tell_lost(recorders, lost)
            in_flight -= told.num_ended
        elif in_flight:
            raise EngineError(f"the engine has {in_flight} requests in flight and nothing to run: it lost them")
        elif pacer.is_empty:
            break
        elif (wait_s := pacer.wait_s(clock())) > 0:
            sleep(min(wait_s, IDLE_NAP_S))
        if should_stop():
            status = "stopped"
            break
        if deadline_s is not None and clock() >= deadline_s:
            status = "cut"
            break
    for told in engine.drain():  # launched before the stop was heard: their tokens were computed, so they count
        not_sent += _tell_lost(recorders, pacer.note(told))
        finished += _tell(recorders, told, 0)
    not_sent += _tell_lost(recorders, pacer.left())
    return ReplayResult(
        status=status, origin_s=origin, end_s=clock(), sent=sent, refused=refused, finished=finished, not_sent=not_sent
    )


def _tell_lost(recorders: Sequence[Recorder], lost: Sequence[NotSent]) -> int:
    for turn in lost:
        for recorder in recorders:
            recorder.on_not_sent(turn.request, turn.reason)
    return len(lost)


def _tell(recorders: Sequence[Recorder], told: Step | TokenEvents, in_flight: int) -> int:
    """Hand on what happened; how many requests ended well in it."""
    if isinstance(told, Step):
        num_waiting = max(0, in_flight - len(told.sequences))
        for recorder in recorders:
            recorder.on_step(told, num_waiting)
        return told.num_ended
    if told.events:
        for recorder in recorders:
            recorder.on_tokens(told)
    return sum(event.finished and event.error is None for event in told.events)


def _end_after(error: Exception, recorders: Sequence[Recorder], end_s: float) -> None:
    """Let every recorder write; one that cannot (its figures are on the broken device) is named in the error."""
    for recorder in recorders:
        try:
            recorder.on_end(end_s)
        except Exception as second:  # the first error is the one to tell
            error.add_note(
                f"{type(recorder).__name__} could not write its last rows: {type(second).__name__}: {second}"
            )


def refusal(engine: ServedEngine, request: Request) -> str | None:
    """Why the engine can never run this request, or None."""
    total, limit = len(request.input_ids) + request.output_tokens, engine.facts.max_sequence_tokens
    if not request.input_ids:
        return "empty prompt"
    if limit is None or total <= limit:
        return None
    return f"too long: {total} tokens of prompt and output, the engine holds {limit}"
