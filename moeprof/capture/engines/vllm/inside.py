"""vLLM's engine in this process, and the places inside of it that are listened to. Nothing else touches its inside.

What is used, and found alike in the versions of versions.py: ``LLMEngine.engine_core.engine_core`` with ``scheduler``
and ``model_executor``; ``Scheduler.schedule`` and the output that it returns; of the model runner what runner.py names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moeprof.capture.engines.vllm.runner import Runner, Told
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
    """An ``LLMEngine`` whose engine core is in this process. It shows its picks, too (see ``ShownRouter``).

    Args:
        engine: of vLLM.
        runner: of its model, here or on ranks.
        sampling: makes ``SamplingParams`` from the keys of that class.

    Attributes:
        layers: MoE layers whose picks are seen.
        how: where they are seen.
    """

    def __init__(self, engine: Any, runner: Runner, sampling: Callable[..., Any]) -> None:
        self.engine, self.runner, self._sampling = engine, runner, sampling
        self.layers, self.how = runner.facts.layers, runner.facts.picks or ""
        self.scheduler = engine.engine_core.engine_core.scheduler
        self._scheduled: Scheduled | None = None
        self._told = Told(order=())
        self._external: dict[str, str] = {}
        self._forced: set[str] = set()
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
        if self.runner.facts.runs_v2 and forced is not None:
            more["trace_decode_token_ids"] = list(forced)
        sampling = self._sampling(
            temperature=0.0, max_tokens=output_tokens, ignore_eos=True, detokenize=False, **more
        )  # fmt: skip
        self._number += 1
        external = str(self._number)
        request = str(self.engine.add_request(external, {"prompt_token_ids": list(prompt)}, sampling))
        self._external[external], self._came[request] = request, []
        if forced is not None:
            self._forced.add(request)
            self.runner.add(request, len(prompt), forced)
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
                del self._external[output.request_id]
                ended.append(Ended(request=request, token_ids=self._came.pop(request)))
        return ended

    def look(self, ended: Sequence[Ended]) -> Scheduled | None:
        """After a step, and no part of it: what it held and what the runner knows of it; None: it held nothing."""
        if self._scheduled is not None:
            self._told = self.runner.told(sum(self._scheduled.tokens.values()))
        for one in ended:
            if one.request in self._forced:
                self._forced.remove(one.request)
                self.runner.forget(one.request)
        return self._scheduled

    def order(self) -> list[str]:
        """Internal ids in the order in which the last forward had their rows.

        Raises:
            EngineError: the batch is not what was scheduled.
        """
        assert self._scheduled is not None
        wanted = self._scheduled.tokens
        found = [request for request in self._told.order if request in wanted]
        if len(found) != len(wanted):
            raise EngineError(
                f"vLLM's batch holds {len(found)} of the {len(wanted)} requests that its scheduler put into the step"
            )
        return found

    def chosen(self) -> Mapping[str, int]:
        """Internal id -> what the model itself would have taken in the last step; empty where vLLM does not tell."""
        return self._told.chosen

    def sampled(self) -> Mapping[str, int]:
        """Internal id -> what came out in the last step, where nothing was forced."""
        return self._newest if self.runner.facts.runs_v2 else self._told.chosen

    def abort_all(self) -> None:
        """Forget all requests and, with shared prefixes, what is cached of them."""
        if self._external:
            self.engine.abort_request(list(self._external))
        self._external.clear()
        self._came.clear()
        if self._forced:
            self._forced.clear()
            self.runner.forget(None)
        self.engine.reset_prefix_cache()

    def watch(self, on: bool) -> None:
        """Show picks from now on, or no longer."""
        self.runner.watch(on)

    def take(self, num_tokens: int) -> Sequence[Any]:
        """Picks of the last forward, by layer."""
        return self._told.picks or [None] * len(self.layers)

    def move(self, by: int) -> bool:
        """Move every executed pick, for a check."""
        if self.runner.facts.moves:
            self.runner.move(by)
        return self.runner.facts.moves

    # -- inside ----------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        """Put a function in front of the scheduler's, on this object alone."""
        schedule, scheduler = self.scheduler.schedule, self.scheduler

        def noting(*args: Any, **kwargs: Any) -> Any:
            output = schedule(*args, **kwargs)
            if output.total_num_scheduled_tokens:
                self._scheduled = _scheduled(output, self._slots_used())
            return output

        scheduler.schedule = noting

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
