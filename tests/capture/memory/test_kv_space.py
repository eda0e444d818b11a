"""KV space, out of memory and fragmentation, against an allocator whose numbers the test sets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from moeprof.capture.coverage import tiny_config, tiny_model
from moeprof.capture.memory import measure
from moeprof.capture.memory.kv_space import activation_peak, fitting_space, kv_space, plain_step
from moeprof.capture.memory.out_of_memory import as_out_of_memory, doing
from moeprof.capture.memory.shape import ModelMemory
from moeprof.capture.protocol import WorkerPlan
from moeprof.core.errors import OutOfMemoryError
from moeprof.core.workload.engine import TransformersSettings
from moeprof.core.workload.models import ModelSpec
from tests.helpers.fake_cuda import GIB, FakeCuda
from tests.helpers.plans import solo_plan

torch.set_num_threads(1)
CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
SETTINGS = TransformersSettings(kv_tokens=1000, max_batch_tokens=64, memory_margin_ratio=0.05)
NEEDS = ModelMemory(
    weights_bytes=90 * GIB, load_extra_bytes=0, kv_bytes_per_token=GIB // 100, activation_bytes=7, base_bytes=0,
    workspace_bytes=GIB,
)  # fmt: skip


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda().install(monkeypatch)


# -- the activation peak ---------------------------------------------------------------------------------------------


def test_the_peak_of_a_step_is_what_the_allocator_saw_above_the_weights(cuda: FakeCuda) -> None:
    cuda.hold(90 * GIB, 91 * GIB)

    def step() -> None:
        cuda.hold(94 * GIB, 96 * GIB)
        cuda.hold(90 * GIB)

    peak = activation_peak(CUDA, step, estimate_bytes=1)
    assert peak == (4 * GIB, "measured in one step")
    assert cuda.emptied == 1  # its blocks are given back before the cache is allocated


def test_a_step_that_cannot_run_leaves_the_estimate_and_says_why(cuda: FakeCuda) -> None:
    def step() -> None:
        raise NotImplementedError("eager attention holds 8192 x 8192 scores per head")

    peak = activation_peak(CUDA, step, estimate_bytes=5)
    assert peak[0] == 5
    assert peak[1].startswith("estimated from the config: a plain step failed (NotImplementedError: eager attention")


def test_a_step_that_does_not_fit_names_the_setting(cuda: FakeCuda) -> None:
    def step() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(
        OutOfMemoryError, match=r"beside the weights \(about 2 GiB was expected\): lower engine\.max_ba"
    ):
        activation_peak(CUDA, step, estimate_bytes=2 * GIB)


def test_on_a_cpu_the_peak_is_an_estimate() -> None:
    peak = activation_peak(CPU, lambda: None, estimate_bytes=11)
    assert peak == (11, "estimated from the config: no allocator on a CPU")


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "deepseek_v2"])
def test_the_plain_step_runs_so_many_tokens_and_few_logits(model_type: str) -> None:
    model: Any = tiny_model(model_type)
    seen: list[tuple[int, ...]] = []
    model.lm_head.register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape)))
    plain_step(model, 64, 8)()
    plain_step(model, 64, None)()
    assert seen == [(1, 8, 128), (1, 64, 128)]


def test_a_long_step_of_eager_attention_is_not_tried() -> None:
    model: Any = tiny_model("gpt_oss")
    model.config._attn_implementation = "eager"
    plain_step(model, 100, 8)()
    with pytest.raises(NotImplementedError, match="eager attention holds 8192 x 8192"):
        plain_step(model, 8192, 8)()


# -- the space -------------------------------------------------------------------------------------------------------


def space(**changes: Any) -> Any:
    peak = activation_peak(CPU, lambda: None, estimate_bytes=4 * GIB)
    given: dict[str, Any] = {
        "peak": peak,
        "bytes_per_token": GIB // 100,
        "free_bytes": 50 * GIB,
        "total_bytes": 140 * GIB,
    } | changes
    return fitting_space("moe", NEEDS, given.pop("settings", SETTINGS), "cuda:0", **given)


def test_the_space_is_what_is_left_after_activations_workspace_and_margin() -> None:
    found = space()
    # 50 - 4 - 1 - 0.05 * 140 = 38 GiB; 0.01 GiB a token
    assert (found.kv_tokens, found.most_kv_tokens) == (1000, 3800 // 16 * 16)
    assert found.kv_bytes == 1000 * (GIB // 100)
    assert (found.margin_bytes, found.workspace_bytes, found.activation_peak_bytes) == (7 * GIB, GIB, 4 * GIB)
    assert found.to_json()["reason"].startswith("activation peak estimated")


def test_a_space_that_does_not_fit_is_an_error_before_anything_is_allocated() -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        space(settings=replace(SETTINGS, kv_tokens=5000))
    said = str(caught.value)
    assert "the KV cache of 5,000 tokens needs 50 GiB, but 38 GiB of 140 GiB is left on cuda:0" in said
    assert "50 GiB free beside 90 GiB of weights, less 4 GiB of activations" in said
    assert "1 GiB of workspace and 7 GiB of margin" in said
    assert said.endswith("lower engine.kv_tokens from 5000 to 3792")
    assert space(settings=replace(SETTINGS, kv_tokens=3792)).kv_tokens == 3792


def test_a_cache_of_another_kind_only_needs_its_step_to_fit() -> None:
    found = space(bytes_per_token=None)
    assert found.kv_bytes is None and found.most_kv_tokens is None
    with pytest.raises(OutOfMemoryError, match="leave no room for a step"):
        space(bytes_per_token=None, free_bytes=5 * GIB)


def test_a_loaded_model_is_measured_and_checked_in_one_call(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny_model("mixtral")
    spec, config = ModelSpec(name="moe", path="org/m"), tiny_config("mixtral").to_dict()
    found = kv_space(model, spec, config, SETTINGS, CPU)
    assert found.reason.endswith("no allocator on a CPU") and found.free_bytes > 0
    # 3 layers, 2 heads of keys, 8 + 8 wide, 4 bytes
    assert found.kv_bytes == 1000 * 3 * 2 * 16 * 4
    cuda.hold(90 * GIB, 90 * GIB)
    on_card = kv_space(model, spec, config, SETTINGS, CUDA, bytes_per_token=1000, run=lambda: cuda.hold(91 * GIB))
    assert (on_card.activation_peak_bytes, on_card.kv_bytes) == (GIB, 1_000_000)
    assert on_card.reason == "activation peak measured in one step"


# -- out of memory in the middle -------------------------------------------------------------------------------------


def plan(device: str = "cuda:0", **engine: Any) -> WorkerPlan:
    return solo_plan(ModelSpec(name="moe", path="org/m"), Path(), replace(SETTINGS, **engine), device=device)


TORCH_SAYS = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 139.72 GiB of which 1.00 GiB is "
    "free. Including non-PyTorch memory, this process has 138.00 GiB memory in use."
)


def said(phase: str, error: BaseException, planned: WorkerPlan, **more: Any) -> str:
    with pytest.raises(OutOfMemoryError) as caught, as_out_of_memory(planned):
        doing(phase, **more)
        raise error
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_error_in_the_middle_tells_the_phase_the_allocator_and_values_that_help(cuda: FakeCuda) -> None:
    cuda.hold(120 * GIB, 125 * GIB)
    cuda.blocks = [{"state": "inactive", "size": GIB}, {"state": "active_allocated", "size": 9 * GIB}]
    text = said("round-0", torch.OutOfMemoryError(TORCH_SAYS), plan(), kv_bytes_per_token=GIB // 100)
    assert text.startswith("model moe: out of memory on cuda:0 (round-0): asked for 2 GiB, 1 GiB was free; ")
    assert "holds 120 GiB in tensors of 125 GiB reserved (4.0% unused, largest free piece 1 GiB)" in text
    # 1 GiB short, a tenth more, 0.01 GiB a token: 110 tokens fewer, in pages of 16
    assert text.endswith("lower engine.kv_tokens from 1000 to 880, or engine.max_batch_tokens from 64 to 32")


def test_memory_in_pieces_is_named(cuda: FakeCuda) -> None:
    cuda.hold(90 * GIB, 120 * GIB)
    text = said("round-0", torch.OutOfMemoryError(TORCH_SAYS), plan())
    assert "(25.0% unused" in text and "PYTORCH_ALLOC_CONF=expandable_segments:True" in text
    assert "lower engine.kv_tokens from 1000 to 496" in text  # half of it, where bytes per token are unknown


def test_each_phase_has_its_own_advice(cuda: FakeCuda) -> None:
    loading = said("loading", torch.OutOfMemoryError(TORCH_SAYS), plan())
    assert "fewer layers of random weights" in loading and "kv_tokens" not in loading
    capturing = said("capturing decode steps", torch.OutOfMemoryError(TORCH_SAYS), plan())
    assert "lower engine.max_sequences from 256 to 128, or set engine.decode_graphs: off" in capturing


def test_a_host_without_memory_is_told_without_an_allocator() -> None:
    text = said("starting", MemoryError(), plan("cpu"))
    assert text.startswith("model moe: out of memory on cpu (starting): the allocator gave up; lower engine.kv_tokens")


def test_an_allocator_that_does_not_answer_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device: Any = None) -> Any:
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(torch.cuda, "memory_stats", broken)
    text = said("round-0", torch.OutOfMemoryError(TORCH_SAYS), plan())
    assert "the allocator holds" not in text and "lower engine.kv_tokens" in text


# -- what the record keeps -------------------------------------------------------------------------------------------


def test_fragmentation_is_of_the_moment_of_the_largest_allocation(cuda: FakeCuda) -> None:
    watch = measure.Watch(CUDA)
    cuda.hold(90, 100)
    watch.loaded()
    watch.engine_ready(10)
    cuda.hold(140, 200)  # warming up reserves
    watch.pass_started()
    cuda.hold(150)
    cuda.hold(90)
    ended = watch.pass_ended()
    assert (ended["peak_allocated_bytes"], ended["peak_reserved_bytes"], ended["reserved_changed"]) == (150, 200, False)
    summary = watch.summary()
    assert (summary["peak_allocated_bytes"], summary["reserved_at_peak_bytes"]) == (150, 200)
    assert summary["reserved_at_peak_is_exact"] and summary["activation_peak_bytes"] == 60
    assert summary["load_peak_bytes"] == 90 and summary["kv_cache_bytes"] == 10


def test_reserved_memory_that_changed_is_said_to_be_of_another_moment(cuda: FakeCuda) -> None:
    watch = measure.Watch(CUDA)
    watch.engine_ready(None)
    cuda.hold(150, 160)
    cuda.hold(90, 300)
    summary = watch.summary()
    assert not summary["reserved_at_peak_is_exact"] and summary["peak_reserved_bytes"] == 300


def test_a_pass_does_not_show_the_peak_of_the_one_before_and_the_run_keeps_the_largest(cuda: FakeCuda) -> None:
    watch = measure.Watch(CUDA)
    watch.engine_ready(None)
    cuda.hold(100, 200)
    cuda.hold(50)
    assert watch.pass_ended()["peak_allocated_bytes"] == 100
    cuda.hold(70)
    assert watch.pass_ended()["peak_allocated_bytes"] == 70
    assert watch.summary()["peak_allocated_bytes"] == 100
    assert watch.allocator() == {"allocated_bytes": 70, "reserved_bytes": 200}
