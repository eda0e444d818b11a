"""Turns that wait for an answer: who follows whom, when, and with which prompt. No clock, no engine.

A turn arrives ``delay_s`` after the answer before has ended, and not before ``gap_s`` after that request arrived. Where
outputs are free its prompt holds what the model really answered; otherwise it is the schedule's own, so that every
model gets the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

from moeprof.capture.engines.base import Step, TokenEvents
from moeprof.core.trace import Request, Schedule
from moeprof.core.turns import NONE, REUSE_BLOCK_TOKENS

NO_IDS = (
    "the engine does not tell the ids of its answers, so no prompt can hold them; use outputs: forced_length, or "
    "traffic.trace.sessions: open"
)


@dataclass(frozen=True, slots=True)
class NotSent:
    """A turn that is never sent, and why."""

    request: Request
    reason: str


Ended = tuple[int, float, str | None]  # request, clock time, error


class Sessions:
    """The turns of one pass that are not due yet."""

    def __init__(self, schedule: Schedule) -> None:
        self._turns = schedule.turns if schedule.waits else None
        self._names = schedule.request_id
        self._followers: dict[int, list[Request]] = defaultdict(list)
        self._arrived_s: dict[int, float] = {}
        self._own = schedule.own_answers
        self._prompts: dict[int, list[int]] = {}
        self._answers: dict[int, list[int]] = defaultdict(list)
        self._num_tokens: dict[int, int] = defaultdict(int)

    def hold(self, request: Request) -> bool:
        """Keep a request that waits for an answer; False for one that waits for none."""
        if self._turns is None or (before := int(self._turns.after[request.index])) == NONE:
            return False
        self._followers[before].append(request)
        return True

    def sent(self, request: Request, arrived_s: float) -> None:
        """It is on its way; ``arrived_s`` is a clock time."""
        if request.index in self._followers:
            self._arrived_s[request.index] = arrived_s
            if self._own:
                self._prompts[request.index] = request.input_ids

    def ended(self, told: Step | TokenEvents) -> list[Ended]:
        """Requests that ended in it and that turns wait for; answers are kept where prompts will hold them."""
        if self._turns is None:
            return []
        found: list[Ended] = []
        if isinstance(told, Step):
            for sequence in told.sequences:
                if sequence.request not in self._followers:
                    continue
                if self._own and sequence.token is not None:
                    self._answers[sequence.request].append(sequence.token)
                    self._num_tokens[sequence.request] += 1
                if sequence.finished:
                    found.append((sequence.request, told.end_s, None))
            return found
        for event in told.events:
            if event.request not in self._followers:
                continue
            if self._own:
                self._answers[event.request] += event.chosen
                self._num_tokens[event.request] += event.num_tokens
            if event.finished:
                found.append((event.request, event.at_s, event.error))
        return found

    def follow(self, index: int, at_s: float) -> Iterator[tuple[float, Request | NotSent]]:
        """The turns that waited for request ``index``, whose answer ended at ``at_s``, and when they arrive."""
        assert self._turns is not None
        arrived_s = self._arrived_s.pop(index)
        for request in self._followers.pop(index):
            row = request.index
            due_s = max(at_s + float(self._turns.delay_s[row]), arrived_s + float(self._turns.gap_s[row]))
            yield due_s, self._with_own_answer(request) if self._own else request

    def _with_own_answer(self, request: Request) -> Request | NotSent:
        """Its prompt as the model's own words before it make it."""
        assert self._turns is not None
        before, context = (int(column[request.index]) for column in (self._turns.context, self._turns.context_tokens))
        if not context:
            return request
        prompt, answer = self._prompts[before], self._answers[before]
        if len(answer) != self._num_tokens[before]:
            return NotSent(request, NO_IDS)
        # The last token of an answer is never computed, so no cache has it.
        shared = (len(prompt) + len(answer) - 1) // REUSE_BLOCK_TOKENS * REUSE_BLOCK_TOKENS
        known = request.reusable_tokens
        return replace(
            request,
            input_ids=[*prompt, *answer, *request.input_ids[context:]],
            reusable_tokens=None if known is None else max(shared, known),
        )

    def give_up_all(self, how: str) -> Iterator[NotSent]:
        """The turns that wait for requests that were sent and have not ended."""
        for index in list(self._arrived_s):
            yield from self.give_up(index, how)

    def give_up(self, index: int, how: str) -> Iterator[NotSent]:
        """The turns that waited for request ``index``, which came to nothing, and those that wait for them."""
        self._arrived_s.pop(index, None)
        for request in self._followers.pop(index, ()):
            yield NotSent(request, f"the turn before it, {self._names[index]}, {how}")
            yield from self.give_up(request.index, "was not sent")
