"""Two ranks on this CPU share a tiny mixture of experts: the same tokens and counts as one rank, and no hang."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moeprof.capture.engines import named
from moeprof.capture.instrumented import InstrumentedModel
from moeprof.capture.measure.quality import output_bits
from moeprof.capture.parallel import group as groups
from moeprof.capture.parallel.rendezvous import Rendezvous
from moeprof.capture.protocol import Order, Report, WorkerPlan
from moeprof.capture.replay import replay
from moeprof.capture.run import experiment
from moeprof.capture.run.ranks import Followers, ParallelWorker, opener_of
from moeprof.core.errors import EngineError
from moeprof.core.trace import Schedule
from moeprof.core.workload.engine import Parallel, TransformersSettings
from moeprof.core.workload.models import ModelSpec
from tests.helpers.plans import solo_plan
from tests.helpers.tiny_run import SHAPE, SHORT, run_main, write_tokenizer

CPU = torch.device("cpu")
NOTICED_S = 15.0  # two slow cores; without anyone looking it would be half an hour


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of experts that two ranks can share: two key/value heads, eight experts."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    shape = SHAPE | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    config = Qwen3MoeConfig(
        **shape, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=16, intermediate_size=32
    )
    path = tmp_path_factory.mktemp("ranks")
    Qwen3MoeForCausalLM(config).save_pretrained(path / "moe")
    write_tokenizer(path / "moe" / "tokenizer.json")
    return path


def a_schedule(path: Path) -> Schedule:
    """Three requests at once, six free tokens each; 16 tokens of the first prompt begin the others too."""
    schedule = Schedule(
        pattern="offline",
        concurrency=None,
        outputs="forced_length",
        request_id=("a", "b", "c"),
        arrival_s=np.zeros(3),
        input_ids=tuple(np.arange(3, 20 + 2 * i, dtype=np.int32) for i in range(3)),
        output_tokens=np.full(3, 6, dtype=np.int64),
        output_ids=None,
        request_class=("all",) * 3,
        session=("",) * 3,
        prefix_blocks=((),) * 3,
        num_characters=np.full(3, -1, dtype=np.int64),
    )
    schedule.save(path)
    return schedule


def a_plan(folder: Path, parallel: Parallel | None) -> WorkerPlan:
    engine = TransformersSettings(
        kind="transformers", kv_tokens=512, experts="grouped_mm", parallel=parallel
    )  # with the kernel of ranks
    spec = ModelSpec(name="moe", path=str(folder / "moe"), weights="random")
    return replace(solo_plan(spec, folder, engine), opener=opener_of(engine))


class Tokens:
    """Keeps what each request was given."""

    def __init__(self) -> None:
        self.of: dict[int, list[int | None]] = {}

    def on_start(self, schedule: Schedule, origin_s: float) -> None: ...

    def on_send(self, request: Any, sent_s: float, slack_s: float, refused: str | None) -> None: ...

    def on_step(self, step: Any, num_waiting: int) -> None:
        for sequence in step.sequences:
            self.of.setdefault(sequence.request, []).append(sequence.token)

    def on_end(self, end_s: float) -> None: ...


def told(plan: WorkerPlan, schedule: Schedule) -> dict[str, Any]:
    """What one pass and one direct forward of a model say; the engine stays open."""
    opened = named(plan.opener)(plan.model, plan.engine, CPU)
    rig, tokens = InstrumentedModel(opened, plan, lambda: False), Tokens()
    assert rig.routing.tap is not None
    with rig.routing.watching(rig.listeners):
        replay(rig.engine, schedule, [tokens])
        blocks = rig.routing.tap.collect_blocks(everything=True)
    rig.engine.reset()
    check = rig.self_check(schedule)
    with rig.without_engine():
        bits = output_bits(opened.module, [5, 6, 7], [8, 9])
    counts_LE = sum(block.counts_SLGE.sum(axis=(0, 2)) for block in blocks)
    return {"tokens": tokens.of, "counts": counts_LE, "bits": bits, "check": check["passed"], "model": rig}


@pytest.fixture
def as_rank_0(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[WorkerPlan], Followers]]:
    """Makes this process rank 0 and starts the others."""
    started: list[Followers] = []

    def start(plan: WorkerPlan) -> Followers:
        meeting = Rendezvous.fresh(2)
        for name, value in meeting.variables(0).items():
            monkeypatch.setenv(name, value)
        started.append(Followers(plan, meeting))
        return started[-1]

    yield start
    if groups._joined is not None:
        groups._joined.leave()
        groups._joined = None
    for followers in started:
        followers.end(0.0)


def test_two_ranks_with_a_tensor_plan_are_the_model_of_one_rank_until_one_of_them_dies(
    folder: Path, as_rank_0: Callable[[WorkerPlan], Followers]
) -> None:
    schedule = a_schedule(folder / "schedule.parquet")
    plan = a_plan(folder, Parallel(plan="tensor", ranks=2))
    plan = replace(plan, engine=replace(plan.engine, prefix_cache=True))
    followers = as_rank_0(plan)
    own = replace(plan.engine, parallel=None)
    alone = told(replace(plan, engine=own, opener=opener_of(own)), schedule)
    shared = told(plan, schedule)
    facts = shared["model"].engine.facts
    assert (facts.ranks, facts.parallel, facts.run_ahead) == (2, "tensor", False)
    assert facts.kv_bytes == alone["model"].engine.facts.kv_bytes  # each rank holds one of the two heads
    assert shared["tokens"] == alone["tokens"]
    assert np.array_equal(shared["counts"], alone["counts"])
    assert alone["counts"].sum() == (17 + 3 + 5 + 3 * 5) * 2 * 2  # prompts of 17, 19, 21; outputs; top-2; 2 layers
    assert shared["bits"] == pytest.approx(alone["bits"], rel=1e-5)
    assert shared["check"] and alone["check"]
    assert followers.failure() is None

    followers._processes[1].kill()
    followers._processes[1].join()
    failure = followers.failure()
    assert failure is not None and "rank 1 died (exit code -9)" in str(failure) and failure.reason == "process_died"
    with pytest.raises(RuntimeError, match="onnection"):  # and not a wait of half an hour
        shared["model"].engine.reset()


class Killing(ParallelWorker):
    """A worker whose rank 1 dies when the second round begins."""

    killed_s: list[float]

    def do(self, order: Order, hear: Callable[[Report], None], stop_asked: Callable[[], bool]) -> dict[str, Any]:
        if order.name == "round-1":
            self._followers._processes[1].kill()
            Killing.killed_s.append(time.monotonic())
        return super().do(order, hear, stop_asked)


def test_a_run_on_two_ranks_with_an_expert_plan_counts_as_one_rank_does_and_a_dead_rank_is_a_marked_record(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Killing.killed_s = []
    monkeypatch.setattr(experiment, "start_worker", Killing)
    workload = folder / "expert.yaml"
    text = SHORT.format(rate=100, num_requests=6, models="{name: moe, path: ./moe}").replace("rounds: 1", "rounds: 2")
    text = text.replace("peaks: false", "peaks: false, quality: false, forced_picks: false")
    workload.write_text(text + "engine: {parallel: {plan: expert, ranks: 2}}\n", encoding="utf-8")
    ran = run_main(["run", workload, "--output-dir", tmp_path / "run", "--write", "md", "--quiet"])
    assert Killing.killed_s, ran.stderr
    noticed_s = time.monotonic() - Killing.killed_s[0]

    record = json.loads((tmp_path / "run/experiment.json").read_text(encoding="utf-8"))
    assert ran.code == 1 and record["status"] == "failed"
    assert "rank 1 died" in json.dumps(record) and "rank 1 died" in ran.stderr
    assert noticed_s < NOTICED_S

    launch = json.loads((tmp_path / "run/moe/launch-0/launch.json").read_text(encoding="utf-8"))
    assert (launch["engine"]["ranks"], launch["engine"]["parallel"]) == (2, "expert")
    assert launch["self_check"]["passed"]
    each = [part["host_rss_peak_bytes"] for part in launch["ranks"]["memory_of_each"]]
    assert len(each) == 2 and launch["memory"]["host_rss_peak_bytes"] == sum(each)
    facts = json.loads((tmp_path / "run/moe/model.json").read_text(encoding="utf-8"))
    assert facts["params_by_group"]["routed_experts"] == 2 * 8 * 3 * 32 * 16  # of all ranks

    info = json.loads((tmp_path / "run/moe/launch-0/round-0/pass.json").read_text(encoding="utf-8"))
    assert info["status"] == "done" and all(check["passed"] for check in info["invariants"].values())
    with np.load(tmp_path / "run/moe/launch-0/round-0/routing.npz") as arrays:
        counts_LE = arrays["counts_WPCLE"].sum(axis=(0, 1, 2))
    assert np.array_equal(counts_LE, counts_of_one_rank(folder, Schedule.load(tmp_path / "run/schedule.parquet")))
    assert info["ranks"] == {"gathered": 2, "picks": [int(counts_LE[:, :4].sum()), int(counts_LE[:, 4:].sum())]}


def counts_of_one_rank(folder: Path, schedule: Schedule) -> Any:
    """Picks by layer and expert of the checkpoint in this process, for the same forced text."""
    plan = a_plan(folder, None)
    lane = replace(plan.lanes[0], model=replace(plan.model, weights="checkpoint"))
    plan = replace(plan, lanes=(lane,), solo=replace(plan.alone, class_names=schedule.classes))
    return told(plan, schedule)["counts"]


def test_ranks_that_chose_other_tokens_end_the_run() -> None:
    from moeprof.capture.parallel.engine import ParallelEngine

    class Group:
        counts_of_followers: tuple[()] = ()

        def tell(self, *command: Any) -> None: ...

        def gather(self, value: Any) -> list[Any]:
            return [value, (7, None)] if isinstance(value, tuple) else [value, value]

        def hold(self) -> Any:
            return open(os.devnull)

    class Inner:
        facts = told_facts()

        def reset(self) -> None: ...

    stub: Any = Group()
    inner: Any = Inner()
    engine = ParallelEngine(inner, stub, Parallel(plan="tensor", ranks=2), 1)
    with pytest.raises(EngineError, match="rank 1 formed other batches or chose other tokens than rank 0"):
        engine.reset()


def told_facts() -> Any:
    from moeprof.capture.engines.base import EngineFacts

    return EngineFacts(
        kind="transformers", batching="continuous", attention="a", experts=None, dtype="float32", device="cpu",
        kv_tokens=64, kv_bytes=10, max_batch_tokens=64, max_sequence_tokens=64,
    )  # fmt: skip
