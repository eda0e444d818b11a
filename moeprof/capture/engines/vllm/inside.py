"""vLLM's engine in this process, and the places inside of it that are listened to. Nothing else touches its inside.

What is used, and found alike in the versions of versions.py: ``LLMEngine.engine_core.engine_core`` with ``scheduler``
and ``model_executor``; ``Scheduler.schedule`` and the output that it returns; the model runner's ``sampler`` and
``input_batch`` (first runner), or ``prepare_inputs`` (second runner, on CUDA).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moeprof.capture.engines.vllm.forcing import Forcing
from moeprof.core.errors import EngineError


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduled:
    """What vLLM's scheduler put into a step.

    Attributes:
        tokens: internal id -> tokens computed of it in this step.
        past: internal id -> tokens of it that were computed before.
        preempted: internal ids that lost their cache.
        kv_slots_used: token slots of the blocks in use, once the step's own were allocated.
    """

    tokens: Mapping[str, int]
    past: Mapping[str, int]
    preempted: Sequence[str]
    kv_slots_used: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A request that ended: its internal id and all ids that came out."""

    request: str
    token_ids: Sequence[int]


class Inside:
    """An ``LLMEngine`` whose engine core is in this process.

    Args:
        engine: of vLLM.
        sampling: ``sampling(runs_v2)`` gives what makes ``SamplingParams`` from the keys of that class.

    Attributes:
        runs_v2: whether the second model runner runs: it forces ids by itself, keeps its batch elsewhere, and what it
            sampled is read off its outputs.
        forcing: the ids that requests are made to have (first runner).
    """

    def __init__(self, engine: Any, sampling: Callable[[bool], Callable[..., Any]]) -> None:
        self.engine = engine
        core = engine.engine_core.engine_core
        self.scheduler = core.scheduler
        self.runner = core.model_executor.driver_worker.worker.model_runner
        self.runs_v2 = not hasattr(self.runner, "input_batch")
        self._sampling = sampling(self.runs_v2)
        self.forcing = Forcing()
        self._scheduled: Scheduled | None = None
        self._order: Sequence[str] = ()
        self._external: dict[str, str] = {}
        self._came: dict[str, list[int]] = {}
        self._newest: dict[str, int] = {}
        self._number = 0
        self._listen()

    @property
    def block_tokens(self) -> int:
        """Tokens of a block of the KV cache."""
        return int(self.scheduler.block_size)

    @property
    def kv_slots(self) -> int:
        """Token slots of the KV cache; one block is vLLM's own placeholder."""
        return (int(self.scheduler.kv_cache_manager.block_pool.num_gpu_blocks) - 1) * self.block_tokens

    def add(self, prompt: Sequence[int], output_tokens: int, forced: Sequence[int] | None, stop: Sequence[int]) -> str:
        """Hand over a request; the id that vLLM gives it inside.

        Args:
            prompt: its ids.
            output_tokens: how many may come out; just as many where ``stop`` is empty.
            forced: ids that are to come out, or None.
            stop: ids that end it.
        """
        more: dict[str, Any] = {"stop_token_ids": list(stop)} if stop else {}
        if self.runs_v2 and forced is not None:
            more["trace_decode_token_ids"] = list(forced)
        sampling = self._sampling(temperature=0.0, max_tokens=output_tokens, ignore_eos=True, detokenize=False, **more)
        self._number += 1
        external = str(self._number)
        request = str(self.engine.add_request(external, {"prompt_token_ids": list(prompt)}, sampling))
        self._external[external], self._came[request] = request, []
        if forced is not None and not self.runs_v2:
            self.forcing.add(request, len(prompt), forced)
        return request

    def step(self) -> list[Ended]:
        """One step of vLLM's: schedule, forward, sample; what ended in it."""
        self._scheduled = None
        self._newest.clear()
        ended = []
        for output in self.engine.step():  # of the first runner only ends are told: the sampler tells the rest
            request, ids = self._external[output.request_id], output.outputs[0].token_ids
            self._came[request] += ids
            if ids:
                self._newest[request] = ids[-1]
            if output.finished:
                self.forcing.forget(request)
                del self._external[output.request_id]
                ended.append(Ended(request=request, token_ids=self._came.pop(request)))
        return ended

    def scheduled(self) -> Scheduled | None:
        """What the last step held; None where nothing was scheduled."""
        return self._scheduled

    def order(self) -> list[str]:
        """Internal ids in the order in which the last forward had their rows.

        Raises:
            EngineError: the batch is not what was scheduled.
        """
        assert self._scheduled is not None
        wanted = self._scheduled.tokens
        rows = self._order if self.runs_v2 else self.runner.input_batch.req_ids
        found = [request for request in rows if request in wanted]
        if len(found) != len(wanted):
            raise EngineError(
                f"vLLM's batch holds {len(found)} of the {len(wanted)} requests that its scheduler put into the step"
            )
        return found

    def chosen(self) -> Mapping[str, int]:
        """Internal id -> what the model itself would have taken in the last step; empty where vLLM does not tell."""
        return {} if self.runs_v2 else self.forcing.chosen

    def sampled(self) -> Mapping[str, int]:
        """Internal id -> what came out in the last step, where nothing was forced."""
        return self._newest if self.runs_v2 else self.forcing.chosen

    def abort_all(self) -> None:
        """Forget all requests and, with shared prefixes, what is cached of them."""
        if self._external:
            self.engine.abort_request(list(self._external))
        self._external.clear()
        self._came.clear()
        self.forcing.clear()
        self.engine.reset_prefix_cache()

    # -- inside ----------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        """Put our functions in front of vLLM's, on these objects alone."""
        schedule, scheduler = self.scheduler.schedule, self.scheduler

        def noting(*args: Any, **kwargs: Any) -> Any:
            output = schedule(*args, **kwargs)
            if output.total_num_scheduled_tokens:
                self._scheduled = _scheduled(output, self._slots_used())
            return output

        scheduler.schedule = noting
        if self.runs_v2:
            prepare = self.runner.prepare_inputs

            def preparing(*args: Any, **kwargs: Any) -> Any:
                batch = prepare(*args, **kwargs)
                self._order = list(batch.req_ids)
                return batch

            self.runner.prepare_inputs = preparing
        else:
            self.forcing.put_on(self.runner)

    def _slots_used(self) -> int:
        return round(float(self.scheduler.kv_cache_manager.usage) * self.kv_slots)


def _scheduled(output: Any, kv_slots_used: int) -> Scheduled:
    cached = output.scheduled_cached_reqs
    past = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
    past.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
    return Scheduled(
        tokens=output.num_scheduled_tokens,
        past=past,
        preempted=tuple(output.preempted_req_ids or ()),
        kv_slots_used=kv_slots_used,
    )
