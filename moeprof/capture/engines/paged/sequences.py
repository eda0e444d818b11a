"""Who runs in which step: first come, first served, pages for the whole of a request taken when it is let in.

A replay knows how long every output will be, so a sequence gets all its pages at once: nothing is ever preempted or
computed twice, and the row of the block table on the device is written once in its life. Sequences that decode go
first, what is left of a step's tokens goes to prompts, cut into chunks where they are long.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from moeprof.core.trace import Request

PAGE_TOKENS = 16
SPARE_PAGE = 0  # belongs to nobody: what captured steps write while they are made goes there


@dataclass(slots=True, eq=False)
class Sequence:
    """A request on its way.

    Attributes:
        request: what was asked.
        seat: its row in the tables on the device, or -1 while it waits.
        pages: pages of the cache, all that it will ever need.
        computed: tokens in the cache once all launched steps have run.
        produced: output tokens of all launched steps.
    """

    request: Request
    seat: int = -1
    pages: list[int] = field(default_factory=list)
    computed: int = 0
    produced: int = 0

    @property
    def prompt_left(self) -> int:
        """Prompt tokens that no launched step has computed; 0 or less when it decodes."""
        return len(self.request.input_ids) - self.computed

    @property
    def total_tokens(self) -> int:
        """Prompt and output."""
        return len(self.request.input_ids) + self.request.output_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one sequence does in one step.

    Attributes:
        sequence: whose.
        query_tokens: tokens computed.
        past: tokens of it in the cache before.
        is_prefill: prompt tokens.
        output_number: which of its output tokens comes out (0 = first), or None when the step ends inside its prompt.
        is_last: that token is the last one asked for.
    """

    sequence: Sequence
    query_tokens: int
    past: int
    is_prefill: bool
    output_number: int | None
    is_last: bool


class Scheduler:
    """Plans steps; what it plans counts as done."""

    def __init__(self, *, num_pages: int, max_sequences: int, max_batch_tokens: int, stops_early: bool = False) -> None:
        self._free_pages = list(range(num_pages - 1, SPARE_PAGE, -1))
        self._free_seats = list(range(max_sequences - 1, -1, -1))
        self._max_batch_tokens, self._stops_early = max_batch_tokens, stops_early
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []

    def add(self, request: Request) -> None:
        """It waits for pages and a seat."""
        self._waiting.append(Sequence(request))

    @property
    def kv_tokens(self) -> int:
        """Tokens in the cache, of sequences that run."""
        return sum(sequence.computed for sequence in self._running)

    @property
    def may_stop_early(self) -> bool:
        """True when a sequence may end before its length: the next step cannot be planned before its token is known."""
        return self._stops_early and any(s.request.stop_at_eos for s in (*self._running, *self._waiting))

    def decoding(self) -> list[Sequence]:
        """The sequences of the next step if all of them decode, else nothing."""
        if any(sequence.prompt_left > 0 for sequence in self._running) or self._next_enters():
            return []
        return self._running

    def _next_enters(self) -> bool:
        return bool(self._waiting and self._free_seats) and (
            pages_for(self._waiting[0].total_tokens) <= len(self._free_pages)
        )

    def plan(self) -> tuple[list[Part], list[Sequence]]:
        """The next step's parts, decoding sequences first, and who was let in; empty when nothing can run."""
        room = self._max_batch_tokens
        parts = []
        for sequence in self._running:
            if sequence.prompt_left <= 0 and room:
                parts.append(self._part(sequence, 1, is_prefill=False))
                room -= 1
        entered = self._let_in()
        for sequence in self._running:
            if sequence.prompt_left > 0 and room:
                tokens = min(room, sequence.prompt_left)
                parts.append(self._part(sequence, tokens, is_prefill=True))
                room -= tokens
        return parts, entered

    def _part(self, sequence: Sequence, tokens: int, *, is_prefill: bool) -> Part:
        past = sequence.computed
        sequence.computed += tokens
        emits = sequence.prompt_left <= 0
        number = sequence.produced if emits else None
        sequence.produced += emits
        return Part(
            sequence=sequence,
            query_tokens=tokens,
            past=past,
            is_prefill=is_prefill,
            output_number=number,
            is_last=sequence.produced == sequence.request.output_tokens,
        )

    def _let_in(self) -> list[Sequence]:
        """In order of arrival, as long as there are seats and pages; nobody overtakes."""
        entered = []
        while self._next_enters():
            sequence = self._waiting.popleft()
            sequence.seat = self._free_seats.pop()
            sequence.pages = [self._free_pages.pop() for _ in range(pages_for(sequence.total_tokens))]
            self._running.append(sequence)
            entered.append(sequence)
        return entered

    def leave(self, sequence: Sequence) -> None:
        """Its pages and its seat are free; later steps run after those that were launched, so reuse is safe."""
        if sequence in self._running:
            self._running.remove(sequence)
            self._free_pages.extend(reversed(sequence.pages))
            self._free_seats.append(sequence.seat)

    def clear(self) -> None:
        """Forget everybody."""
        self._waiting.clear()
        for sequence in list(self._running):
            self.leave(sequence)


def pages_for(tokens: int) -> int:
    """Pages that hold so many tokens."""
    return -(-tokens // PAGE_TOKENS)
