"""Our own paged engine: tokens of ``generate`` in every mode, captured steps, running ahead, pages, seats."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from moeprof.capture.coverage import tiny_model
from moeprof.capture.engines.base import BatchLayout, ListenerSet, Step
from moeprof.capture.engines.hf import build_engine
from moeprof.capture.engines.paged.attention import PADDING_TOKENS, alike
from moeprof.capture.engines.paged.cache import hub_of
from moeprof.capture.engines.paged.engine import PagedEngine, PagedOptions
from moeprof.capture.engines.paged.graphs import DecodeGraphs, sizes_up_to
from moeprof.capture.engines.paged.model import as_written, compile_layers
from moeprof.capture.engines.static import StaticEngine
from moeprof.capture.measure.warmup import calibrate
from moeprof.capture.models.moe_layers import find_moe_layers
from moeprof.capture.routing.tap import RoutingTap
from moeprof.core.errors import EngineError, UnsupportedModelError
from moeprof.core.trace import Request
from moeprof.core.workload.engine import TransformersSettings
from tests.capture.measure.test_gap_capture import make_schedule
from tests.helpers.traced_graphs import TracedGraphs

VOCAB = 97
MODES = {
    "eager": {},
    "captured": {"graphs": True},
    "captured and ahead": {"graphs": True, "run_ahead": True},
}
CALIBRATION_STEPS = 11
LENGTHS = ((5, 9), (40, 20), (100, 7), (150, 12), (3, 30), (17, 1))


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


def make_engine(model: Any, listeners: ListenerSet | None = None, **changes: Any) -> PagedEngine:
    if changes.get("graphs") is True:
        changes["graphs"] = TracedGraphs()
    return PagedEngine(model, PagedOptions(**{"kv_tokens": 4096, "max_batch_tokens": 64, **changes}), listeners)


def run(engine: Any, requests: list[Request]) -> tuple[dict[int, list[int]], list[Step]]:
    for request in requests:
        engine.submit(request)
    steps: list[Step] = []
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


def prepare(engine: PagedEngine, sizes: list[int], num_pages: int) -> None:
    """Capture these sizes and no others."""
    assert engine._graphs is not None
    hub_of(engine._model).active = engine._cache
    with torch.inference_mode():
        engine._graphs.prepare(sizes, num_pages)


def requests_of(lengths: tuple[tuple[int, int], ...] = LENGTHS) -> list[Request]:
    return [make_request(i, *pair) for i, pair in enumerate(lengths)]


@pytest.mark.parametrize("mode", list(MODES))
def test_tokens_equal_generate_in_every_mode(model: Any, mode: str) -> None:
    requests = requests_of()
    wanted = {request.index: generated(model, request) for request in requests}
    engine = make_engine(model, **MODES[mode])
    engine.prepare(6, 200)
    tokens, steps = run(engine, requests)
    engine.close()
    assert tokens == wanted
    computed = sum(sequence.query_tokens for step in steps for sequence in step.sequences)
    assert computed == sum(i + o - 1 for i, o in LENGTHS)  # nothing is computed twice


def test_a_prompt_of_1500_tokens_is_cut_into_chunks_and_right(model: Any) -> None:
    request = make_request(0, 1500, 5)
    engine = make_engine(model, max_batch_tokens=128)
    tokens, steps = run(engine, [request])
    engine.close()
    assert tokens[0] == generated(model, request)
    assert [step.prefill_tokens for step in steps[:12]] == [128] * 11 + [92]


def test_captured_steps_run_where_a_size_was_prepared_and_padding_is_a_copy_of_the_first_row(model: Any) -> None:
    graphs = TracedGraphs()
    engine = make_engine(model, graphs=graphs)
    prepare(engine, [4], 8)
    requests = [make_request(i, 8, 10) for i in range(3)]
    wanted = {request.index: generated(model, request) for request in requests}
    engine._model.set_attn_implementation("moeprof_paged")
    tokens, steps = run(engine, requests)
    engine.close()
    assert tokens == wanted
    assert graphs.captured == 1 and sum(step.phase == "decode" for step in steps) == 9
    assert graphs.replayed == 10  # and once to check


def test_a_captured_step_reads_no_value_on_the_host(model: Any) -> None:
    graphs = TracedGraphs()
    engine = make_engine(model, graphs=graphs)
    engine.prepare(2, 64)
    engine.close()
    assert graphs.operations and not graphs.reads_values


def test_sizes_without_a_capture_run_eagerly(model: Any) -> None:
    graphs = TracedGraphs()
    engine = make_engine(model, graphs=graphs)
    prepare(engine, [2], 8)
    tokens, _ = run(engine, [make_request(i, 8, 4) for i in range(3)])
    engine.close()
    assert graphs.replayed == 1 and all(len(ids) == 4 for ids in tokens.values())


def test_a_listener_that_knows_no_graphs_keeps_every_step_eager(model: Any) -> None:
    class Plain:
        def before_forward(self, layout: BatchLayout) -> None: ...

        def after_forward(self) -> None: ...

    graphs = TracedGraphs()
    engine = make_engine(model, ListenerSet([Plain()]), graphs=graphs)
    assert engine.prepare(2, 64) == 0
    run(engine, [make_request(0, 4, 3)])
    engine.close()
    assert graphs.captured == graphs.replayed == 0


class Failing:
    """A backend that cannot, or that replays something else."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def capture(self, run: Any) -> Any:
        if self.error is not None:
            raise self.error
        chosen, kept = run()
        return (lambda: chosen.fill_(VOCAB + 1)), (chosen, kept)


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors..."), "not permitted when"),
        (None, "2 of 2 tokens of a replay are not"),
    ],
)
def test_what_cannot_be_captured_runs_eagerly_and_the_facts_say_why(model: Any, error: Any, why: str) -> None:
    wanted = generated(model, make_request(0, 9, 5))
    engine = make_engine(model, graphs=Failing(error))
    assert engine.facts.decode == "graph"
    assert engine.prepare(2, 64) == 0
    assert engine.facts.decode == "eager" and why in engine.facts.notes[-1]
    tokens, _ = run(engine, [make_request(0, 9, 5)])
    engine.close()
    assert tokens[0] == wanted


