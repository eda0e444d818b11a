"""Static batches in our own loop over ``model.forward``, for models that continuous batching cannot run.

Requests wait until the running batch is done, then up to ``max_batch`` of them start together, left-padded to the
longest prompt; nobody joins later. One step is one forward: the prefill of the batch, then one decode step for all.
Rows whose request is finished stay as padding until half of the batch is done, then they are cut out of the cache
where every layer of it can do so. Slower than continuous batching under open traffic, but it runs what ``generate``
runs, with the same calls: all contact with the generation internals of transformers is in static_batch.py.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection
from typing import Any

import torch

from moeprof.capture import compat
from moeprof.capture.engines.base import (
    BatchLayout,
    EngineFacts,
    ListenerSet,
    Model,
    SequenceInStep,
    Step,
    SteppedEngine,
)
from moeprof.capture.engines.static_batch import Row, StaticBatch, needs_equal_lengths
from moeprof.core.errors import EngineError
from moeprof.core.trace import Request


class StaticEngine(SteppedEngine):
    """Runs a model in static batches; see :class:`moeprof.capture.engines.base.Engine`.

    Args:
        model: a causal language model of transformers, on its device, in evaluation mode.
        max_batch: most requests in a batch.
        max_sequence_tokens: longest prompt + output accepted.
        listeners: told what each forward holds.
        max_batch_tokens: most tokens, padding included, in one forward; a batch is kept smaller to respect it. One
            request alone may be longer. None: no limit.
        kv_tokens: token slots that a batch may need at its end, padding included. None: max_batch x
            max_sequence_tokens.
        eos_ids: ids that end a request with ``stop_at_eos``.
        clock: seconds; replaced in tests.
        reason: why batches are static, for the record.
    """

    def __init__(
        self,
        model: Model,
        *,
        max_batch: int,
        max_sequence_tokens: int,
        listeners: ListenerSet | None = None,
        max_batch_tokens: int | None = None,
        kv_tokens: int | None = None,
        eos_ids: Collection[int] = (),
        clock: Callable[[], float] = time.perf_counter,
        reason: str = "",
    ) -> None:
        self.listeners = listeners if listeners is not None else ListenerSet()
        self._model, self._clock = model, clock
        self._max_batch, self._eos = max_batch, frozenset(eos_ids)
        self._max_batch_tokens = max_batch_tokens
        self._kv_tokens = kv_tokens if kv_tokens is not None else max_batch * max_sequence_tokens
        self._waiting: deque[Request] = deque()
        self._batch: StaticBatch | None = None
        equal = needs_equal_lengths(model)
        self._equal_lengths = equal is not None
        experts = compat.experts_of(model.config)
        self.facts = EngineFacts(
            kind="transformers",
            batching="static",
            attention=compat.attention_of(model.config) or "eager",
            experts=None if experts is None else str(experts),
            dtype=str(model.dtype).removeprefix("torch."),
            device=str(model.device),
            kv_tokens=self._kv_tokens,
            kv_bytes=None,
            max_batch_tokens=max_batch_tokens if max_batch_tokens is not None else max_batch * max_sequence_tokens,
            max_sequence_tokens=min(max_sequence_tokens, self._kv_tokens),
            notes=tuple(note for note in (reason, equal) if note),
        )

    def submit(self, request: Request) -> None:
        """Hand over a request.

        Raises:
            EngineError: it can never fit, or asks for nothing.
        """
        needed = len(request.input_ids) + request.output_tokens
        if needed > self.facts.max_sequence_tokens:
            raise EngineError(
                f"request {request.request_id}: {needed} tokens of prompt and output, at most "
                f"{self.facts.max_sequence_tokens} fit"
            )
        if not request.input_ids or request.output_tokens < 1:
            raise EngineError(f"request {request.request_id}: needs a prompt and at least one output token")
        self._waiting.append(request)

    def step(self) -> Step | None:
        """One forward: the prefill of the next batch, or one decode step of the running one."""
        if self._batch is None and not self._waiting:
            return None
        start_s = self._clock()
        with torch.inference_mode():
            prefill = self._batch is None
            if self._batch is None:
                self._batch = self._next_batch()
            else:
                self._batch.append_newest()
            batch = self._batch
            layout = batch.layout(prefill)
            self.listeners.before_forward(layout)
            timer = _Timer(self._model.device)
            logits = batch.forward(prefill)
            timer.stop()
            self.listeners.after_forward()
            sequences = self._advance(batch, layout, logits.argmax(dim=-1).tolist())
        end_s = self._clock()
        if not batch.live:
            self._batch = None
        return Step(
            start_s=start_s,
            end_s=end_s,
            device_s=timer.seconds(),
            sequences=sequences,
            kv_tokens_used=batch.slots if self._batch is not None else 0,
        )

    def reset(self) -> None:
        """Forget all requests and free their cache."""
        self._waiting.clear()
        self._batch = None

    def close(self) -> None:
        """Release the model and its cache."""
        self.reset()
        self.listeners = ListenerSet()
        self._model = None

    def _next_batch(self) -> StaticBatch:
        """The first waiting requests that fit together, in order of arrival."""
        chosen: list[Request] = []
        skipped: list[Request] = []
        prompt, output = 0, 0
        while self._waiting and len(chosen) < self._max_batch:
            request = self._waiting.popleft()
            if self._equal_lengths and chosen and len(request.input_ids) != len(chosen[0].input_ids):
                skipped.append(request)
                continue
            widest, longest = max(prompt, len(request.input_ids)), max(output, request.output_tokens)
            count = len(chosen) + 1
            over = count * (widest + longest) > self._kv_tokens or (
                self._max_batch_tokens is not None and count * widest > self._max_batch_tokens
            )
            if chosen and over:
                skipped.append(request)
                break
            chosen.append(request)
            prompt, output = widest, longest
        self._waiting.extendleft(reversed(skipped))
        return StaticBatch(self._model, [Row(request) for request in chosen])

    def _advance(self, batch: StaticBatch, layout: BatchLayout, chosen: list[int]) -> tuple[SequenceInStep, ...]:
        """Give every live row its next token."""
        sequences = []
        live = [(i, row) for i, row in enumerate(batch.rows) if not row.finished]
        for (i, row), query, past_tokens, prefill in zip(
            live, layout.query_tokens, layout.past_tokens, layout.is_prefill, strict=True
        ):
            request, number = row.request, len(row.tokens)
            token = chosen[i] if request.output_ids is None else request.output_ids[number]
            row.tokens.append(token)
            row.finished = len(row.tokens) >= request.output_tokens or (request.stop_at_eos and token in self._eos)
            sequences.append(
                SequenceInStep(
                    request=request.index,
                    query_tokens=query,
                    past_tokens=past_tokens,
                    is_prefill=prefill,
                    token=token,
                    chosen=chosen[i],
                    finished=row.finished,
                )
            )
        return tuple(sequences)


class _Timer:
    """Device seconds of a forward by events; None on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._events: Any = None
        if device.type == "cuda":
            event: Any = torch.cuda.Event
            self._events = (event(enable_timing=True), event(enable_timing=True))
            self._events[0].record()

    def stop(self) -> None:
        """Mark the end of the launched work."""
        if self._events is not None:
            self._events[1].record()

    def seconds(self) -> float | None:
        """Elapsed device time; call it when the device is known to be done."""
        return None if self._events is None else self._events[0].elapsed_time(self._events[1]) / 1e3
