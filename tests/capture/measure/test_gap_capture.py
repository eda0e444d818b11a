"""Steps of known sizes on real engines and tiny models: parts are found, hooks are removed, tokens stay the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from moeprof.capture.coverage import NUM_EXPERTS, TOP_K, tiny_model
from moeprof.capture.engines.base import Engine, ListenerSet, Step
from moeprof.capture.engines.hf import build_engine
from moeprof.capture.instrumented import Tapped
from moeprof.capture.measure import breakdown as gap_module
from moeprof.capture.measure.breakdown import Size, measure_gap, sizes_of
from moeprof.capture.measure.breakdown_trace import find_stages, stage_ranges
from moeprof.capture.models.moe_layers import find_moe_layers
from moeprof.capture.routing.tap import RoutingTap
from moeprof.core.record.breakdown import STAGES, Gap
from moeprof.core.trace import Request, Schedule
from moeprof.core.workload.engine import TransformersSettings
from tests.helpers.left_on import left_on
from tests.helpers.tiny_run import SHAPE

torch.set_num_threads(1)
INPUT, OUTPUT = 10, 6
NO_TAP = Tapped(layers=(), watching=nullcontext, seen=list)
BATCHINGS = ("continuous", "static")


@pytest.fixture
def moe() -> Any:
    return tiny_model("qwen3_moe").eval()


@pytest.fixture
def dense() -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**SHAPE, intermediate_size=32)).eval()


def make_schedule(num: int = 8, *, concurrency: int | None = None) -> Schedule:
    """Requests of 10 tokens in and 6 out: request r holds 16 ids from 16 r on."""
    ids = [np.arange(16 * r, 16 * r + 16, dtype=np.int32) % 100 + 1 for r in range(num)]
    return Schedule(
        pattern="open" if concurrency is None else "closed",
        concurrency=concurrency,
        request_id=tuple(f"r{r}" for r in range(num)),
        arrival_s=np.zeros(num),
        input_ids=tuple(row[:INPUT] for row in ids),
        output_tokens=np.full(num, OUTPUT, dtype=np.int64),
        output_ids=tuple(row[INPUT:] for row in ids),
        request_class=("all",) * num,
        session=("",) * num,
        prefix_blocks=((),) * num,
        outputs="forced",
        num_characters=np.full(num, -1, dtype=np.int64),
    )


def make_engine(model: Any, batching: str = "continuous", listeners: ListenerSet | None = None, **more: Any) -> Engine:
    settings = TransformersSettings(**{"kv_tokens": 2048, "max_batch_tokens": 128, "batching": batching, **more})
    return build_engine(model, settings, listeners or ListenerSet())


def no_engine() -> Any:
    raise AssertionError("an engine that launches every operation itself needs no other")


def tokens_of(engine: Engine) -> list[int | None]:
    """What the model chooses after a fixed prompt."""
    ask = Request(
        index=0, request_id="a", arrival_s=0.0, input_ids=[5, 6, 7], output_tokens=5, output_ids=None,
        request_class="all",
    )  # fmt: skip
    engine.submit(ask)
    steps: list[Step] = []
    while (step := engine.step()) is not None:
        steps.append(step)
    return [sequence.token for step in steps for sequence in step.sequences]


def tapped(model: Any, listeners: ListenerSet) -> Tapped:
    tap = RoutingTap(model, find_moe_layers(model))
    tap.disable()

    @contextmanager
    def watching() -> Iterator[None]:
        tap.enable()
        listeners.listeners.append(tap)
        yield
        listeners.listeners.remove(tap)
        tap.disable()

    names = tuple(layer.name for layer in tap.layers)
    return Tapped(layers=names, watching=watching, seen=lambda: tap.collect_blocks(everything=True))


def stages(gap: Gap, phase: str) -> set[str]:
    return {name for point in gap.points if point.phase == phase for step in point.profiled_P for name in step.stage_s}


# -- a real measurement ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batching", BATCHINGS)
def test_steps_of_a_mixture_are_itemised_and_the_model_is_left_as_it_was(moe: Any, batching: str) -> None:
    listeners = ListenerSet()
    engine = make_engine(moe, batching, listeners)
    before = tokens_of(engine)
    found = measure_gap(moe, engine, make_schedule(), tapped(moe, listeners), no_engine, max_seconds=60)
    assert [(point.phase, point.sequences, point.tokens) for point in found.points] == [
        ("decode", 1, 1),
        ("decode", 8, 8),
        ("prefill", 12, 120),
    ], found.notes
    assert found.clock == "operations"
    parts = {"embedding", "attention", "router", "dispatch", "experts", "elementwise", "lm_head", "sampling"}
    for phase in ("decode", "prefill"):  # a kernel of decode steps may do the projections too
        assert parts <= stages(found, phase) <= set(STAGES)
    assert "attention_projections" in stages(found, "prefill")
    for point in found.points:
        assert point.reason is None
        assert point.distinct_L is not None
        assert all(TOP_K <= distinct <= NUM_EXPERTS for distinct in point.distinct_L)
        assert len(point.wall_S) >= 4
        assert len(point.profiled_P) >= 4
        for step in point.profiled_P:
            assert 0 < step.itemised_s < step.wall_s
    one = found.points[0]
    assert one.distinct_L == (TOP_K,) * len(one.distinct_L or ())  # a single token touches k experts, exactly
    assert one.new_tokens == 1
    assert tokens_of(engine) == before
    assert listeners.listeners == []
    assert Gap.from_json(found.to_json()) == found
    engine.close()


@pytest.mark.parametrize("batching", BATCHINGS)
def test_steps_of_a_dense_model_are_itemised_without_routing(dense: Any, batching: str) -> None:
    engine = make_engine(dense, batching)
    found = measure_gap(dense, engine, make_schedule(2), NO_TAP, no_engine, max_seconds=60)
    assert [(point.phase, point.sequences) for point in found.points][:2] == [("decode", 1), ("decode", 2)]
    assert stages(found, "decode") >= {"attention", "mlp", "elementwise", "lm_head"}
    assert stages(found, "decode") & {"router", "dispatch", "experts"} == set()
    assert all(point.distinct_L is None for point in found.points)
    engine.close()


class CapturedEngine:
    """Stands for an engine whose decode steps are captured: no operation of it can be profiled."""

    def __init__(self, inner: Engine) -> None:
        self.inner, self.facts = inner, replace(inner.facts, decode="graph")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def test_captured_steps_are_timed_as_they_are_and_itemised_on_an_eager_engine(dense: Any) -> None:
    engine, opened = make_engine(dense), []

    @contextmanager
    def eager() -> Iterator[Engine]:
        engine.close()
        opened.append(make_engine(dense))
        yield opened[-1]
        opened[-1].close()

    captured: Any = CapturedEngine(engine)
    found = measure_gap(dense, captured, make_schedule(2), NO_TAP, eager, max_seconds=60)
    assert len(opened) == 1
    assert len(found.points) == 3
    assert all(point.wall_S and point.profiled_P and point.reason is None for point in found.points)


def test_a_profiler_that_fails_leaves_the_times_and_the_reason(dense: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: Any) -> Any:
        raise RuntimeError("CUPTI_ERROR_NOT_INITIALIZED\nmore")

    monkeypatch.setattr(gap_module, "profile", broken)
    engine = make_engine(dense)
    (point, *_) = measure_gap(dense, engine, make_schedule(2), NO_TAP, no_engine, max_seconds=60).points
    assert point.profiled_P == ()
    assert point.reason == "profiling failed: CUPTI_ERROR_NOT_INITIALIZED"
    assert len(point.wall_S) >= 4
    engine.close()


def test_sizes_without_time_are_left_out_with_a_note(dense: Any) -> None:
    engine = make_engine(dense)
    ticks = iter(range(10**6))
    found = measure_gap(
        dense, engine, make_schedule(), NO_TAP, no_engine, max_seconds=0.5, clock=lambda: float(next(ticks))
    )
    assert found.points == ()
    assert found.notes[0] == "decode of 1: left out, no time for it in 0.5 s"
    engine.close()


def test_a_stop_ends_the_measurement(dense: Any) -> None:
    engine = make_engine(dense)
    found = measure_gap(dense, engine, make_schedule(), NO_TAP, no_engine, lambda: True, max_seconds=60)
    assert found.points == ()
    engine.close()


# -- sizes -------------------------------------------------------------------------------------------------------------


def sizes(engine: Any, schedule: Schedule) -> list[str]:
    return [size if isinstance(size, str) else size.name for size in sizes_of(engine, schedule, 20)]


class Facts:
    """An engine that is only asked what it is."""

    def __init__(self, engine: Engine, **more: Any) -> None:
        self.facts = replace(engine.facts, **more)


@pytest.fixture
def plain(dense: Any) -> Iterator[Engine]:
    engine = make_engine(dense)
    yield engine
    engine.close()


def test_batches_are_bounded_by_the_requests_or_the_concurrency(plain: Engine) -> None:
    assert sizes(plain, make_schedule(8)) == ["decode of 1", "decode of 8", "prefill of 12"]
    assert sizes(plain, make_schedule(8, concurrency=3)) == ["decode of 1", "decode of 3", "prefill of 12"]


def test_batches_that_do_not_fit_the_cache_are_named(plain: Engine) -> None:
    small: Any = Facts(plain, kv_tokens=128)
    assert "decode of 8: does not fit the KV cache or the step size" in sizes(small, make_schedule(8))


def test_a_schedule_without_text_has_no_sizes(plain: Engine) -> None:
    nothing = replace(make_schedule(1), input_ids=(np.empty(0, dtype=np.int32),))
    assert sizes(plain, nothing) == ["the schedule has no text to make steps of"]


def test_requests_are_text_of_the_schedule_strung_together(plain: Engine) -> None:
    size = next(iter(sizes_of(plain, make_schedule(3), 20)))
    assert isinstance(size, Size)
    (request,) = size.requests
    assert len(request.input_ids) == INPUT + OUTPUT // 2
    assert [*request.input_ids, *(request.output_ids or ())][:40] == list(range(1, 41))


# -- stages ------------------------------------------------------------------------------------------------------------


def test_stages_are_found_by_structure(moe: Any) -> None:
    found = find_stages(moe)
    layer = "model.layers.0."
    assert {path.removeprefix(layer): stage for path, stage in found.items() if path.startswith(layer)} == {
        "self_attn": "attention",
        "self_attn.q_proj": "attention_projections",
        "self_attn.k_proj": "attention_projections",
        "self_attn.v_proj": "attention_projections",
        "self_attn.o_proj": "attention_projections",
        "self_attn.q_norm": "elementwise",
        "self_attn.k_norm": "elementwise",
        "mlp": "dispatch",
        "mlp.experts": "experts",
        "mlp.gate": "router",
        "input_layernorm": "elementwise",
        "post_attention_layernorm": "elementwise",
    }
    assert (found["model.embed_tokens"], found["lm_head"]) == ("embedding", "lm_head")


@pytest.mark.parametrize("model_type", ["qwen2_moe", "deepseek_v2", "gpt_oss", "granitemoe"])
def test_every_layer_of_other_architectures_has_attention_router_and_experts(model_type: str) -> None:
    model = tiny_model(model_type)
    found = find_stages(model)
    num_moe = len(find_moe_layers(model))
    assert list(found.values()).count("experts") == list(found.values()).count("router") == num_moe > 0
    assert list(found.values()).count("attention") == model.config.num_hidden_layers  # type: ignore[union-attr]


def test_a_head_that_shares_the_embedding_is_the_head() -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tied = Qwen3ForCausalLM(Qwen3Config(**SHAPE | {"tie_word_embeddings": True}, intermediate_size=32))
    found = find_stages(tied)
    assert (found["model.embed_tokens"], found["lm_head"]) == ("embedding", "lm_head")


def test_ranges_are_closed_and_hooks_removed_when_the_model_fails(dense: Any) -> None:
    def fails(*_: Any) -> None:
        raise ValueError("no")

    broken = dense.model.layers[0].mlp.register_forward_pre_hook(fails)
    with pytest.raises(ValueError, match="no"), stage_ranges(dense, find_stages(dense)):
        dense(torch.tensor([[1, 2]]))
    broken.remove()
    assert left_on(dense) == []


def test_compiled_layers_are_itemised_as_they_were_written() -> None:
    from moeprof.capture.engines.paged.model import decoder_layers

    model = tiny_model("qwen3_moe").eval()
    for layer in decoder_layers(model) or ():
        layer.compile(backend="eager")
    engine = make_engine(model)
    found = measure_gap(model, engine, make_schedule(1), NO_TAP, no_engine, max_seconds=60)
    assert stages(found, "decode") >= {"attention", "router", "dispatch", "experts"}
    engine.close()


def test_a_prompt_step_is_whole_each_time_though_prefixes_are_shared(moe: Any) -> None:
    ask = Request(
        index=0, request_id="a", arrival_s=0.0, input_ids=[1] * 40, output_tokens=1, output_ids=None,
        request_class="all",
    )  # fmt: skip
    engine, size = make_engine(moe, prefix_cache=True), Size(phase="prefill", requests=(ask,))
    for _ in range(2):
        size.ready(engine)
        step = engine.step()
        assert step is not None and step.prefill_tokens == 40
    engine.close()
