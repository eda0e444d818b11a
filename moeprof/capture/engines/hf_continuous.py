"""The transformers engine: its continuous-batching processor, stepped by our own loop.

``generate`` switches kernels between prefill and decode, ``generate_batch`` runs a background thread; both hide what we
measure. The processor underneath has three methods, prepare_next_batch -> _generation_step -> update_batch, and this
file is the only one that touches them. Where transformers 5.17 and 5.23 differ, the differences have a name here:
``_settings`` and ``_forget_all``, and ``_updated`` in attention.py.

What a step is: prompt chunks and decode tokens of many requests, flattened into one row of at most
``max_batch_tokens``, one forward, one new token for each sequence whose prompt is complete.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from moeprof.capture.engines import hf_attention
from moeprof.capture.engines.attention_plan import StepEdges
from moeprof.capture.engines.base import BatchLayout, EngineFacts, ListenerSet, SequenceInStep, Step
from moeprof.capture.engines.paging import take_over_reads
from moeprof.core.errors import EngineError
from moeprof.core.trace import Request

PAGE_TOKENS = 16  # small pages waste little KV on short sequences; measured fastest on a CPU


class ContinuousEngine:
    """Steps transformers' continuous batching. See ``Engine`` for the contract."""

    def __init__(
        self,
        model: Any,
        *,
        kv_tokens: int,
        max_batch_tokens: int,
        prefix_cache: bool = False,
        eos_ids: Sequence[int] = (),
        listeners: ListenerSet | None = None,
        stock_attention: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._model = model
        self._clock = clock
        self._eos_ids = list(eos_ids)
        self.listeners = listeners or ListenerSet()
        self._stock_reason = (
            "asked for" if stock_attention else hf_attention.why_stock(model.config.get_text_config(), model)
        )
        self._batch = self._make_processor(kv_tokens, max_batch_tokens, prefix_cache)
        self._io = self._batch.inputs_and_outputs
        self._reads = None if self._stock_reason else take_over_reads(self._batch.cache, model.device)
        self._take_over_tokens()
        self._requests: dict[str, Request] = {}
        self._produced: dict[str, int] = {}
        self._computed: dict[str, int] = {}
        self._seen_active: set[str] = set()
        self._chosen: list[int] = []
        self.facts = self._facts()

    # -- the Protocol --------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Hand over a request."""
        total = len(request.input_ids) + request.output_tokens
        if total > self.facts.max_sequence_tokens:
            raise EngineError(
                f"request {request.request_id}: {total} tokens, the engine holds {self.facts.max_sequence_tokens}"
            )
        key = str(request.index)
        self._requests[key] = request
        self._produced[key] = 0
        self._manager.add_request(
            request.input_ids,
            request_id=key,
            max_new_tokens=request.output_tokens,
            eos_token_id=self._eos_ids if request.stop_at_eos and self._eos_ids else -1,
        )

    @torch.inference_mode()
    def step(self) -> Step | None:
        """Run one step; None when there is nothing to do."""
        start_s = self._clock()
        with self._stream():
            if not self._batch.prepare_next_batch():
                return None
            batch = list(self._io.requests_in_batch)
            layout, pasts = self._layout(batch)
            self._batch.cache.moeprof_edges = self._edges(batch, layout, pasts)
            self.listeners.before_forward(layout)
            events = self._event_pair()
            self._batch._generation_step(self._model)
            if events is not None:
                events[1].record(self._io.compute_stream)
            self.listeners.after_forward()
            kv_tokens_used = sum(state.position_offset for state in self._batch.scheduler.active_requests.values())
            self._batch.update_batch()  # waits for the device: the new tokens are needed on the host
        end_s = self._clock()
        sequences = self._sequences(batch, layout, pasts)
        preempted = self._preempted()
        self._forget_finished(sequences)
        return Step(
            start_s=start_s,
            end_s=end_s,
            device_s=events[0].elapsed_time(events[1]) / 1e3 if events else None,
            sequences=sequences,
            kv_tokens_used=kv_tokens_used,
            preempted=preempted,
        )

    def drain(self) -> list[Step]:
        """Nothing: each step is told when it has ended."""
        return []

    def reset(self) -> None:
        """Forget all requests and free their cache."""
        _drain(self._manager.input_queue, self._manager.output_router.output_queue)
        self._batch.reset()
        _forget_all(self._batch.cache)
        for table in (self._requests, self._produced, self._computed):
            table.clear()
        self._seen_active.clear()

    def close(self) -> None:
        """Release the processor and its cache; the model belongs to the caller."""
        self.reset()
        self._manager.batch_processor = None
        del self._batch, self._io, self._manager

    # -- building --------------------------------------------------------------------------------------------------

    def _make_processor(self, kv_tokens: int, max_batch_tokens: int, prefix_cache: bool) -> Any:
        """Build with the stock path (the manager accepts no other), then switch to ours before buffers are sized."""
        self._model.set_attn_implementation(hf_attention.STOCK)
        generation = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=1)
        self._manager = self._model.init_continuous_batching(
            generation_config=generation,
            continuous_batching_config=_settings(kv_tokens, max_batch_tokens, prefix_cache),
        )
        if self._stock_reason is None:
            hf_attention.register()
            self._model.set_attn_implementation(hf_attention.NAME)
        self._manager.batch_processor = self._manager._create_batch_processor()
        return self._manager.batch_processor

    def _facts(self) -> EngineFacts:
        cache, config = self._batch.cache, self._model.config.get_text_config()
        kv_tokens = cache.num_blocks * PAGE_TOKENS
        position_limit = getattr(config, "max_position_embeddings", None) or kv_tokens
        notes = () if self._stock_reason is None else (f"stock attention: the model has {self._stock_reason}",)
        storage = getattr(cache, "cache_tensor", None)
        return EngineFacts(
            kind="transformers",
            batching="continuous",
            attention=hf_attention.STOCK if self._stock_reason else "per_sequence_sdpa",
            experts=getattr(config, "_experts_implementation", None),
            dtype=str(self._model.dtype).removeprefix("torch."),
            device=str(self._model.device),
            kv_tokens=kv_tokens,
            kv_bytes=None if storage is None else storage.numel() * storage.element_size(),
            max_batch_tokens=cache.max_batch_tokens,
            # One page of head-room: a sequence must be able to open a new page while it still holds the last one.
            max_sequence_tokens=min(position_limit, kv_tokens - PAGE_TOKENS),
            notes=notes,
        )

    def _take_over_tokens(self) -> None:
        """Feed forced tokens where the request has them, and remember what the model itself would have said."""
        original = self._io.prepare_batch_update

        def prepare_batch_update() -> Any:
            batch, chosen, *rest = original()
            self._chosen = list(chosen)
            return batch, self._forced(batch, chosen), *rest

        self._io.prepare_batch_update = prepare_batch_update

    def _forced(self, batch: list[Any], chosen: list[int]) -> list[int]:
        tokens, position = list(chosen), 0
        for future in batch:
            if not future.has_new_token:
                continue
            key = future.state.request_id
            output_ids = self._requests[key].output_ids
            if output_ids is not None:
                tokens[position] = output_ids[self._produced[key]]
            position += 1
        return tokens

    # -- one step --------------------------------------------------------------------------------------------------

    def _layout(self, batch: list[Any]) -> tuple[BatchLayout, list[int]]:
        """Who is in the batch, and how many tokens each had before. ``position_offset`` already counts this step."""
        query = tuple(future.query_length for future in batch)
        pasts = [future.state.position_offset - q for future, q in zip(batch, query, strict=True)]
        layout = BatchLayout(
            query_tokens=query,
            requests=tuple(self._requests[future.state.request_id].index for future in batch),
            is_prefill=tuple(not future.state.generated_tokens for future in batch),
            past_tokens=tuple(pasts),
        )
        return layout, pasts

    def _edges(self, batch: list[Any], layout: BatchLayout, pasts: list[int]) -> StepEdges:
        keys = [past + query for past, query in zip(pasts, layout.query_tokens, strict=True)]
        pages = None if self._reads is None else self._reads.table([future.state.request_id for future in batch])
        return StepEdges(list(layout.query_tokens), keys, self._model.device, pages)

    def _sequences(self, batch: list[Any], layout: BatchLayout, pasts: list[int]) -> tuple[SequenceInStep, ...]:
        result, position = [], 0
        for i, future in enumerate(batch):
            key = future.state.request_id
            token = chosen = None
            if future.has_new_token:
                chosen = self._chosen[position]
                forced = self._requests[key].output_ids
                token = chosen if forced is None else forced[self._produced[key]]
                position += 1
                self._produced[key] += 1
            result.append(
                SequenceInStep(
                    request=layout.requests[i],
                    query_tokens=layout.query_tokens[i],
                    past_tokens=pasts[i],
                    is_prefill=layout.is_prefill[i],
                    token=token,
                    chosen=chosen,
                    finished=key not in self._batch.scheduler.active_requests and token is not None,
                )
            )
        return tuple(result)

    def _preempted(self) -> tuple[int, ...]:
        """Requests that were active and now wait again: their cache was taken and will be computed again."""
        scheduler = self._batch.scheduler
        lost = [key for key in self._seen_active if key in scheduler.waiting_requests]
        self._seen_active = set(scheduler.active_requests)
        return tuple(self._requests[key].index for key in lost)

    def _forget_finished(self, sequences: tuple[SequenceInStep, ...]) -> None:
        for sequence in sequences:
            if sequence.finished:
                self._requests.pop(str(sequence.request), None)
                self._produced.pop(str(sequence.request), None)
        _drain(self._manager.output_router.output_queue)

    # -- device ----------------------------------------------------------------------------------------------------

    def _stream(self) -> AbstractContextManager[Any]:
        """Everything of a step runs on the processor's own stream, or the tap would race with the forward."""
        stream = self._io.compute_stream
        return nullcontext() if stream is None else torch.cuda.stream(stream)

    def _event_pair(self) -> tuple[Any, Any] | None:
        if self._model.device.type != "cuda":
            return None
        event = cast("type[Any]", torch.cuda.Event)
        pair = (event(enable_timing=True), event(enable_timing=True))
        pair[0].record(self._io.compute_stream)
        return pair


