"""vLLM stepped by our loop, against a fake of the surface that we touch: composition, forced ids, picks, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from moeprof.capture.engines.base import ListenerSet, Step
from moeprof.capture.engines.vllm.engine import VllmEngine
from moeprof.capture.engines.vllm.forcing import FIRST_ROWS, Forcing
from moeprof.capture.engines.vllm.open import deployment
from moeprof.capture.engines.vllm.plugin import Kept, define, wrap
from moeprof.capture.engines.vllm.settings import VllmSettings
from moeprof.capture.measure.invariants import check_pass
from moeprof.capture.memory.measure import Watch
from moeprof.capture.recorders.requests import RequestRecorder
from moeprof.capture.recorders.routing import RoutingRecorder
from moeprof.capture.recorders.steps import StepRecorder
from moeprof.capture.replay import Recorder, replay
from moeprof.capture.routing.shown import ShownTap, check_shown
from moeprof.core.errors import EngineError
from moeprof.core.record.routing import Routing
from moeprof.core.trace import Request, Schedule
from moeprof.core.workload.models import ModelSpec
from tests.helpers import fake_vllm
from tests.helpers.fake_vllm import NUM_EXPERTS, NUM_LAYERS, TOP_K, VOCABULARY, FakeEngine, router_class

PROMPTS, OUTPUTS = (11, 40, 5, 23), (6, 3, 9, 4)


def schedule(*, forced: bool = True, classes: tuple[str, ...] = ("a", "b", "a", "b")) -> Schedule:
    random = np.random.default_rng(3)
    ids = tuple(random.integers(0, VOCABULARY, n).astype(np.int32) for n in PROMPTS)
    outputs = tuple(random.integers(0, VOCABULARY, n).astype(np.int32) for n in OUTPUTS)
    size = len(PROMPTS)
    return Schedule(
        pattern="offline", concurrency=None, request_id=tuple(map(str, range(size))), arrival_s=np.zeros(size),
        input_ids=ids, output_tokens=np.array(OUTPUTS), output_ids=outputs if forced else None, request_class=classes,
        session=("",) * size, prefix_blocks=((),) * size, outputs="forced" if forced else "forced_length",
        num_characters=np.full(size, -1), realism={}, notes=(),
    )  # fmt: skip


class Steps(Recorder):
    """Keeps every step."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def on_step(self, step: Step, num_waiting: int) -> None:
        self.steps.append(step)


def opened(fake: FakeEngine, listeners: ListenerSet | None = None, *, ranks: int = 1) -> tuple[Any, VllmEngine]:
    found = deployment(
        ModelSpec(name="moe", path="moe"), VllmSettings(tensor_parallel=ranks), fake_vllm.inside(fake, ranks=ranks),
        torch.device("cpu"), version="0.32.0", launch={}, memory=Watch(torch.device("cpu")) if ranks == 1 else None,
    )  # fmt: skip
    engine = found.build(VllmSettings(), listeners or ListenerSet())
    assert isinstance(engine, VllmEngine)
    return found, engine


@pytest.mark.parametrize(("second", "ranks"), [(False, 1), (True, 1), (False, 2), (True, 2)])
def test_each_step_is_told_exactly_and_every_id_is_forced(second: bool, ranks: int) -> None:
    fake, seen, sent = FakeEngine(second=second), Steps(), schedule()
    _, engine = opened(fake, ranks=ranks)
    result = replay(engine, sent, [seen])
    assert result.finished == len(PROMPTS)
    assert sum(step.prefill_tokens for step in seen.steps) == sum(PROMPTS)
    assert sum(step.decode_tokens for step in seen.steps) == sum(n - 1 for n in OUTPUTS)
    assert [[s.request for s in step.sequences] for step in seen.steps] == [
        [int(name.partition("-")[0]) - 1 for name in batch] for batch in fake.runner.batches
    ]
    tokens: dict[int, list[int]] = {}
    for step in seen.steps:
        for one in step.sequences:
            tokens.setdefault(one.request, []).extend([] if one.token is None else [one.token])
    assert sent.output_ids is not None
    assert tokens == {i: ids.tolist() for i, ids in enumerate(sent.output_ids)}
    chunked = [one for step in seen.steps for one in step.sequences if one.is_prefill and one.token is None]
    assert {one.request for one in chunked} == {1, 3}, "prompts that end in a later step gave no token before"


def test_what_the_model_itself_would_have_taken_is_kept_beside_what_was_forced() -> None:
    seen, free = Steps(), Steps()
    replay(opened(FakeEngine())[1], schedule(), [seen])
    replay(opened(FakeEngine())[1], schedule(forced=False), [free])
    forced = [one for step in seen.steps for one in step.sequences if one.token is not None]
    own = [one for step in free.steps for one in step.sequences if one.token is not None]
    assert any(one.token != one.chosen for one in forced)
    assert all(one.token == one.chosen for one in own)
    first = {one.request: one.chosen for one in reversed(forced)}
    assert first == {one.request: one.chosen for one in reversed(own)}, "after the same prompt the model takes the same"


