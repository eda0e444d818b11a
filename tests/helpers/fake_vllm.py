"""vLLM's surface as moeprof touches it, around a model of arithmetic: scheduler, paged cache, two runners, routers.

It schedules as vLLM does (running requests first, prompts in chunks, the last one preempted where blocks run out), with
rows of a forward in another order than the scheduler's, and ids inside that differ from those outside. A token's state
is changed by the experts that it is sent to, so other executed picks give other outputs.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from moeprof.capture.engines.vllm import plugin
from moeprof.capture.engines.vllm.inside import Inside
from moeprof.capture.engines.vllm.open import deployment
from moeprof.capture.engines.vllm.plugin import Kept
from moeprof.capture.engines.vllm.runner import Here, RankMethods, Ranks, RunnerFacts
from moeprof.capture.memory.measure import Watch

VOCABULARY, NUM_LAYERS, NUM_EXPERTS, TOP_K, BLOCK = 97, 3, 8, 2, 4
_numbers = iter(range(10**6))


def router_class() -> type:
    """A class of its own each time, so that wrapping it reaches nobody else."""

    class Router:
        def __init__(self, top_k: int, global_num_experts: int) -> None:
            self.top_k, self.global_num_experts = top_k, global_num_experts

        def _select_experts(self, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            first = state % self.global_num_experts
            ids = torch.stack([(first + 3 * j) % self.global_num_experts for j in range(self.top_k)], dim=1)
            return torch.ones(ids.shape), ids.to(torch.int32)

    return Router


class MoeLayer(nn.Module):
    def __init__(self, number: int, router: type) -> None:
        super().__init__()
        self.layer_id, self.router = number, router(TOP_K, NUM_EXPERTS)

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        _, ids = self.router._select_experts(state)
        return (31 * state + 7 * (ids.long() * torch.tensor([1, 5])).sum(1) + self.layer_id) % 1009


class Model(nn.Module):
    def __init__(self, router: type | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 2))
        layers = [] if router is None else [MoeLayer(2 * i, router) for i in range(NUM_LAYERS)]
        self.layers = nn.ModuleList(nn.ModuleDict({"mlp": nn.ModuleDict({"experts": layer})}) for layer in layers)

    def forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        state = 17 * ids + 5 * positions
        for layer in self.layers:
            state = layer["mlp"]["experts"](state)  # type: ignore[index]
        return state


@dataclass
class FakeRequest:
    request_id: str
    prompt: list[int]
    sampling: Any
    outputs: list[int] = field(default_factory=list)
    computed: int = 0
    seen: bool = False

    @property
    def known(self) -> list[int]:
        return self.prompt + self.outputs


class Scheduler:
    def __init__(self, num_blocks: int, max_tokens: int) -> None:
        self.block_size, self.max_tokens = BLOCK, max_tokens
        self.requests: dict[str, FakeRequest] = {}
        self.running: list[FakeRequest] = []
        self.waiting: list[FakeRequest] = []
        self.kv_cache_manager = SimpleNamespace(block_pool=SimpleNamespace(num_gpu_blocks=num_blocks), usage=0.0)

    def blocks(self, request: FakeRequest, more: int = 0) -> int:
        return -(-(request.computed + more) // BLOCK)

    def schedule(self) -> Any:
        """Who computes what next."""
        room = self.kv_cache_manager.block_pool.num_gpu_blocks - 1
        budget, tokens, preempted = self.max_tokens, dict[str, int](), set[str]()
        for request in list(self.running):
            if request not in self.running:
                continue
            num = min(len(request.known) - request.computed, budget)
            held = {one.request_id: self.blocks(one, tokens.get(one.request_id, 0)) for one in self.running}
            while sum(held.values()) - held[request.request_id] + self.blocks(request, num) > room:
                victim = self.running.pop()
                held.pop(victim.request_id)
                budget += tokens.pop(victim.request_id, 0)
                victim.computed = 0
                preempted.add(victim.request_id)
                self.waiting.insert(0, victim)
                if victim is request:
                    break
            if request in self.running and num:
                tokens[request.request_id], budget = num, budget - num
        new, resumed = [], []
        while self.waiting and budget and not preempted:
            request = self.waiting[0]
            num = min(len(request.known), budget)
            used = sum(self.blocks(one, tokens.get(one.request_id, 0)) for one in self.running)
            if used + self.blocks(request, num) > room:
                break
            self.running.append(self.waiting.pop(0))
            tokens[request.request_id], budget = num, budget - num
            (resumed if request.seen else new).append(request)
            request.seen = True
        used = sum(self.blocks(one, tokens.get(one.request_id, 0)) for one in self.running)
        self.kv_cache_manager.usage = used / room
        cached = [one for one in self.running if one.request_id in tokens and one not in new]
        return SimpleNamespace(
            num_scheduled_tokens=tokens,
            total_num_scheduled_tokens=sum(tokens.values()),
            scheduled_new_reqs=[
                SimpleNamespace(req_id=one.request_id, num_computed_tokens=one.computed) for one in new
            ],
            scheduled_cached_reqs=SimpleNamespace(
                req_ids=[one.request_id for one in cached], num_computed_tokens=[one.computed for one in cached]
            ),
            preempted_req_ids=preempted or None,
        )


class Sampler(nn.Module):
    def forward(self, logits: torch.Tensor) -> Any:
        return SimpleNamespace(sampled_token_ids=(logits % VOCABULARY).to(torch.int32)[:, None].clone())


class Runner:
    """The first runner, or the second: without ``input_batch``, forcing by itself."""

    def __init__(self, scheduler: Scheduler, model: Model, *, second: bool) -> None:
        self.scheduler, self.model, self.second = scheduler, model, second
        self.sampler = Sampler()
        self.attn_groups = [[SimpleNamespace(backend=SimpleNamespace(get_name=lambda: "FAKE_ATTN"))]]
        self.kv_caches = [torch.zeros(scheduler.kv_cache_manager.block_pool.num_gpu_blocks, BLOCK, 2)]
        self.batches: list[list[str]] = []
        if not second:
            self.input_batch = SimpleNamespace(req_ids=[], num_tokens_no_spec=np.zeros(64, dtype=np.int32))

    def get_model(self) -> Model:
        return self.model

    def prepare_inputs(self, output: Any) -> Any:
        return SimpleNamespace(req_ids=list(output.num_scheduled_tokens)[::-1])

    def execute(self, output: Any) -> dict[str, int]:
        """One forward; what was sampled for each request whose last known token was in it."""
        order = self.prepare_inputs(output).req_ids
        self.batches.append(order)
        requests = [self.scheduler.requests[name] for name in order]
        nums = [output.num_scheduled_tokens[name] for name in order]
        if not self.second:
            self.input_batch.req_ids[:] = order
            self.input_batch.num_tokens_no_spec[: len(order)] = [len(request.known) for request in requests]
        spans = [(one.computed, one.computed + num) for one, num in zip(requests, nums, strict=True)]
        ids = [token for one, (low, high) in zip(requests, spans, strict=True) for token in one.known[low:high]]
        positions = [position for low, high in spans for position in range(low, high)]
        state = self.model(torch.tensor(ids), torch.tensor(positions))
        sampled = self.sampler(state[np.cumsum(nums) - 1]).sampled_token_ids[:, 0].tolist()
        found = {}
        for request, (_, high), token in zip(requests, spans, sampled, strict=True):
            whole = high == len(request.known)
            request.computed = high
            trace = getattr(request.sampling, "trace_decode_token_ids", None)
            if whole:
                found[request.request_id] = token if trace is None else trace[len(request.outputs)]
        return found


class FakeEngine:
    """``LLMEngine``."""

    def __init__(
        self,
        *,
        moe: bool = True,
        second: bool = False,
        num_blocks: int = 65,
        max_tokens: int = 32,
        kept: Kept | None = None,
    ) -> None:
        self.kept = kept or Kept()
        self._library: Any = None
        router = router_class() if moe else None
        if router is not None and not second:
            name = f"moeprof_fake_{next(_numbers)}::expert_ids"
            self._library = plugin.define(self.kept, name)
            plugin.wrap(router, self.kept, name)
        self.scheduler = Scheduler(num_blocks, max_tokens)
        self.runner = Runner(self.scheduler, Model(router), second=second)
        core = SimpleNamespace(
            scheduler=self.scheduler,
            model_executor=SimpleNamespace(
                driver_worker=SimpleNamespace(worker=SimpleNamespace(model_runner=self.runner))
            ),
        )
        self.engine_core = SimpleNamespace(engine_core=core, shutdown=lambda: None)
        self.vllm_config = config(num_blocks, max_tokens)
        self.spoil = False  # change the last id that comes out, as a vLLM that forces nothing would
        self._inside: dict[str, str] = {}

    def add_request(self, request_id: str, prompt: Any, sampling: Any) -> str:
        inside = f"{request_id}-{next(_numbers):x}"
        request = FakeRequest(inside, list(prompt["prompt_token_ids"]), sampling)
        self._inside[request_id], self.scheduler.requests[inside] = inside, request
        self.scheduler.waiting.append(request)
        return inside

    def abort_request(self, request_ids: Sequence[str]) -> None:
        for name in request_ids:
            self._end(self.scheduler.requests[self._inside[name]])

    def reset_prefix_cache(self) -> bool:
        return True

    def step(self) -> list[Any]:
        """One step."""
        output = self.scheduler.schedule()
        if not output.total_num_scheduled_tokens:
            return []
        told = []
        for name, token in self.runner.execute(output).items():
            request = self.scheduler.requests[name]
            request.outputs.append(token)
            sampling = request.sampling
            over = len(request.outputs) == sampling.max_tokens or token in getattr(sampling, "stop_token_ids", ())
            if over and self.spoil:
                request.outputs[-1] += 1
            if over:
                self._end(request)
            if over or sampling.output_kind == "delta":
                ids = request.outputs[-1:] if sampling.output_kind == "delta" else list(request.outputs)
                external = name.partition("-")[0]
                told.append(
                    SimpleNamespace(request_id=external, finished=over, outputs=[SimpleNamespace(token_ids=ids)])
                )
        return told

    def _end(self, request: FakeRequest) -> None:
        for queue in (self.scheduler.running, self.scheduler.waiting):
            if request in queue:
                queue.remove(request)


def config(num_blocks: int, max_tokens: int) -> Any:
    """``VllmConfig``, as far as it is read."""
    return SimpleNamespace(
        model_config=SimpleNamespace(dtype=torch.float32, max_model_len=128, quantization=None, enforce_eager=True),
        scheduler_config=SimpleNamespace(
            max_num_batched_tokens=max_tokens, max_num_seqs=16, enable_chunked_prefill=True, async_scheduling=False
        ),
        parallel_config=SimpleNamespace(tensor_parallel_size=1),
        compilation_config=SimpleNamespace(mode="NONE"),
        cache_config=SimpleNamespace(
            block_size=BLOCK, cache_dtype="auto", num_gpu_blocks=num_blocks, enable_prefix_caching=False
        ),
    )


def inside(engine: FakeEngine, *, ranks: int = 1) -> Inside:
    """The engine with its runner, which may be that of several ranks: those that answer over a queue."""
    is_cpu = not engine.runner.second
    if ranks == 1:
        runner: Any = Here(engine.runner, is_cpu=is_cpu, kept=engine.kept)
    else:
        runner = Ranks(Queue(engine, ranks), is_cpu=is_cpu)
    kind = "delta" if engine.runner.second else "final"
    return Inside(engine, runner, lambda **keys: SimpleNamespace(output_kind=kind, **keys))


class Rank(RankMethods):
    """A worker that vLLM mixed our methods into; all ranks of this fake share one runner, and only the first forces."""

    def __init__(self, engine: FakeEngine) -> None:
        self.model_runner, self.kept = engine.runner, engine.kept

    def moeprof_start(self, is_cpu: bool) -> RunnerFacts:
        self._moeprof_here = Here(self.model_runner, is_cpu=is_cpu, kept=self.kept)
        return self._moeprof_here.facts


class Queue:
    """``collective_rpc``: every rank does it, and what goes either way is pickled."""

    def __init__(self, engine: FakeEngine, ranks: int) -> None:
        self.ranks = [Rank(engine) for _ in range(ranks)]

    def __call__(self, method: str, args: tuple[Any, ...] = (), unique_reply_rank: int | None = None) -> Any:
        args = pickle.loads(pickle.dumps(args))
        found = [pickle.loads(pickle.dumps(getattr(rank, method)(*args))) for rank in self.ranks[:1]]
        return found * len(self.ranks) if unique_reply_rank is None else found[unique_reply_rank]


def open(spec: Any, settings: Any, device: torch.device, *, before_weights: Any = lambda: None, **more: Any) -> Any:
    """As vllm/open.py opens a model."""
    before_weights()
    memory = Watch(device)
    engine = FakeEngine(moe=spec.name != "dense")
    memory.loaded()
    return deployment(spec, settings, inside(engine), device, version="0.32.0", launch={"load_s": 0.1}, memory=memory)
