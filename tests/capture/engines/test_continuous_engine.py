"""The real engine on a tiny Qwen3-MoE: tokens equal to ``generate``, forced tokens, KV pressure, long prompts."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from moeprof.capture.engines.base import BatchLayout, ListenerSet, Step
from moeprof.capture.engines.hf_continuous import ContinuousEngine
from moeprof.core.errors import EngineError
from moeprof.core.trace import Request

VOCAB = 97


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=VOCAB, hidden_size=32, moe_intermediate_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_experts=4, num_experts_per_tok=2,
        max_position_embeddings=4096, pad_token_id=0, initializer_range=0.5,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa").eval()


def make_request(index: int, input_tokens: int, output_tokens: int, forced: list[int] | None = None) -> Request:
    ids = np.random.default_rng(index).integers(1, VOCAB, input_tokens).tolist()
    return Request(
        index=index, request_id=f"r{index}", arrival_s=0.0, input_ids=ids, output_tokens=output_tokens,
        output_ids=forced, request_class="all",
    )  # fmt: skip


def make_engine(model: Any, **changes: Any) -> ContinuousEngine:
    return ContinuousEngine(model, **{"kv_tokens": 4096, "max_batch_tokens": 64, **changes})


def run(engine: ContinuousEngine, requests: list[Request]) -> tuple[dict[int, list[int]], list[Step]]:
    for request in requests:
        engine.submit(request)
    steps = []
    while (step := engine.step()) is not None:
        steps.append(step)
    tokens: dict[int, list[int]] = {request.index: [] for request in requests}
    for step in steps:
        for sequence in step.sequences:
            if sequence.token is not None:
                tokens[sequence.request].append(sequence.token)
    return tokens, steps


def generated(model: Any, request: Request) -> list[int]:
    model.set_attn_implementation("sdpa")
    ids = torch.tensor([request.input_ids])
    with torch.inference_mode():
        out = model.generate(ids, max_new_tokens=request.output_tokens, do_sample=False, eos_token_id=-1)
    return out[0, ids.shape[1] :].tolist()


def test_tokens_equal_generate_though_prompts_are_chunked_and_batches_change(model: Any) -> None:
    requests = [make_request(0, 5, 6), make_request(1, 100, 4), make_request(2, 17, 1), make_request(3, 64, 9)]
    tokens, steps = run(make_engine(model), requests)
    assert tokens == {request.index: generated(model, request) for request in requests}
    assert any(step.phase == "mixed" for step in steps), "prefill and decode shared a step"
    assert max(sum(s.query_tokens for s in step.sequences) for step in steps) <= 64


def test_a_prompt_of_1500_tokens_gives_the_tokens_of_generate(model: Any) -> None:
    requests = [make_request(7, 1500, 3), make_request(8, 1100, 3)]
    tokens, _ = run(make_engine(model, max_batch_tokens=512), requests)
    assert tokens == {request.index: generated(model, request) for request in requests}


def test_stock_attention_and_per_sequence_attention_agree(model: Any) -> None:
    requests = [make_request(i, 20 + 30 * i, 5) for i in range(4)]
    ours, _ = run(make_engine(model), requests)
    stock_engine = make_engine(model, stock_attention=True)
    assert stock_engine.facts.attention == "sdpa"
    stock, _ = run(stock_engine, requests)
    assert ours == stock


def test_forced_tokens_are_fed_and_the_models_own_choice_is_told_apart(model: Any) -> None:
    forced = [11, 12, 13, 14]
    tokens, steps = run(make_engine(model), [make_request(0, 6, 4, forced)])
    assert tokens[0] == forced
    chosen = [s.chosen for step in steps for s in step.sequences]
    free = make_request(1, 6, 1)
    first_choice = generated(model, Request(**{**{f: getattr(make_request(0, 6, 1), f) for f in free.__slots__}}))
    assert chosen[0] == first_choice[0], "the first choice depends on the prompt alone"
    assert len(chosen) == 4


def test_tokens_computed_are_input_plus_output_minus_one(model: Any) -> None:
    requests = [make_request(i, 10 * (i + 1), 5) for i in range(3)]
    _, steps = run(make_engine(model), requests)
    computed = Counter()
    for step in steps:
        for sequence in step.sequences:
            computed[sequence.request] += sequence.query_tokens
    assert computed == {0: 10 + 4, 1: 20 + 4, 2: 30 + 4}
    assert sum(sum(s.finished for s in step.sequences) for step in steps) == 3


def test_under_kv_pressure_requests_are_preempted_recomputed_and_still_right(model: Any) -> None:
    requests = [make_request(i, 30, 40) for i in range(4)]
    tokens, steps = run(make_engine(model, kv_tokens=128), requests)
    assert [len(tokens[i]) for i in range(4)] == [40] * 4
    assert sum(len(step.preempted) for step in steps) > 0
    computed = sum(s.query_tokens for step in steps for s in step.sequences)
    assert computed > 4 * (30 + 39), "recomputed tokens are counted"
    assert tokens == {request.index: generated(model, request) for request in requests}


def test_a_request_that_can_never_fit_is_refused_by_name(model: Any) -> None:
    with pytest.raises(EngineError, match="request r0: 200 tokens, the engine holds 112"):
        make_engine(model, kv_tokens=128).submit(make_request(0, 150, 50))


def test_after_reset_the_engine_starts_clean(model: Any) -> None:
    engine = make_engine(model)
    engine.submit(make_request(0, 50, 20))
    engine.step()
    engine.reset()
    assert engine.step() is None
    tokens, _ = run(engine, [make_request(1, 12, 3)])
    assert tokens[1] == generated(model, make_request(1, 12, 3))


def test_listeners_hear_every_forward_before_it_runs(model: Any) -> None:
    heard: list[BatchLayout] = []

    class Ear:
        def before_forward(self, layout: BatchLayout) -> None:
            heard.append(layout)

        def after_forward(self) -> None:
            heard.append(heard[-1])

    _, steps = run(make_engine(model, listeners=ListenerSet([Ear()])), [make_request(0, 3, 2), make_request(1, 4, 2)])
    assert len(heard) == 2 * len(steps)
    assert heard[0].query_tokens == (3, 4)
    assert heard[0].is_prefill == (True, True)
    assert heard[-1].is_prefill == (False, False)


def test_prefix_cache_computes_shared_tokens_once(model: Any) -> None:
    first = make_request(0, 64, 2)
    twin = Request(**{**{f: getattr(first, f) for f in first.__slots__}, "index": 1, "request_id": "r1"})
    engine = make_engine(model, prefix_cache=True)
    run(engine, [first])
    tokens, steps = run(engine, [twin])
    assert steps[0].sequences[0].past_tokens >= 48, "whole pages of the first prompt are reused"
    assert tokens[1] == generated(model, first)