def test_a_preemption_is_told_and_what_is_computed_again_is_prefill(tmp_path: Path) -> None:
    fake, seen = FakeEngine(num_blocks=16, max_tokens=64), Steps()
    _, engine = opened(fake)
    replay(engine, schedule(), [seen, RequestRecorder(tmp_path), StepRecorder(tmp_path)])
    preempted = [request for step in seen.steps for request in step.preempted]
    assert preempted, "the cache was too large to test anything"
    requests = pd.read_parquet(tmp_path / "requests.parquet").set_index("request").sort_index()
    assert requests["num_preemptions"].to_dict() == {i: preempted.count(i) for i in range(len(PROMPTS))}
    assert (requests["recomputed_tokens"] > 0).tolist() == [i in preempted for i in range(len(PROMPTS))]
    assert sum(step.decode_tokens for step in seen.steps) <= sum(n - 1 for n in OUTPUTS)
    assert all(check["passed"] for check in check_pass(tmp_path, complete=True).values())


def test_cache_use_is_that_of_the_blocks_in_use() -> None:
    seen = Steps()
    _, engine = opened(FakeEngine())
    replay(engine, schedule(), [seen])
    for step in seen.steps:
        least = sum(one.past_tokens + one.query_tokens for one in step.sequences)
        assert step.kv_tokens_used is not None and step.kv_tokens_used % fake_vllm.BLOCK == 0
        assert step.kv_tokens_used >= least
    assert engine.facts.kv_tokens == 64 * fake_vllm.BLOCK


@pytest.mark.parametrize("ranks", [1, 2])
def test_rows_are_counted_for_the_requests_that_they_belong_to(tmp_path: Path, ranks: int) -> None:
    fake, listeners = FakeEngine(), ListenerSet()
    found, engine = opened(fake, listeners, ranks=ranks)
    assert ("memory" in found.lacks) == (ranks == 2)
    tap = ShownTap(found.shown, torch.device("cpu"), ("a", "b"), save_picks=True)
    listeners.listeners.append(tap)
    recorder = RoutingRecorder(tmp_path, tap, window_steps=1000, step_counts_cap_bytes=2**20)
    seen = Steps()
    replay(engine, schedule(), [seen, recorder, RequestRecorder(tmp_path), StepRecorder(tmp_path)])
    routing = Routing.load(tmp_path / "routing.npz")
    assert routing.layer_names == tuple(f"layers.{i}.mlp" for i in range(NUM_LAYERS))
    tokens_PC = routing.real_tokens_WPC.sum(axis=0)
    assert tokens_PC.tolist() == [[11 + 5, 40 + 23], [5 + 8, 2 + 3]]
    assert (routing.counts_WPCLE.sum(axis=(0, 4)) == TOP_K * tokens_PC[:, :, None]).all()
    assert all(check["passed"] for check in check_pass(tmp_path, complete=True).values())
    # The first layer's picks are arithmetic of token and position, so classes can be counted by hand.
    wanted = np.zeros((2, NUM_EXPERTS), dtype=int)
    sent = schedule()
    assert sent.output_ids is not None
    for request, (prompt, output) in enumerate(zip(sent.input_ids, sent.output_ids, strict=True)):
        for position, token in enumerate([*prompt.tolist(), *output.tolist()][:-1]):
            first = (17 * token + 5 * position) % NUM_EXPERTS
            for j in range(TOP_K):
                wanted[request % 2, (first + 3 * j) % NUM_EXPERTS] += 1
    assert (routing.counts_WPCLE[:, :, :, 0].sum(axis=(0, 1)) == wanted).all()


def checked(fake: FakeEngine, spoil: Any = None, *, ranks: int = 1) -> Any:
    listeners = ListenerSet()
    found, engine = opened(fake, listeners, ranks=ranks)
    tap = ShownTap(found.shown, torch.device("cpu"))
    listeners.listeners.append(tap)
    if spoil is not None:
        spoil(found.shown)
    return check_shown(tap, engine, lambda recorders: replay(engine, schedule(), recorders))


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_check_passes_where_picks_are_what_is_executed(ranks: int) -> None:
    result = checked(FakeEngine(), ranks=ranks)
    assert result.passed
    assert [(one.name, one.passed) for one in result.checks] == [
        ("fires_once", True), ("ids_in_range", True), ("counts_are_tokens_times_k", True), ("executed_is_routed", True)
    ]  # fmt: skip


def test_the_check_finds_a_layer_that_is_silent() -> None:
    def silent(shown: Any) -> None:
        take = shown.take
        shown.take = lambda num: [take(num)[0], None, None]

    result = checked(FakeEngine(), silent)
    failed = {one.name for one in result.checks if one.passed is False}
    assert not result.passed and {"fires_once", "counts_are_tokens_times_k"} <= failed


def test_the_check_finds_picks_that_are_not_what_is_executed() -> None:
    def moves_nothing(shown: Any) -> None:
        shown.move = lambda by: True

    result = checked(FakeEngine(), moves_nothing)
    assert [one.name for one in result.checks if one.passed is False] == ["executed_is_routed"]


