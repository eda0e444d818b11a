"""Steps of a known size: decode at some batch sizes, and one full prefill step, on text of the workload.

Contexts are as long as the workload's typical sequence halfway through its answer. Prompts and forced outputs are cut
from the schedule's own token ids, strung together, so routers see the text that they are measured on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Literal

import numpy as np

from moeprof.capture.engine.base import Engine, Step
from moeprof.core.errors import EngineError
from moeprof.core.trace import Request, Schedule

BATCHES = (1, 8, 32, 64)
SHORTEST_PROMPT = 4
SPARE_TOKENS = 16  # of each sequence's cache: page ends, steps that are launched ahead


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Size:
    """Requests that make steps of one size.

    Attributes:
        phase: ``decode`` or ``prefill``.
        requests: sent together.
    """

    phase: Literal["decode", "prefill"]
    requests: tuple[Request, ...]

    @property
    def name(self) -> str:
        """For people: ``decode of 8``."""
        return f"{self.phase} of {len(self.requests)}"

    @property
    def num_decoding(self) -> int:
        """Sequences of a decode step; 1 where none is wanted."""
        return len(self.requests) if self.phase == "decode" else 1

    @property
    def longest_tokens(self) -> int:
        """The longest sequence."""
        return max(len(request.input_ids) + request.output_tokens for request in self.requests)

    def start(self, engine: Engine) -> None:
        """Bring the engine to where every next step is of this size.

        Raises:
            EngineError: the sequences never decode all at once.
        """
        if self.phase == "prefill":
            return
        self._submit(engine)
        while (step := engine.step()) is not None:
            if step.phase == "decode" and len(step.sequences) == len(self.requests):
                return
            if any(sequence.finished for sequence in step.sequences):
                break
        raise EngineError(f"{self.name}: the engine does not hold so many sequences at once")

    def ready(self, engine: Engine) -> None:
        """Just before a step, outside of what is timed."""
        if self.phase == "prefill":
            while engine.step() is not None:
                pass  # what the last one left over: prompts that did not fit into one step
            self._submit(engine)

    def fits(self, step: Step) -> bool:
        """Whether a step is of this size."""
        return step.phase == self.phase and (self.phase == "prefill" or len(step.sequences) == len(self.requests))

    def _submit(self, engine: Engine) -> None:
        for request in self.requests:
            engine.submit(request)


def sizes_of(engine: Engine, schedule: Schedule, num_steps: int) -> Iterator[Size | str]:
    """The sizes to measure, cheap ones first; a sentence where one does not fit the engine.

    Args:
        engine: its facts bound batches and lengths.
        schedule: the workload's requests.
        num_steps: decode steps that are wanted of each size.
    """
    if not len(schedule) or not any(len(ids) for ids in schedule.input_ids):
        yield "the schedule has no text to make steps of"
        return
    largest = schedule.concurrency or len(schedule)
    batches = sorted({batch for batch in BATCHES if batch <= largest} | ({largest} if largest < BATCHES[-1] else set()))
    for number, batch in enumerate(batches):
        yield _decode(engine, schedule, batch, num_steps)
        if number == min(1, len(batches) - 1):
            yield _prefill(engine, schedule)


def _decode(engine: Engine, schedule: Schedule, batch: int, num_steps: int) -> Size | str:
    facts = engine.facts
    typical = int(np.median(schedule.input_tokens) + np.median(schedule.output_tokens) / 2)
    prefill_steps = -(-batch * typical // facts.max_batch_tokens)
    outputs = num_steps + prefill_steps + SPARE_TOKENS
    room = min(facts.kv_tokens // batch - SPARE_TOKENS, facts.max_sequence_tokens) - outputs
    if facts.batching == "static":  # all prompts of a batch go through in one forward
        room = min(room, facts.max_batch_tokens // batch)
    prompt = min(typical, room)
    if batch > facts.max_batch_tokens or prompt < SHORTEST_PROMPT:
        return f"decode of {batch}: does not fit the KV cache or the step size"
    return Size(phase="decode", requests=tuple(_request(schedule, number, prompt, outputs) for number in range(batch)))


def _prefill(engine: Engine, schedule: Schedule) -> Size | str:
    """One step of as many prompt tokens as a step may hold, in prompts of the workload's median length."""
    facts = engine.facts
    tokens = min(facts.max_batch_tokens, facts.kv_tokens - SPARE_TOKENS * 2)
    prompt = min(max(1, int(np.median(schedule.input_tokens))), facts.max_sequence_tokens - 1, tokens)
    if prompt < 1:
        return "prefill: a prompt does not fit the engine"
    count = max(1, min(tokens // prompt, facts.kv_tokens // (prompt + SPARE_TOKENS)))
    return Size(phase="prefill", requests=tuple(_request(schedule, number, prompt, 1) for number in range(count)))


def _request(schedule: Schedule, number: int, prompt: int, outputs: int) -> Request:
    """Token ids from request ``number`` of the schedule on, one request's text after the other."""
    ids = list(islice(_stream(schedule, number % len(schedule)), prompt + outputs))
    return Request(
        index=number,
        request_id=f"gap-{number}",
        arrival_s=0.0,
        input_ids=ids[:prompt],
        output_tokens=outputs,
        output_ids=ids[prompt:],
        request_class=schedule.request_class[number % len(schedule)],
    )


def _stream(schedule: Schedule, first: int) -> Iterator[int]:
    for row in cycle((*range(first, len(schedule)), *range(first))):
        yield from schedule.input_ids[row].tolist()
        if schedule.output_ids is not None:
            yield from schedule.output_ids[row].tolist()
