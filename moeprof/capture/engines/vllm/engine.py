"""vLLM as an engine that our loop steps: one call, one step of its scheduler, one forward."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moeprof.capture.engines.base import (
    BatchLayout,
    EngineFacts,
    ListenerSet,
    SequenceInStep,
    Step,
    SteppedEngine,
)
from moeprof.capture.engines.vllm.inside import Ended, Inside, Scheduled
from moeprof.core.errors import EngineError
from moeprof.core.trace import Request


@dataclass(slots=True)
class _InFlight:
    """A request and how many of its output tokens are known."""

    request: Request
    num_prompt: int
    num_output: int = 0


class VllmEngine(SteppedEngine):
    """See ``Engine``.

    Args:
        inside: vLLM.
        facts: what it is.
        listeners: told about every forward, once it has run: the order of its rows is known then.
        stop_ids: ids that end an output where a request says so.
        close: called when the engine is given up.
        clock: of step times.
    """

    def __init__(
        self,
        inside: Inside,
        facts: EngineFacts,
        listeners: ListenerSet,
        stop_ids: Sequence[int] = (),
        *,
        close: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.facts, self.listeners = facts, listeners
        self._inside, self._stop_ids, self._close, self._clock = inside, stop_ids, close, clock
        self._flight: dict[str, _InFlight] = {}

    def submit(self, request: Request) -> None:
        """Hand over a request.

        Raises:
            EngineError: it can never run.
        """
        total = len(request.input_ids) + request.output_tokens
        if total > self.facts.max_sequence_tokens:
            raise EngineError(
                f"request {request.request_id}: {total} tokens of prompt and output, "
                f"{self.facts.max_sequence_tokens} fit"
            )
        stop = self._stop_ids if request.stop_at_eos else ()
        forced = request.output_ids
        request_id = self._inside.add(request.input_ids, request.output_tokens, forced, stop)
        self._flight[request_id] = _InFlight(request, len(request.input_ids))

    def step(self) -> Step | None:
        """One step of vLLM; None when there is nothing to do."""
        if not self._flight:
            return None
        start_s = self._clock()
        ended = self._inside.step()
        end_s = self._clock()
        held = self._inside.look(ended)
        if held is None:
            return None
        order = self._inside.order()
        sequences = self._sequences(held, order, {one.request: one for one in ended})
        self._tell(sequences)
        for one in ended:
            self._forget(one)
        return Step(
            start_s=start_s,
            end_s=end_s,
            device_s=None,
            sequences=sequences,
            kv_tokens_used=held.kv_slots_used,
            preempted=tuple(self._flight[request].request.index for request in held.preempted),
        )

    def reset(self) -> None:
        """Forget all requests and free their cache."""
        self._flight.clear()
        self._inside.abort_all()

    def close(self) -> None:
        """Give vLLM up."""
        self.reset()
        self.listeners = ListenerSet()
        self._close()

    def _sequences(self, held: Scheduled, order: Sequence[str], ended: dict[str, Ended]) -> tuple[SequenceInStep, ...]:
        """Who was in the step. A token comes where all known tokens of a request have been computed."""
        found, chosen_of = [], self._inside.chosen()
        sampled = self._inside.sampled() if any(one.request.output_ids is None for one in self._flight.values()) else {}
        for request_id in order:
            flight, query, past = self._flight[request_id], held.tokens[request_id], held.past[request_id]
            token = chosen = None
            if past + query >= flight.num_prompt + flight.num_output:
                chosen = chosen_of.get(request_id)
                forced = flight.request.output_ids
                token = sampled.get(request_id) if forced is None else forced[flight.num_output]
                flight.num_output += 1
            found.append(
                SequenceInStep(
                    request=flight.request.index,
                    query_tokens=query,
                    past_tokens=past,
                    is_prefill=past < flight.num_prompt or query > 1,  # after a preemption outputs are computed again
                    token=token,
                    chosen=chosen,
                    finished=request_id in ended,
                )
            )
        return tuple(found)

    def _tell(self, sequences: Sequence[SequenceInStep]) -> None:
        if not self.listeners.listeners:
            return
        layout = BatchLayout(
            query_tokens=tuple(one.query_tokens for one in sequences),
            requests=tuple(one.request for one in sequences),
            is_prefill=tuple(one.is_prefill for one in sequences),
            past_tokens=tuple(one.past_tokens for one in sequences),
        )
        self.listeners.before_forward(layout)
        self.listeners.after_forward()

    def _forget(self, ended: Ended) -> None:
        """A request has ended: what came out is what was asked for.

        Raises:
            EngineError: it is not.
        """
        flight = self._flight.pop(ended.request)
        forced, got = flight.request.output_ids, list(ended.token_ids)
        wrong = len(got) != flight.num_output or (forced is not None and got != list(forced[: len(got)]))
        if wrong or (not flight.request.stop_at_eos and len(got) != flight.request.output_tokens):
            raise EngineError(
                f"request {flight.request.request_id}: vLLM's output ({len(got)} tokens) is not the one that its steps "
                f"told ({flight.num_output} tokens of {flight.request.output_tokens})"
            )
