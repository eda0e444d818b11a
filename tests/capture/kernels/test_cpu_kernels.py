"""Our own CPU kernels against plain torch, and what happens where they cannot be had."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention, silu
from transformers import LlamaConfig, LlamaForCausalLM

from moeprof.capture.engines.hf import build_engine
from moeprof.capture.kernels.choose_experts import use_cpu_experts
from moeprof.capture.kernels.cpu import build
from moeprof.capture.kernels.cpu.build import known_dtypes, why_no_kernels
from moeprof.capture.kernels.cpu.experts import NAME, why_no_layer
from moeprof.capture.kernels.modules import Swapped, cpu_kernel_facts
from moeprof.core.errors import UnsupportedModelError
from moeprof.core.trace import Request
from moeprof.core.workload.engine import TransformersSettings
from tests.helpers.plain_experts import make_experts

DTYPES = [torch.float32, torch.bfloat16]
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.fixture
def kernels(request: pytest.FixtureRequest) -> None:
    reason = why_no_kernels()
    if reason is not None:
        pytest.skip(reason)
    params = getattr(request.node, "callspec", None)
    if params is not None and params.params.get("dtype", torch.float32) not in known_dtypes():
        pytest.skip("this CPU has no bf16 instructions")


@pytest.fixture
def asked_anew() -> Iterator[None]:
    build.why_no_kernels.cache_clear()
    yield
    build.why_no_kernels.cache_clear()


def plain(
    x: torch.Tensor, ids: torch.Tensor, factor: torch.Tensor, up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    """Token by token, pick by pick, in float32; picks past the experts count zero."""
    out = torch.zeros(x.shape)
    for t, picks in enumerate(ids.tolist()):
        for k, e in enumerate(picks):
            if e < len(up):
                gate, value = (up[e].float() @ x[t].float()).chunk(2)
                out[t] += factor[t, k] * (down[e].float() @ (silu(gate) * value))
    return out


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_experts", "hidden", "inner", "tokens"), [(4, 64, 128, 1), (3, 34, 70, 7), (2, 96, 64, 150)]
)
def test_experts_agree_with_products_one_by_one(
    dtype: torch.dtype, num_experts: int, hidden: int, inner: int, tokens: int
) -> None:
    torch.manual_seed(0)
    up = (torch.randn(num_experts, 2 * inner, hidden) / hidden**0.5).to(dtype)
    down = (torch.randn(num_experts, hidden, inner) / inner**0.5).to(dtype)
    x, factor = torch.randn(tokens, hidden).to(dtype), torch.rand(tokens, 2)
    ids = torch.stack([torch.randperm(num_experts + 1)[:2] for _ in range(tokens)])  # one id is of no expert
    out = torch.ops.moeprof_cpu.experts(x, ids, factor, up, down)
    expected = plain(x, ids, factor, up, down)
    assert out.dtype == dtype
    assert (out.float() - expected).abs().max() <= ROUNDING[dtype] * expected.abs().max()


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 33])
def test_a_linear_layer_agrees(dtype: torch.dtype, rows: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(1, rows, 48).to(dtype), torch.randn(100, 48).to(dtype)
    expected = x.float() @ weight.float().T
    out = torch.ops.moeprof_cpu.linear(x, weight)
    assert out.shape == (1, rows, 100)
    assert (out.float() - expected).abs().max() <= ROUNDING[dtype] * expected.abs().max()


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_reads_the_pages_of_each_sequence(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    query = torch.randn(3, 6, 32).to(dtype)
    key, value = torch.randn(2, 10 * 16, 2, 32).to(dtype)
    pages, keys = torch.tensor([[7, 0], [1, 9], [4, 2]]), torch.tensor([1, 32, 19])
    out = torch.ops.moeprof_cpu.attention(query, key, value, pages, keys, 32**-0.5, 16)
    for b in range(3):
        slots = (pages[b][:, None] * 16 + torch.arange(16)).flatten()[: keys[b]]
        own = (part[slots].transpose(0, 1).float() for part in (key, value))
        expected = scaled_dot_product_attention(query[b][:, None].float(), *own, enable_gqa=True)[:, 0]
        assert (out[b].float() - expected).abs().max() <= ROUNDING[dtype] * expected.abs().max()


@pytest.mark.usefixtures("asked_anew")
def test_without_a_compiler_the_reason_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert why_no_kernels() == "no C++ compiler (g++, or the one that CXX names)"


@pytest.mark.usefixtures("asked_anew")
def test_a_compiler_that_fails_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert str(why_no_kernels()).startswith("cannot be compiled: ")


def test_experts_of_another_activation_keep_their_kernel() -> None:
    assert (
        why_no_layer(make_experts(2, 8, 8, act="gelu"))
        == "experts are not silu(gate) * up behind transformers' experts interface"
    )


def test_a_dense_model_has_nothing_to_switch() -> None:
    assert use_cpu_experts(nn.Linear(2, 2)) == "no routed experts"


@pytest.mark.usefixtures("kernels")
def test_a_model_says_the_same_tokens_with_our_experts() -> None:
    model, ids = tiny_model(), torch.arange(12)[None]
    with torch.inference_mode():
        before = model(ids).logits
        assert use_cpu_experts(model) is None and model.config._experts_implementation == NAME
        assert torch.allclose(model(ids).logits, before, atol=1e-5)


@pytest.mark.usefixtures("kernels")
def test_a_decode_step_by_our_kernels_says_the_same_tokens() -> None:
    model = tiny_model()
    plain = tokens_of(model, TransformersSettings(batching="continuous", kv_tokens=512))
    ours = tokens_of(model, TransformersSettings(batching="continuous", kv_tokens=512, cpu_kernels="all"))
    assert ours == plain
    assert cpu_kernel_facts(model)["differed"] == 0 and cpu_kernel_facts(model)["agreed"] > 0


def test_a_kernel_that_disagrees_is_not_asked_again() -> None:
    asked: list[int] = []

    def wrong(x: torch.Tensor) -> torch.Tensor:
        asked.append(1)
        return x + 1

    swapped = Swapped(wrong)
    swapped.around(lambda x: x)
    assert [swapped(torch.ones(2)).tolist() for _ in range(3)] == [[1, 1]] * 3
    assert swapped.agrees is False and len(asked) == 1


def test_a_call_that_no_kernel_serves_is_the_modules_own_and_decides_nothing() -> None:
    swapped = Swapped(lambda x: None)
    swapped.around(lambda x: x)
    assert swapped(torch.ones(1)).item() == 1 and swapped.agrees is None


def tiny_model() -> Any:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=64, hidden_size=32, moe_intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, num_experts=4, num_experts_per_tok=2, max_position_embeddings=256,
        decoder_sparse_step=1,
    )  # fmt: skip
    return Qwen3MoeForCausalLM(config).eval()


def tokens_of(model: Any, settings: TransformersSettings) -> list[tuple[int, int | None]]:
    """What the engine says for prompts of several lengths, some of which decode while others are read."""
    engine, said = build_engine(model, settings), []
    for index, length in enumerate((3, 17, 40)):
        ids = [(7 * index + n) % 64 for n in range(length)]
        request = Request(
            index=index, request_id=str(index), arrival_s=0.0, input_ids=ids, output_tokens=20, output_ids=None,
            request_class="all",
        )  # fmt: skip
        engine.submit(request)
    while (step := engine.step()) is not None:
        said += [(sequence.request, sequence.token) for sequence in step.sequences]
    engine.close()
    return said


@pytest.mark.usefixtures("asked_anew")
def test_without_a_compiler_kernels_that_were_asked_for_are_an_error_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UnsupportedModelError, match=r"engine\.cpu_kernels: all cannot be had: no C\+\+ compiler.*off"):
        build_engine(tiny_model(), TransformersSettings(kv_tokens=128, cpu_kernels="all"))


@pytest.mark.usefixtures("kernels")
def test_the_facts_of_an_engine_name_the_kernels_and_a_dense_model_beside_it_may_have_none() -> None:
    engine = build_engine(tiny_model(), TransformersSettings(kv_tokens=128, cpu_kernels="experts"))
    assert engine.facts.cpu_kernels == "experts" and engine.facts.experts == NAME
    engine.close()
    dense = LlamaForCausalLM(
        LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4)
    ).eval()
    engine = build_engine(dense, TransformersSettings(kv_tokens=128, cpu_kernels="experts"))
    assert engine.facts.cpu_kernels == "experts"
    engine.close()


@pytest.mark.usefixtures("kernels")
def test_the_record_counts_modules_that_agreed_with_their_own_code() -> None:
    model = tiny_model()
    engine = build_engine(model, TransformersSettings(kv_tokens=128, cpu_kernels="all"))
    assert set(cpu_kernel_facts(model)) == {"agreed", "differed", "unused"}
    before = cpu_kernel_facts(model)
    engine.submit(
        Request(
            index=0, request_id="0", arrival_s=0.0, input_ids=[3, 4, 5], output_tokens=3, output_ids=None,
            request_class="all",
        )
    )  # fmt: skip
    while engine.step() is not None:
        pass
    after = cpu_kernel_facts(model)
    engine.close()
    # The first forward, of one token, has no decode step: attention blocks are compared later.
    assert 0 < before["agreed"] < after["agreed"] and after["differed"] == 0
    assert sum(before.values()) == sum(after.values())