def test_an_output_that_is_not_the_forced_one_is_an_error() -> None:
    fake = FakeEngine()
    fake.spoil = True
    with pytest.raises(EngineError, match="is not the one that its steps told"):
        replay(opened(fake)[1], schedule(), [])


def test_a_batch_that_is_not_what_was_scheduled_is_an_error() -> None:
    fake = FakeEngine()
    _, engine = opened(fake)
    inner = fake.runner.execute

    def loses(output: Any) -> dict[str, int]:
        found = inner(output)
        del fake.runner.input_batch.req_ids[0]
        return found

    fake.runner.execute = loses  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="vLLM's batch holds"):
        replay(engine, schedule(), [])


def test_outputs_may_end_early_at_the_checkpoints_ids() -> None:
    seen = Steps()
    free = schedule(forced=False)
    _, engine = opened(FakeEngine())
    replay(engine, free, [seen])
    second = [one.token for step in seen.steps for one in step.sequences if one.request == 2 and one.token is not None]
    stop = second[1]
    found = deployment(
        ModelSpec(name="moe", path="moe"), VllmSettings(), fake_vllm.inside(FakeEngine()),
        torch.device("cpu"), version="0.32.0", launch={}, memory=Watch(torch.device("cpu")), stop_ids=[stop],
    )  # fmt: skip
    engine = found.build(VllmSettings(), ListenerSet())  # type: ignore[assignment]
    sent = list(free.requests())[2]
    engine.submit(
        Request(
            index=2, request_id="2", arrival_s=0.0, input_ids=sent.input_ids, output_tokens=9, output_ids=None,
            request_class="a", stop_at_eos=True,
        )
    )  # fmt: skip
    steps = [step for step in iter(engine.step, None) if step is not None]
    tokens = [one.token for step in steps for one in step.sequences if one.token is not None]
    assert tokens == second[: second.index(stop) + 1]
    assert found.launch["end_ids"] == (stop,)


def test_a_reset_forgets_requests_on_both_sides() -> None:
    fake = FakeEngine()
    _, engine = opened(fake)
    for request in schedule().requests():
        engine.submit(request)
    engine.step()
    engine.reset()
    assert engine.step() is None and not fake.scheduler.running and not fake.scheduler.waiting
    assert replay(engine, schedule(), []).finished == len(PROMPTS)


def test_a_request_that_can_never_run_is_refused() -> None:
    _, engine = opened(FakeEngine(num_blocks=9))
    with pytest.raises(EngineError, match="43 tokens of prompt and output, 32 fit"):
        engine.submit(list(schedule().requests())[1])


def test_forcing_keeps_rows_apart_and_uses_them_again() -> None:
    forcing = Forcing()
    for number in range(3 * FIRST_ROWS):
        forcing.add(str(number), 10, [number, number + 1])
    sampled = torch.full((3, 1), 7, dtype=torch.int32)
    forcing.write_over(sampled, ["150", "free", "2"], np.array([11, 11, 10, 0]))
    assert sampled[:, 0].tolist() == [151, 7, 2]
    assert dict(forcing.chosen) == {"150": 7, "free": 7, "2": 7}
    forcing.forget("2")
    forcing.add("new", 4, list(range(500)))
    sampled = torch.full((2, 1), 7, dtype=torch.int32)
    forcing.write_over(sampled, ["new", "150"], np.array([4 + 499, 10]))
    assert sampled[:, 0].tolist() == [499, 150]


def test_the_operation_stays_in_a_compiled_graph() -> None:
    kept, router = Kept(), router_class()
    library = define(kept, "moeprof_compiled::expert_ids")
    wrap(router, kept, "moeprof_compiled::expert_ids")
    layers = [router(TOP_K, NUM_EXPERTS), router(TOP_K, NUM_EXPERTS)]

    def forward(state: torch.Tensor) -> torch.Tensor:
        for layer in layers:
            _, ids = layer._select_experts(state)
            state = 3 * state + ids.sum(1)
        return state

    compiled = torch.compile(forward, backend="aot_eager", fullgraph=True, dynamic=True)
    state = torch.arange(6)
    assert compiled(state).tolist() == forward(state).tolist()
    kept.watched = True
    kept.take(0)
    for num in (6, 300, 4):
        compiled(torch.arange(num))
        first, second = kept.take(num)
        assert first is not None and second is not None
        assert first[:, 0].tolist() == [i % NUM_EXPERTS for i in range(num)]
    compiled(state)
    compiled(state)
    assert kept.take(6) == [None, None], "two forwards since the last look are nobody's"
    compiled(state)
    assert kept.take(5) == [None, None], "another number of tokens is another forward"
    kept.watched = False
    compiled(state)
    assert kept.calls == [0, 0]
    kept.moved_by = 1
    assert compiled(state).tolist() != forward(torch.arange(6) * 0).tolist()
    assert library is not None


def test_a_dense_model_has_no_router_and_lacks_none() -> None:
    found, _ = opened(FakeEngine(moe=False))
    assert found.shown is None
    assert set(found.lacks) == {"module"}
