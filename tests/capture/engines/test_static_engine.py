"""Static batches: tokens equal generate, padding is never counted, nobody joins a running batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from moeprof.capture.coverage import tiny_model
from moeprof.capture.engines.base import BatchLayout, ListenerSet, Step
from moeprof.capture.engines.static import StaticEngine
from moeprof.capture.engines.static_batch import needs_static
from moeprof.capture.models.moe_layers import find_moe_layers
from moeprof.capture.routing.tap import RoutingTap
from moeprof.core.errors import EngineError
from moeprof.core.trace import Request

torch.set_num_threads(1)


class Listener:
    def __init__(self) -> None:
        self.layouts: list[BatchLayout] = []
        self.after = 0

    def before_forward(self, layout: BatchLayout) -> None:
        assert self.after == len(self.layouts)
        self.layouts.append(layout)

    def after_forward(self) -> None:
        self.after += 1


def request(index: int, prompt: Sequence[int], output: int, **more: Any) -> Request:
    return Request(
        index=index,
        request_id=f"r{index}",
        arrival_s=0.0,
        input_ids=list(prompt),
        output_tokens=output,
        output_ids=more.pop("output_ids", None),
        request_class="all",
        **more,
    )


def run(engine: StaticEngine, requests: Sequence[Request]) -> tuple[list[Step], dict[int, list[int | None]]]:
    for item in requests:
        engine.submit(item)
    steps, tokens = [], {item.index: [] for item in requests}  # type: ignore[var-annotated]
    while (step := engine.step()) is not None:
        steps.append(step)
        for sequence in step.sequences:
            tokens[sequence.request].append(sequence.token)
    return steps, tokens


def generated(model: Any, prompt: Sequence[int], output: int) -> list[int]:
    ids = torch.tensor([list(prompt)])
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=output,
            eos_token_id=None,
            pad_token_id=0,
        )
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("deepseek_v3")


PROMPTS = ([5, 9, 7, 30, 31, 90, 11], [8, 3, 77], [60, 61, 62, 63, 64], [12, 100])
OUTPUTS = (9, 3, 5, 2)


@pytest.mark.parametrize(
    "model_type",
    ["deepseek_v3", "qwen3_next", "jamba", "llama4_text", "zaya", "minimax", "lfm2_moe", "gpt_oss", "deepseek_v4"],
)
def test_tokens_equal_generate_one_by_one_although_rows_are_padded_and_cut(model_type: str) -> None:
    model = tiny_model(model_type)
    engine = StaticEngine(model, max_batch=4, max_sequence_tokens=64)
    _, tokens = run(engine, [request(i, p, o) for i, (p, o) in enumerate(zip(PROMPTS, OUTPUTS, strict=True))])
    for i, (prompt, output) in enumerate(zip(PROMPTS, OUTPUTS, strict=True)):
        assert tokens[i] == generated(model, prompt, output), i


def test_a_batch_prefills_together_then_decodes_and_nobody_joins(model: Any) -> None:
    engine = StaticEngine(model, max_batch=2, max_sequence_tokens=64)
    steps, _ = run(engine, [request(0, range(3, 8), 3), request(1, range(3, 6), 2), request(2, range(3, 7), 1)])
    assert [step.phase for step in steps] == ["prefill", "decode", "decode", "prefill"]
    assert [(step.prefill_tokens, step.decode_tokens) for step in steps] == [(8, 0), (0, 2), (0, 1), (4, 0)]
    assert [step.context_tokens for step in steps] == [8, 6 + 4, 7, 4]
    assert [[s.past_tokens for s in step.sequences] for step in steps] == [[0, 0], [5, 3], [6], [0]]
    assert [[s.finished for s in step.sequences] for step in steps] == [[False, False], [False, True], [True], [True]]
    assert all(step.end_s >= step.start_s and step.device_s is None for step in steps)


def test_slots_are_those_of_the_padded_batch_and_freed_at_its_end(model: Any) -> None:
    engine = StaticEngine(model, max_batch=2, max_sequence_tokens=64)
    steps, _ = run(engine, [request(0, range(3, 8), 3), request(1, range(3, 6), 3)])
    assert [step.kv_tokens_used for step in steps] == [2 * 5, 2 * 6, 0]


def test_listeners_see_padding_and_finished_rows_masked(model: Any) -> None:
    listener = Listener()
    engine = StaticEngine(model, max_batch=3, max_sequence_tokens=64, listeners=ListenerSet([listener]))
    run(engine, [request(0, range(3, 7), 3), request(1, range(3, 5), 2), request(2, range(3, 7), 3)])
    prefill, both, two = listener.layouts
    assert prefill.query_tokens == (4, 2, 4) and prefill.is_prefill == (True, True, True)
    assert prefill.token_mask == [True] * 4 + [False] * 2 + [True] * 2 + [True] * 4
    assert both.query_tokens == (1, 1, 1) and both.token_mask is None
    # One of three rows is done: it stays in the batch as padding.
    assert two.requests == (0, 2) and two.token_mask == [True, False, True]
    assert listener.after == 3


@pytest.mark.parametrize("model_type", ["deepseek_v3", "deepseek_v4"])
def test_the_tap_counts_real_tokens_only(model_type: str) -> None:
    model, listeners = tiny_model(model_type), ListenerSet()
    layers = find_moe_layers(model)
    tap = RoutingTap(model, layers, ("a", "b"), request_class=("a", "b", "a"))
    listeners.listeners.append(tap)
    engine = StaticEngine(model, max_batch=4, max_sequence_tokens=64, listeners=listeners)
    run(engine, [request(0, range(3, 10), 4), request(1, range(3, 6), 2), request(2, range(3, 10), 1)])
    blocks = tap.collect_blocks(everything=True)
    tap.close()
    tokens = sum(block.tokens_SG.sum(axis=0) for block in blocks)
    counts = sum(block.counts_SLGE.sum(axis=0) for block in blocks)
    # Prefill a: 7 + 7, prefill b: 3, decode a: 3, decode b: 1 (a first token needs no decode step).
    assert tokens.tolist() == [14, 3, 3, 1]
    assert (counts.sum(axis=-1) == tokens * 2).all()


def test_forced_tokens_are_fed_whatever_the_model_says(model: Any) -> None:
    engine = StaticEngine(model, max_batch=2, max_sequence_tokens=64)
    forced = [99, 98, 97]
    steps, tokens = run(engine, [request(0, PROMPTS[0], 3, output_ids=forced)])
    assert tokens[0] == forced
    first, second = steps[0].sequences[0].chosen, steps[1].sequences[0].chosen
    assert first == generated(model, PROMPTS[0], 1)[0]
    assert second == generated(model, [*PROMPTS[0], 99], 1)[0]  # the model continued the forced token


def test_an_end_token_stops_only_requests_that_may_stop(model: Any) -> None:
    first = generated(model, PROMPTS[0], 1)[0]
    engine = StaticEngine(model, max_batch=2, max_sequence_tokens=64, eos_ids=[first])
    _, tokens = run(engine, [request(0, PROMPTS[0], 4, stop_at_eos=True), request(1, PROMPTS[0], 4)])
    assert tokens[0] == [first] and len(tokens[1]) == 4


def test_models_that_padding_changes_get_batches_of_equal_length() -> None:
    listener = Listener()
    model = tiny_model("deepseek_v4")
    engine = StaticEngine(model, max_batch=4, max_sequence_tokens=64, listeners=ListenerSet([listener]))
    run(engine, [request(i, range(3, 3 + n), 1) for i, n in enumerate((5, 4, 5, 4))])
    assert [layout.requests for layout in listener.layouts] == [(0, 2), (1, 3)]
    assert all(layout.token_mask is None for layout in listener.layouts)
    assert "equal prompt length" in engine.facts.notes[-1]


def test_cache_room_and_tokens_per_step_bound_a_batch(model: Any) -> None:
    prompts = [request(i, range(3, 13), 10) for i in range(3)]  # 20 tokens each
    for limits, sizes in (({"kv_tokens": 40}, [2, 1]), ({"max_batch_tokens": 10}, [1, 1, 1]), ({}, [3])):
        engine = StaticEngine(model, max_batch=8, max_sequence_tokens=20, **limits)
        steps, _ = run(engine, prompts)
        assert [len(step.sequences) for step in steps if step.phase == "prefill"] == sizes


def test_requests_that_can_never_run_are_refused_with_their_name(model: Any) -> None:
    engine = StaticEngine(model, max_batch=2, max_sequence_tokens=8)
    with pytest.raises(EngineError, match="r0: 9 tokens"):
        engine.submit(request(0, range(3, 9), 3))
    with pytest.raises(EngineError, match="r1: needs a prompt"):
        engine.submit(request(1, [], 3))
    assert engine.step() is None


def test_reset_forgets_the_running_batch_and_the_waiting(model: Any) -> None:
    engine = StaticEngine(model, max_batch=1, max_sequence_tokens=64)
    for i in range(3):
        engine.submit(request(i, PROMPTS[i], 4))
    engine.step()
    engine.reset()
    assert engine.step() is None
    _, tokens = run(engine, [request(7, PROMPTS[0], 2)])
    assert tokens[7] == generated(model, PROMPTS[0], 2)


def test_times_come_from_the_given_clock(model: Any) -> None:
    ticks = iter(range(100))
    engine = StaticEngine(model, max_batch=1, max_sequence_tokens=64, clock=lambda: float(next(ticks)))
    steps, _ = run(engine, [request(0, PROMPTS[0], 2)])
    assert [(step.start_s, step.end_s) for step in steps] == [(0.0, 1.0), (2.0, 3.0)]


@pytest.mark.parametrize(
    ("model_type", "word"),
    [
        ("deepseek_v3", None),
        ("qwen3_next", "linear"),
        ("llama4_text", "chunked"),
        ("deepseek_v32", "index"),
        ("lfm2_moe", "convolution"),
        ("qwen3_moe", None),
        ("mixtral", None),
    ],
)
def test_the_reason_for_static_batches_is_named(model_type: str, word: str | None) -> None:
    reason = needs_static(tiny_model(model_type))
    assert reason is None if word is None else word in str(reason)
