"""Our own continuous batching: prompts in chunks, decode steps captured, the next step launched while one runs.

What a step is: one token for each sequence that decodes and chunks of prompts, flattened into one row of at most
``max_batch_tokens``, one forward, one new token for each sequence whose prompt is complete. On a GPU the host stays
ahead: lengths are known, tokens stay on the device, so step n + 1 is launched before step n has ended, and the time of
a step is what the device needed for it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from moeprof.capture import compat
from moeprof.capture.engines.base import BatchLayout, EngineFacts, ListenerSet, SequenceInStep, Step, SteppedEngine
from moeprof.capture.engines.paged.cache import hub_of, make_cache
from moeprof.capture.engines.paged.forward import Forward, Seats, Staging, decode_rows
from moeprof.capture.engines.paged.graphs import CaptureError, DecodeGraphs, GraphBackend, sizes_up_to
from moeprof.capture.engines.paged.kernels import Chooser, plain_kernels
from moeprof.capture.engines.paged.model import attention_layers, leave_model, take_model
from moeprof.capture.engines.paged.sequences import PAGE_TOKENS, Part, Scheduler, pages_for
from moeprof.core.errors import EngineError
from moeprof.core.trace import Request

AHEAD = 2  # steps under way at most


@dataclass(slots=True, kw_only=True)
class Flight:
    """A step that was launched and not told yet."""

    parts: list[Part]
    launched_s: float
    chosen: torch.Tensor
    kv_tokens: int
    watch: Marks | None


class PagedEngine(SteppedEngine):
    """See ``Engine`` for the contract."""

    def __init__(
        self,
        model: Any,
        options: PagedOptions,
        listeners: ListenerSet | None = None,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._model, self._options, self._clock = model, options, clock
        self.listeners = listeners or ListenerSet()
        self._device = torch.device(model.device)
        seen = attention_layers(model, self.listeners)
        num_pages = 1 + max(1, pages_for(options.kv_tokens))
        longest = self._longest((num_pages - 1) * PAGE_TOKENS)
        self._kernels = options.kernels(seen, pages_for(longest))  # before the cache takes the room that trials need
        self._cache = make_cache(seen, num_pages=num_pages, device=self._device)
        self._cache.decode = self._kernels.decode
        for layer in self._cache.layers:
            layer.prefill = self._kernels.prefill_of(layer.facts)
        self.facts = self._facts(longest)
        self._seats = Seats(options.max_sequences, pages_for(longest), self._device)
        self._staging = Staging(self._device, 4 * max(options.max_batch_tokens, options.max_sequences))
        self._forward = Forward(model, self._cache, self._seats, self._staging)
        self._graphs: DecodeGraphs | None = None
        if options.graphs is not None:
            self._graphs = DecodeGraphs(
                options.graphs, self._forward.decode, self.listeners, self._device,
                most_pages=self._seats.table_NP.shape[1],
            )  # fmt: skip
        self._watch = StepWatch(self._device)
        self._flights: deque[Flight] = deque()
        self._last_end_s = float("-inf")
        self._scheduler = self._new_scheduler()
        take_model(model, self._cache)

    # -- the Protocol --------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Hand over a request."""
        total = len(request.input_ids) + request.output_tokens
        if total > self.facts.max_sequence_tokens:
            raise EngineError(
                f"request {request.request_id}: {total} tokens, the engine holds {self.facts.max_sequence_tokens}"
            )
        self._scheduler.add(request)

    @torch.inference_mode()
    def step(self) -> Step | None:
        """Launch what can be launched, then wait for the oldest step and tell it."""
        while len(self._flights) < AHEAD and (not self._flights or self._may_run_ahead()):
            flight = self._launch()
            if flight is None:
                break
            self._flights.append(flight)
        return self._land() if self._flights else None

    def _may_run_ahead(self) -> bool:
        """Only captured steps: launching others takes so long that the end of the step before would be seen late."""
        if not self._options.run_ahead or self._graphs is None or self._scheduler.may_stop_early:
            return False
        decoding = self._scheduler.decoding()
        longest = max((sequence.computed for sequence in decoding), default=0) + 1
        return bool(decoding) and self._graphs.find(len(decoding), pages_for(longest)) is not None

    def drain(self) -> list[Step]:
        """Wait for steps that are under way."""
        steps = []
        while self._flights:
            steps.append(self._land())
        return steps

    def reset(self) -> None:
        """Forget all requests and free their cache, prefixes included."""
        self.drain()
        self._scheduler.clear()
        self._scheduler = self._new_scheduler()

    def close(self) -> None:
        """Release the cache; the model belongs to the caller."""
        self.reset()
        if self._graphs is not None:
            self._graphs.forget()
        leave_model(self._model, self._cache)
        del self._graphs, self._forward, self._cache, self._seats

    # -- before passes ---------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def prepare(self, num_sequences: int, longest_tokens: int) -> int:
        """Capture decode steps of up to so many sequences and so long contexts; returns how many were captured.

        Only while nothing is under way. Listeners are those of the passes to come: they take part. A model that cannot
        be captured runs eagerly from then on; the facts say why.
        """
        if self._graphs is None:
            return 0
        hub_of(self._model).active = self._cache
        self._seats.table_NP[0].zero_()  # what is captured writes to seat 0; its last pages may hold a prefix
        most = min(num_sequences, self._options.max_sequences, self._options.max_batch_tokens)
        longest = min(longest_tokens, self.facts.max_sequence_tokens)
        try:
            return self._graphs.prepare(sizes_up_to(most), pages_for(longest))
        except CaptureError as error:
            self._graphs.forget()
            self._graphs = None
            notes = (*self.facts.notes, f"decode steps are not captured: {error}")
            self.facts = replace(self.facts, decode="eager", notes=notes)
            return 0

    # -- one step --------------------------------------------------------------------------------------------------

    def _launch(self) -> Flight | None:
        """Plan and launch a step; None when nothing can run."""
        launched_s = self._clock()
        parts, entered = self._scheduler.plan()
        if not parts:
            return None
        hub_of(self._model).active = self._cache
        self._seats.enter(entered)
        watch = self._watch.start()
        self.listeners.before_forward(_layout(parts))
        chosen = self._run(parts)
        self.listeners.after_forward()
        kv_tokens = self._scheduler.kv_tokens
        for part in parts:
            if part.is_last:
                self._scheduler.leave(part.sequence)
        return Flight(
            parts=parts, launched_s=launched_s, kv_tokens=kv_tokens, watch=watch, chosen=self._watch.end(watch, chosen)
        )

    def _run(self, parts: list[Part]) -> torch.Tensor:
        """Launch the forward; chosen tokens on the device."""
        captured = None
        if self._graphs is not None and not any(part.is_prefill for part in parts):
            captured = self._graphs.find(len(parts), pages_for(max(part.past for part in parts) + 1))
        if captured is None:
            return self._forward.eager(parts)
        self._staging.send(decode_rows(parts, captured.rows_3B.shape[1]), to=captured.rows_3B)
        captured.replay()
        self.listeners.after_replay(captured.kept)
        return captured.chosen_B[: len(parts)]

    def _land(self) -> Step:
        """Wait for the oldest step and say what happened."""
        flight = self._flights.popleft()
        device_s = self._watch.wait(flight.watch)
        tokens: list[int] = flight.chosen.tolist()
        end_s = self._clock()
        start_s = max(flight.launched_s, self._last_end_s)
        self._last_end_s = end_s
        return Step(
            start_s=start_s,
            end_s=end_s,
            device_s=device_s,
            sequences=self._told(flight.parts, tokens),
            kv_tokens_used=flight.kv_tokens,
        )

    def _told(self, parts: list[Part], tokens: list[int]) -> tuple[SequenceInStep, ...]:
        told, position = [], 0
        for part in parts:
            request, token, chosen = part.sequence.request, None, None
            if part.output_number is not None:
                chosen, position = tokens[position], position + 1
                token = chosen if request.output_ids is None else request.output_ids[part.output_number]
                if request.output_ids is None:
                    part.sequence.known.append(chosen)
            stops = token in self._options.eos_ids and request.stop_at_eos
            if stops:
                self._scheduler.leave(part.sequence)
            told.append(
                SequenceInStep(
                    request=request.index,
                    query_tokens=part.query_tokens,
                    past_tokens=part.past,
                    is_prefill=part.is_prefill,
                    token=token,
                    chosen=chosen,
                    finished=part.is_last or stops,
                )
            )
        return tuple(told)

    # -- building --------------------------------------------------------------------------------------------------

    def _new_scheduler(self) -> Scheduler:
        options = self._options
        return Scheduler(
            num_pages=self._cache.num_pages,
            max_sequences=options.max_sequences,
            max_batch_tokens=options.max_batch_tokens,
            stops_early=bool(options.eos_ids),
            shares_prefixes=options.prefix_cache,
        )

    def _longest(self, kv_tokens: int) -> int:
        """Tokens of the longest sequence that fits."""
        limit = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        return kv_tokens if limit is None else min(limit, kv_tokens)

    def _facts(self, longest: int) -> EngineFacts:
        config, options = self._model.config.get_text_config(), self._options
        return EngineFacts(
            kind="transformers",
            batching="continuous",
            attention=f"paged_{self._kernels.decode_name}",
            experts=options.experts or compat.experts_of(config),
            decode_experts=options.decode_experts,
            dtype=str(self._model.dtype).removeprefix("torch."),
            device=str(self._device),
            kv_tokens=(self._cache.num_pages - 1) * PAGE_TOKENS,
            kv_bytes=self._cache.num_bytes,
            max_batch_tokens=options.max_batch_tokens,
            max_sequence_tokens=longest,
            notes=(*options.notes, *self._kernels.notes),
            scheduler="moeprof",
            decode="eager" if options.graphs is None else "graph",
            compiled=options.compiled,
            run_ahead=options.run_ahead,
        )