@pytest.mark.parametrize("ahead", [False, True])
def test_counts_of_captured_steps_are_those_of_eager_steps(model: Any, ahead: bool) -> None:
    layers, totals = find_moe_layers(model), {}
    for captured in (False, True):
        listeners = ListenerSet()
        tap = RoutingTap(model, layers)
        listeners.listeners.append(tap)
        engine = make_engine(model, listeners, graphs=captured or None, run_ahead=ahead)
        if captured:
            prepare(engine, [5, 8], 16)
        tap.discard()
        run(engine, requests_of())
        totals[captured] = [counts for block in tap.collect_blocks(everything=True) for counts in block.counts_SLGE]
        engine.close()
        tap.close()
    assert len(totals[True]) == len(totals[False])
    for eager, replayed in zip(totals[False], totals[True], strict=True):
        assert (eager == replayed).all()


def test_running_ahead_tells_steps_in_order_and_their_times_do_not_overlap(model: Any) -> None:
    engine = make_engine(model, run_ahead=True, graphs=True)
    prepare(engine, [2], 4)
    for request in requests_of(((8, 6), (8, 6))):
        engine.submit(request)
    first = engine.step()
    assert first is not None and first.phase == "prefill"
    assert len(engine._flights) == 1  # the second step is under way
    engine.submit(make_request(2, 4, 2))
    rest = engine.drain()
    assert [step.phase for step in rest] == ["decode"]
    steps = [first, *rest]
    while (step := engine.step()) is not None:
        steps.append(step)
    engine.close()
    assert all(a.end_s <= b.start_s for a, b in pairwise(steps))
    assert sum(sequence.finished for step in steps for sequence in step.sequences) == 3


def test_steps_that_are_not_captured_are_not_run_ahead(model: Any) -> None:
    engine = make_engine(model, run_ahead=True)
    engine.submit(make_request(0, 8, 3))
    assert engine.step() is not None and not engine._flights
    engine.close()


def test_forced_tokens_are_fed_and_the_models_own_choice_is_told_apart(model: Any) -> None:
    free = make_request(0, 10, 6)
    own = generated(model, free)
    forced = [(token + 1) % VOCAB for token in own]
    for mode in MODES.values():
        engine = make_engine(model, **mode)
        engine.prepare(1, 32)
        tokens, steps = run(engine, [make_request(0, 10, 6, forced=forced)])
        engine.close()
        assert tokens[0] == forced
        assert next(s.chosen for step in steps for s in step.sequences if s.chosen is not None) == own[0]


