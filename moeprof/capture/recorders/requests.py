"""Listens for what happened to each request: table ``requests``.

Of an engine that steps itself the client sees when tokens arrive; what it does not tell of a request (when it was
scheduled, what was cached, computed again or chosen) is null.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from moeprof.capture.engines.base import Step, TokenEvents, Told
from moeprof.capture.recorders.stream import TableStream
from moeprof.capture.replay import Recorder
from moeprof.core.trace import Request, Schedule


@dataclass(slots=True)
class _Open:
    """A request on its way. Times are seconds from the start of the pass."""

    request: Request
    arrival_s: float | None
    sent_s: float | None
    slack_s: float | None
    first_scheduled_s: float | None = None
    cached_tokens: int | None = None
    computed_tokens: int = 0
    num_preemptions: int = 0
    agreed: int = 0
    num_chosen: int = 0
    told: Told = field(default_factory=Told)
    token_times_s: list[float] = field(default_factory=list)

    def note_chosen(self, chosen: tuple[int, ...]) -> None:
        """Ids that the model itself would have chosen next, beside those of the schedule."""
        forced = (self.request.output_ids or ())[self.num_chosen :]
        self.agreed += sum(a == b for a, b in zip(chosen, forced, strict=False))
        self.num_chosen += len(chosen)

    def note_told(self, told: Told, origin_s: float) -> None:
        """What a server said; the replayer's lag ends when the request was on the wire."""
        self.told = told
        if told.sent_s is not None and self.slack_s is not None and self.sent_s is not None:
            sent_s = told.sent_s - origin_s
            self.slack_s, self.sent_s = self.slack_s + sent_s - self.sent_s, sent_s


class RequestRecorder(Recorder):
    """One row per request, written when it ends."""

    def __init__(self, folder: Path) -> None:
        self._stream = TableStream(folder, "requests")
        self._open: dict[int, _Open] = {}
        self._stepped = True

    def on_start(self, schedule: Schedule, origin_s: float) -> None:
        """Remember the origin and the pattern."""
        self._origin_s = origin_s
        self._closed = schedule.pattern == "closed"
        self._characters = schedule.num_characters
        self._sessions, turns = schedule.session, schedule.turns
        self._numbers = None if turns is None else turns.number
        self._after = turns.after if turns is not None and turns.is_closed else None
        self._ended_s: dict[int, float] = {}

    def on_send(self, request: Request, sent_s: float, slack_s: float, refused: str | None) -> None:
        """In a closed loop a request arrives when its place becomes free, which is when it is sent."""
        sent = sent_s - self._origin_s
        entry = _Open(request, sent if self._closed else request.arrival_s, sent, slack_s)
        if refused is None:
            self._open[request.index] = entry
        else:
            self._write(entry, "refused", refused)

    def on_not_sent(self, request: Request, reason: str) -> None:
        """It stays in the record: without times."""
        self._write(_Open(request, None, None, None), "not_sent", reason)

    def on_step(self, step: Step, num_waiting: int) -> None:
        """Collect token times; all tokens of a step come out at its end."""
        start, end = step.start_s - self._origin_s, step.end_s - self._origin_s
        for index in step.preempted:
            if index in self._open:
                self._open[index].num_preemptions += 1
        opened = self._open
        for sequence in step.sequences:  # one walk per step, in the gap between two steps: few look-ups
            entry, token = opened[sequence.request], sequence.token
            entry.computed_tokens += sequence.query_tokens
            if entry.first_scheduled_s is None:
                entry.first_scheduled_s = start
                entry.cached_tokens = sequence.past_tokens
            if token is not None:
                entry.token_times_s.append(end)
                if token == sequence.chosen:
                    entry.agreed += 1
            if sequence.finished:
                self._ended_s[sequence.request] = end
                self._write(self._open.pop(sequence.request), "done", None)
        self._stream.flush_if_due()

    def on_tokens(self, told: TokenEvents) -> None:
        """Collect arrival times; what comes after a request has ended is nobody's."""
        self._stepped = False
        for event in told.events:
            entry = self._open.get(event.request)
            if entry is None:
                continue
            if event.cached_tokens is not None:
                entry.cached_tokens = event.cached_tokens
            entry.note_chosen(event.chosen)
            entry.token_times_s += [event.at_s - self._origin_s] * event.num_tokens
            if event.told is not None:
                entry.note_told(event.told, self._origin_s)
            if event.finished:
                self._ended_s[event.request] = event.at_s - self._origin_s
                self._write(self._open.pop(event.request), "done" if event.error is None else "failed", event.error)
        self._stream.flush_if_due()

    def on_end(self, end_s: float) -> None:
        """Requests that did not finish are kept, marked."""
        for entry in self._open.values():
            self._write(entry, "unfinished", "the pass ended before the request did")
        self._open.clear()
        self._stream.close()

    def _write(self, entry: _Open, status: str, error: str | None) -> None:
        request, times, cached = entry.request, entry.token_times_s, entry.cached_tokens
        recomputed = None
        if self._stepped and status != "not_sent":
            cached = cached or 0
            asked_tokens = len(request.input_ids) + len(times) - 1 - cached
            recomputed = max(0, entry.computed_tokens - asked_tokens) if times else 0
        agreed = entry.agreed if self._stepped or entry.num_chosen == len(times) else None
        characters, told = int(self._characters[request.index]), entry.told
        answer_s = told.first_answer_s
        before = None if self._after is None or self._after[request.index] < 0 else int(self._after[request.index])
        ended_s = None if before is None else self._ended_s.get(before)
        self._stream.append(
            {
                "request": request.index,
                "request_id": request.request_id,
                "request_class": request.request_class,
                "arrival_s": entry.arrival_s,
                "sent_s": entry.sent_s,
                "send_slack_s": entry.slack_s,
                "first_scheduled_s": entry.first_scheduled_s,
                "first_token_s": times[0] if times else None,
                "last_token_s": times[-1] if times else None,
                "input_tokens": len(request.input_ids),
                "cached_tokens": cached,
                "recomputed_tokens": recomputed,
                "num_preemptions": entry.num_preemptions if self._stepped else None,
                "output_tokens": len(times),
                "asked_output_tokens": request.output_tokens,
                "agreed_tokens": None if request.output_ids is None else agreed,
                "num_characters": characters if characters >= 0 else None,
                "session": self._sessions[request.index] or None,
                "turn": None if self._numbers is None else int(self._numbers[request.index]),
                "after": before,
                "delay_s": None if ended_s is None or entry.arrival_s is None else entry.arrival_s - ended_s,
                "reusable_tokens": request.reusable_tokens,
                "status": status,
                "error": error,
                "token_times_s": times if told.token_times else None,
                "first_answer_s": None if answer_s is None else answer_s - self._origin_s,
                "told_input_tokens": told.input_tokens,
                "reasoning_tokens": told.reasoning_tokens,
                "chunks": told.chunks,
                "finish_reason": told.finish_reason,
            }
        )
