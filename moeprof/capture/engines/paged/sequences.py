"""Who runs in which step: first come, first served, pages for the whole of a request taken when it is let in.

A replay knows how long every output will be, so a sequence gets all its pages at once: nothing is ever preempted or
computed twice, and the row of the block table on the device is written once in its life. Sequences that decode go
first, what is left of a step's tokens goes to prompts, cut into chunks where they are long.

With prefix sharing a request is let in when there are tokens left for it, so it finds what all before it have computed,
in the same step too: a layer writes the keys of a whole step before any of its queries looks. Outputs are shared as
prompts are; where the model chooses them, as soon as the host knows them. At least the last prompt token is computed,
for its output.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from moeprof.capture.engines.paged.pages import Pages, chained_digest
from moeprof.core.trace import Request

PAGE_TOKENS = 16


@dataclass(slots=True, eq=False)
class Sequence:
    """A request on its way.

    Attributes:
        request: what was asked.
        seat: its row in the tables on the device, or -1 while it waits.
        pages: pages of the cache, all that it will ever need.
        computed: tokens in the cache once all launched steps have run, shared ones included.
        produced: output tokens of all launched steps.
        known: its tokens as far as the host knows them.
        digests: of its full pages, made when needed.
        kept: pages that others can share.
    """

    request: Request
    seat: int = -1
    pages: list[int] = field(default_factory=list)
    computed: int = 0
    produced: int = 0
    known: list[int] = field(init=False)
    digests: list[bytes] = field(default_factory=list)
    kept: int = 0

    def __post_init__(self) -> None:
        self.known = [*self.request.input_ids, *(self.request.output_ids or ())]

    @property
    def prompt_left(self) -> int:
        """Prompt tokens that no launched step has computed; 0 or less when it decodes."""
        return len(self.request.input_ids) - self.computed

    @property
    def total_tokens(self) -> int:
        """Prompt and output."""
        return len(self.request.input_ids) + self.request.output_tokens

    def num_digests(self, tokens: int) -> int:
        """How many full pages its first so many tokens are, as far as they are known; their digests are made."""
        num_pages = min(tokens, len(self.known)) // PAGE_TOKENS
        for first in range(PAGE_TOKENS * len(self.digests), PAGE_TOKENS * num_pages, PAGE_TOKENS):
            before = self.digests[-1] if self.digests else b""
            self.digests.append(chained_digest(before, self.known[first : first + PAGE_TOKENS]))
        return num_pages


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
    """Plans steps; what it plans counts as done.

    Attributes:
        may_stop_early: True from the first request on that may end before its length: the next step cannot be planned
            before the tokens of the one before are known.
    """

    def __init__(
        self,
        *,
        num_pages: int,
        max_sequences: int,
        max_batch_tokens: int,
        stops_early: bool = False,
        shares_prefixes: bool = False,
    ) -> None:
        self._pages = Pages(num_pages)
        self._free_seats = list(range(max_sequences - 1, -1, -1))
        self._max_batch_tokens, self._stops_early = max_batch_tokens, stops_early
        self.may_stop_early = False
        self._shares_prefixes = shares_prefixes
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []

    def add(self, request: Request) -> None:
        """It waits for pages and a seat."""
        self.may_stop_early |= self._stops_early and request.stop_at_eos
        self._waiting.append(Sequence(request))

    @property
    def kv_tokens(self) -> int:
        """Tokens in the cache, of sequences that run; a shared page counts once."""
        return sum(sequence.computed for sequence in self._running) - PAGE_TOKENS * self._pages.num_repeats

    def decoding(self) -> list[Sequence]:
        """The sequences of the next step if all of them decode, else nothing."""
        if any(sequence.prompt_left > 0 for sequence in self._running) or self._next_enters():
            return []
        return self._running

    def _next_enters(self) -> bool:
        if not (self._waiting and self._free_seats):
            return False
        shared = self._shared(self._waiting[0])
        return self._pages.have_room(shared, pages_for(self._waiting[0].total_tokens) - len(shared))

    def _shared(self, sequence: Sequence) -> list[int]:
        """Pages that hold the beginning of its prompt already; never the last token."""
        if not self._shares_prefixes:
            return []
        return self._pages.find(sequence.digests[: sequence.num_digests(len(sequence.request.input_ids) - 1)])

    def _keep(self, sequence: Sequence) -> None:
        """Full pages can be shared from the step on that fills them."""
        num_pages = sequence.num_digests(sequence.computed)
        for number in range(sequence.kept, num_pages):
            self._pages.keep(sequence.pages[number], sequence.digests[number])
        sequence.kept = num_pages

    def plan(self) -> tuple[list[Part], list[Sequence]]:
        """The next step's parts, decoding sequences first, and who was let in; empty when nothing can run."""
        room = self._max_batch_tokens
        parts = []
        for sequence in self._running:
            if sequence.prompt_left <= 0 and room:
                parts.append(self._part(sequence, 1, is_prefill=False))
                room -= 1
        entered: list[Sequence] = []
        prompts = [sequence for sequence in self._running if sequence.prompt_left > 0]
        while room and (prompts or self._next_enters()):
            if prompts:
                sequence = prompts.pop(0)
            else:
                sequence = self._let_in()
                entered.append(sequence)
            tokens = min(room, sequence.prompt_left)
            parts.append(self._part(sequence, tokens, is_prefill=True))
            room -= tokens
        return parts, entered

    def _part(self, sequence: Sequence, tokens: int, *, is_prefill: bool) -> Part:
        past = sequence.computed
        sequence.computed += tokens
        if self._shares_prefixes:
            self._keep(sequence)
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

    def _let_in(self) -> Sequence:
        """The one that has waited longest; nobody overtakes."""
        sequence = self._waiting.popleft()
        shared = self._shared(sequence)
        sequence.seat = self._free_seats.pop()
        sequence.pages = self._pages.take(shared, pages_for(sequence.total_tokens) - len(shared))
        sequence.computed, sequence.kept = PAGE_TOKENS * len(shared), len(shared)
        self._running.append(sequence)
        return sequence

    def leave(self, sequence: Sequence) -> None:
        """Its pages and its seat are free; later steps run after those that were launched, so reuse is safe."""
        if sequence in self._running:
            self._running.remove(sequence)
            self._pages.leave(sequence.pages)
            self._free_seats.append(sequence.seat)

    def clear(self) -> None:
        """Forget everybody; then no page is in use."""
        self._waiting.clear()
        for sequence in list(self._running):
            self.leave(sequence)
        self._pages.check_all_left()


def pages_for(tokens: int) -> int:
    """Pages that hold so many tokens."""
    return -(-tokens // PAGE_TOKENS)