def test_an_output_ends_at_eos_and_then_no_step_runs_ahead(model: Any) -> None:
    request = make_request(0, 10, 20)
    own = generated(model, request)
    stop = own[4]
    stopping = Request(
        index=0, request_id="r0", arrival_s=0.0, input_ids=request.input_ids, output_tokens=20, output_ids=None,
        request_class="all", stop_at_eos=True,
    )  # fmt: skip
    engine = make_engine(model, run_ahead=True, graphs=True, eos_ids=(stop,))
    engine.prepare(1, 32)
    tokens, steps = run(engine, [stopping])
    engine.close()
    assert tokens[0] == own[: own.index(stop) + 1]
    assert steps[-1].sequences[0].finished


def test_without_room_requests_wait_and_nothing_is_preempted(model: Any) -> None:
    # 6 pages of 16: one request of 64 + 16 tokens takes 5, so the second waits for the first to end.
    engine = make_engine(model, kv_tokens=96)
    requests = [make_request(i, 64, 16) for i in range(2)]
    wanted = {request.index: generated(model, request) for request in requests}
    engine._model.set_attn_implementation("moeprof_paged")
    tokens, steps = run(engine, requests)
    engine.close()
    assert tokens == wanted
    assert max(len(step.sequences) for step in steps) == 1 and not any(step.preempted for step in steps)


def test_no_more_sequences_run_than_there_are_seats(model: Any) -> None:
    engine = make_engine(model, max_sequences=2)
    _, steps = run(engine, [make_request(i, 4, 5) for i in range(5)])
    engine.close()
    assert max(len(step.sequences) for step in steps) == 2


def test_a_request_that_can_never_fit_is_refused_by_name(model: Any) -> None:
    engine = make_engine(model, kv_tokens=64)
    with pytest.raises(EngineError, match="request r0: 65 tokens, the engine holds 64"):
        engine.submit(make_request(0, 60, 5))
    engine.close()


def test_after_reset_the_engine_starts_clean_and_after_close_the_model_has_its_own_attention(model: Any) -> None:
    model.set_attn_implementation("sdpa")
    engine = make_engine(model, run_ahead=True, graphs=True)
    prepare(engine, [1], 4)
    engine.submit(make_request(0, 30, 30))
    engine.step()
    engine.reset()
    assert engine.step() is None
    tokens, _ = run(engine, [make_request(1, 6, 4)])
    engine.close()
    assert model.config._attn_implementation == "sdpa"
    assert tokens[1] == generated(model, make_request(1, 6, 4))


def test_listeners_hear_every_forward_before_it_runs(model: Any) -> None:
    heard: list[BatchLayout] = []

    class Ear:
        def before_forward(self, layout: BatchLayout) -> None:
            heard.append(layout)

        def after_forward(self) -> None:
            heard.append(heard[-1])

    engine = make_engine(model)
    engine.listeners.listeners.append(Ear())
    _, steps = run(engine, [make_request(0, 3, 2), make_request(1, 4, 2)])
    engine.close()
    assert len(heard) == 2 * len(steps)
    assert heard[0].query_tokens == (3, 4)
    assert heard[0].is_prefill == (True, True)
    assert heard[-1].is_prefill == (False, False)


def test_two_engines_share_a_model_step_by_step(model: Any) -> None:
    wanted = generated(model, make_request(0, 6, 6))
    one, two = make_engine(model), make_engine(model)
    one.submit(make_request(0, 6, 6))
    two.submit(make_request(0, 6, 6))
    tokens: tuple[list[int], list[int]] = ([], [])
    while (first := one.step()) is not None:
        second = two.step()
        assert second is not None
        tokens[0].append(first.sequences[0].token or 0)
        tokens[1].append(second.sequences[0].token or 0)
    one.close()
    two.submit(make_request(1, 6, 2))
    assert two.step() is not None  # still attends by its own cache
    two.close()
    assert tokens == (wanted, wanted)


def test_compiled_layers_give_the_same_tokens_and_counts_and_are_compiled_once_for_all_layers() -> None:
    model, counters = tiny_model("qwen3_moe"), torch._dynamo.utils.counters
    layers, requests = find_moe_layers(model), requests_of(((5, 6), (9, 4), (20, 3)))
    wanted = {request.index: generated(model, request) for request in requests}
    counters.clear()
    assert compile_layers(model, backend="aot_eager") == "layers"
    listeners = ListenerSet()
    tap = RoutingTap(model, layers)
    listeners.listeners.append(tap)
    engine = make_engine(model, listeners)
    tap.discard()
    tokens, _ = run(engine, requests)
    engine.close()
    counted = sum(int(block.counts_SLGE.sum()) for block in tap.collect_blocks(everything=True))
    tap.close()
    as_written(model)
    assert tokens == wanted
    assert counted == (10 + 12 + 22) * 2 * len(layers)  # tokens computed x top-2 x layers
    assert 0 < counters["stats"]["unique_graphs"] <= 16  # two pieces, a few kinds of batches
    assert all(layer._compiled_call_impl is None for layer in model.model.layers)


