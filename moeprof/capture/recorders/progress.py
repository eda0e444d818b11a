"""Tells the parent, about twice a second, how a pass goes. Part of the loop's cost, so it does next to nothing."""

from __future__ import annotations

import time
from collections.abc import Callable

from moeprof.capture.engines.base import Step, TokenEvents
from moeprof.capture.memory.measure import Watch
from moeprof.capture.protocol import Report
from moeprof.capture.replay import Recorder
from moeprof.core.trace import Request, Schedule

EVERY_S = 0.5


class ProgressRecorder(Recorder):
    """A recorder that reports instead of recording."""

    def __init__(
        self,
        send: Callable[[Report], None],
        name: str,
        watch: Watch | None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._send, self._name, self._watch, self._clock = send, name, watch, clock
        self._sent = self._done = self._refused = self._tokens = self._steps = 0
        self._longest_s = 0.0

    def on_start(self, schedule: Schedule, origin_s: float) -> None:
        """Tell the parent the origin: its samples share the clock."""
        self._origin_s, self._next_s, self._total = origin_s, origin_s, len(schedule)
        self._send(Report(event="started", data={"pass": self._name, "origin_s": origin_s, "total": self._total}))

    def on_send(self, request: Request, sent_s: float, slack_s: float, refused: str | None) -> None:
        """Count."""
        self._sent += refused is None
        self._refused += refused is not None

    def on_not_sent(self, request: Request, reason: str) -> None:
        """It will not come any more."""
        self._refused += 1

    def on_step(self, step: Step, num_waiting: int) -> None:
        """Count; report when due, and when no request is left: what follows is no step."""
        self._steps, self._done = self._steps + 1, self._done + step.num_ended
        if step.end_s - step.start_s > self._longest_s:
            self._longest_s = step.end_s - step.start_s
        for sequence in step.sequences:
            self._tokens += sequence.token is not None
        self._report_if_due(step.end_s)

    def on_tokens(self, told: TokenEvents) -> None:
        """Count; report when due. Between two polls of an engine that steps itself there is no step to be long."""
        self._done += told.num_ended
        self._tokens += sum(event.num_tokens for event in told.events)
        self._report_if_due(max(event.at_s for event in told.events))

    def _report_if_due(self, now_s: float) -> None:
        if now_s >= self._next_s or self._done + self._refused == self._total:
            self._next_s = now_s + EVERY_S
            self._report(now_s)

    def on_end(self, end_s: float) -> None:
        """A last report."""
        self._report(end_s)

    def _report(self, now_s: float) -> None:
        data = {
            "pass": self._name,
            "elapsed_s": now_s - self._origin_s,
            "total": self._total,
            "sent": self._sent,
            "done": self._done,
            "refused": self._refused,
            "output_tokens": self._tokens,
            "steps": self._steps,
            "longest_step_s": self._longest_s,
        }
        allocator = {} if self._watch is None else self._watch.allocator()
        self._send(Report(event="progress", data=data | allocator))