def _layout(parts: list[Part]) -> BatchLayout:
    return BatchLayout(
        query_tokens=tuple(part.query_tokens for part in parts),
        requests=tuple(part.sequence.request.index for part in parts),
        is_prefill=tuple(part.is_prefill for part in parts),
        past_tokens=tuple(part.past for part in parts),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedOptions:
    """How a paged engine runs; see TransformersSettings.

    Attributes:
        kv_tokens: token slots of the cache.
        max_batch_tokens: tokens in a step.
        max_sequences: sequences in flight.
        prefix_cache: requests share the pages of common prefixes.
        eos_ids: ids that end an output where the request says so.
        run_ahead: launch a step while the one before runs.
        graphs: captures decode steps, or None.
        kernels: chooses how layers attend.
        experts: experts implementation of large steps, where it is not the one that the config names.
        decode_experts: that of decode steps, where it is another.
        compiled: what of the model is compiled, for the facts.
        notes: for the facts.
    """

    kv_tokens: int
    max_batch_tokens: int
    max_sequences: int = 256
    prefix_cache: bool = False
    eos_ids: tuple[int, ...] = ()
    run_ahead: bool = False
    graphs: GraphBackend | None = None
    kernels: Chooser = plain_kernels
    experts: str | None = None
    decode_experts: str | None = None
    compiled: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class Marks:
    """Events of one step: device work begins, ends, tokens are on the host."""

    start: Any
    end: Any
    copied: Any


class StepWatch:
    """Marks steps by events; on a CPU, where work is done when a call returns, there is nothing to mark."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"

    def start(self) -> Marks | None:
        """Just before a step's first device work."""
        if not self._is_cuda:
            return None
        event = cast("type[Any]", torch.cuda.Event)
        marks = Marks(event(enable_timing=True), event(enable_timing=True), event())
        marks.start.record()
        return marks

    def end(self, marks: Marks | None, chosen: torch.Tensor) -> torch.Tensor:
        """Just after its last; returns where its tokens will be on the host (a copy: captured steps reuse theirs)."""
        if marks is None:
            return chosen.clone()
        marks.end.record()
        host = torch.empty(chosen.shape, dtype=chosen.dtype, pin_memory=True)
        host.copy_(chosen, non_blocking=True)
        marks.copied.record()
        return host

    def wait(self, marks: Marks | None) -> float | None:
        """Until its tokens are on the host; device seconds of the step, or None on a CPU."""
        if marks is None:
            return None
        marks.copied.synchronize()
        return float(marks.start.elapsed_time(marks.end)) / 1e3