@pytest.mark.parametrize("model_type", ["deepseek_v2", "deepseek_v3", "gpt_oss", "mimo_v2_flash", "gemma4_text"])
def test_latent_attention_windows_and_sinks_give_the_tokens_of_static_batches(model_type: str) -> None:
    model = tiny_model(model_type)
    for module in model.modules():
        if getattr(module, "sliding_window", None):
            module.sliding_window = 6  # shorter than the prompts, or nothing would be hidden
    if getattr(model.config, "sliding_window", None):
        model.config.sliding_window = 6  # static batches make their mask from here
    requests = [make_request(i, *pair) for i, pair in enumerate(((7, 5), (4, 9), (30, 6)))]
    static = StaticEngine(model, max_batch=1, max_sequence_tokens=64)
    wanted, _ = run(static, requests)
    static.close()
    for mode in ("eager", "captured"):
        engine = make_engine(model, max_batch_tokens=16, **MODES[mode])
        engine.prepare(3, 48)
        tokens, _ = run(engine, requests)
        engine.close()
        assert tokens == wanted, mode


@pytest.mark.parametrize("batching", ["auto", "continuous"])
def test_auto_and_continuous_take_the_paged_engine(model: Any, batching: Any) -> None:
    engine = build_engine(model, TransformersSettings(kv_tokens=256, batching=batching))
    assert engine.facts.scheduler == "moeprof" and engine.facts.decode == "eager" and not engine.facts.run_ahead
    assert engine.prepare(4, 100) == 0
    engine.close()


def test_what_a_cpu_or_a_class_cannot_do_is_refused_by_name(model: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=r"engine\.decode_graphs: on needs a CUDA device"):
        build_engine(model, TransformersSettings(kv_tokens=256, decode_graphs="on"))
    with pytest.raises(UnsupportedModelError, match=r"cannot run in continuous batches: linear attention"):
        build_engine(tiny_model("qwen3_next"), TransformersSettings(kv_tokens=256, batching="continuous"))


def test_sequences_of_like_length_decode_in_one_call() -> None:
    assert alike([3, 5]) == [[0, 1]]
    assert alike([10, 20 + PADDING_TOKENS, 12, 1000]) == [[3], [1], [2, 0]], "the longest first"
    assert alike([]) == []


def test_padding_is_at_most_an_eighth_and_small_batches_have_none() -> None:
    sizes = sizes_up_to(64)
    assert sizes[:17] == [*range(1, 17), 18] and sizes[-1] == 64
    assert all(b - a <= max(1, a // 8) for a, b in pairwise(sizes))
    assert sizes_up_to(1) == [1] and len(sizes_up_to(256)) == 48


def test_a_table_is_no_wider_than_its_contexts_need() -> None:
    widths: list[int] = []

    class Counting:
        def capture(self, run: Any) -> Any:
            return (lambda: None), run()

    def forward(rows_3B: torch.Tensor, width: int) -> torch.Tensor:
        widths.append(width)
        return rows_3B[0].clone()

    graphs = DecodeGraphs(Counting(), forward, ListenerSet(), torch.device("cpu"), most_pages=300)
    assert graphs.prepare([1, 2], 100) == 4  # two sizes, tables of 64 and of 256 pages
    assert widths == [64, 64, 64, 256, 256, 256]  # and a check of each width
    assert graphs.find(2, 64) is not graphs.find(2, 65) is not None
    assert graphs.find(3, 64) is None and graphs.find(1, 300) is None


def test_calibration_runs_captured_steps_where_the_passes_do(model: Any, tmp_path: Path) -> None:
    graphs = TracedGraphs()
    engine = make_engine(model, graphs=graphs)
    calibrate(
        engine, make_schedule(2), tmp_path, max_seconds=60.0, should_stop=lambda: graphs.replayed > CALIBRATION_STEPS
    )
    engine.close()
    phases = pd.read_parquet(tmp_path / "calibration.parquet")["phase"]
    # One request with 12 outputs, the first one of them from prefill; every decode step was replayed.
    assert (phases == "decode").sum() == CALIBRATION_STEPS == graphs.replayed - 1  # and once to check