def _settings(kv_tokens: int, max_batch_tokens: int, prefix_cache: bool) -> ContinuousBatchingConfig:
    """The same settings in the spelling of the installed transformers."""
    known = inspect.signature(ContinuousBatchingConfig).parameters
    wanted = {
        "page_size" if "page_size" in known else "block_size": PAGE_TOKENS,
        "num_blocks": max(2, -(-kv_tokens // PAGE_TOKENS)),
        "max_batch_tokens": max_batch_tokens,
        "use_async_batching": False,  # a step must end before the next begins, or step times mean nothing
        "use_cuda_graph": False,
        "allow_block_sharing": prefix_cache,
        "auto_switch_to_flash": False,
        "cpu_offload_space": 0.0,
        "seed": 0,
    }
    return ContinuousBatchingConfig(**{key: value for key, value in wanted.items() if key in known})


def _forget_all(cache: Any) -> None:
    """Free the cache, shared prefixes included."""
    if hasattr(cache, "reset"):
        cache.reset()
        return
    cache.free_all_requests()  # transformers 5.17 keeps prefixes; asking for room for everything drops them
    cache._block_manager.has_enough_free_blocks(cache.num_blocks)


def _drain(*queues: Any) -> None:
    for queue in queues:
        while not queue.empty():
            queue.get_nowait()
