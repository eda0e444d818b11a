"""Which kernel is taken: candidates that are slow, wrong, failing or unavailable, on a clock that tests turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from moeprof.capture.engines.paged import build
from moeprof.capture.engines.paged import kernels as paged_kernels
from moeprof.capture.engines.paged.kernels import Kernels, chooser
from moeprof.capture.kernels import choose_experts as experts
from moeprof.capture.kernels.attention import AttentionKind, DecodeShape, torch_decode
from moeprof.capture.kernels.candidates import DECODE, EXPERTS
from moeprof.capture.kernels.cases import decode_cases, prefill_cases
from moeprof.capture.kernels.choose import Candidate, choose
from moeprof.capture.kernels.choose_experts import apply_experts, choose_experts, use_cpu_experts
from moeprof.capture.kernels.experts import NAME, TOKENS
from moeprof.capture.kernels.prefill import plain_prefill, prefill_attention
from moeprof.capture.kernels.trials import HostStopwatch, error_ratio
from moeprof.core.errors import UnsupportedModelError
from moeprof.core.workload.engine import TransformersSettings
from tests.helpers.lane_models import moe_model

CPU = torch.device("cpu")
SHAPE = DecodeShape(page_tokens=4, scale=0.25, window=5)
KIND = AttentionKind(
    dtype=torch.float32, num_heads=4, num_groups=2, head_dim=16, value_dim=16, shape=SHAPE, has_sinks=True
)


class Clock:
    """Time passes only where a kernel says so."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def taking(self, kernel: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.now_s += seconds
            return kernel(*arguments)

        return call


def chosen_of(*candidates: Candidate[Any, Any], clock: Clock | None = None) -> Any:
    cases = partial(decode_cases, device=CPU, max_pages=3)
    return choose(candidates, [KIND], cases, CPU, default=DECODE[0], stopwatch=HostStopwatch(clock or Clock()))


def candidate(name: str, kernel: Callable[..., Any], why_not: str | None = None) -> Candidate[Any, Any]:
    return Candidate(name=name, kernel=kernel, why_not=lambda _: why_not)


def test_the_fastest_kernel_that_agrees_is_taken() -> None:
    clock = Clock()
    slow, fast = clock.taking(torch_decode, 2e-6), clock.taking(torch_decode, 1e-6)
    chosen = chosen_of(candidate("torch", slow), candidate("triton", fast), clock=clock)
    assert (chosen.name, chosen.kernel) == ("triton", fast)
    assert "triton: 1 us batch 1 window 5, 1 us batch 32 window 5; torch: 2 us" in chosen.reason


def test_a_kernel_that_disagrees_is_left_out_with_its_error() -> None:
    clock = Clock()

    def wrong(*arguments: Any) -> torch.Tensor:
        return torch_decode(*arguments) * 1.01

    chosen = chosen_of(candidate("torch", clock.taking(torch_decode, 1.0)), candidate("triton", wrong), clock=clock)
    assert chosen.name == "torch"
    assert "triton: is off by 1.0e-02 at batch 1 window 5, 1e-04 is allowed" in chosen.reason


def test_a_kernel_that_remembers_the_contexts_it_was_captured_with_is_left_out() -> None:
    seen: dict[int, torch.Tensor] = {}

    def baked(*arguments: Any) -> torch.Tensor:
        context = seen.setdefault(arguments[0].shape[0], arguments[4].clone())
        return torch_decode(*arguments[:4], context, *arguments[5:])

    chosen = chosen_of(candidate("torch", torch_decode), candidate("triton", baked))
    assert chosen.name == "torch"
    assert "triton: is off by" in chosen.reason


def test_a_kernel_that_fails_is_left_out_with_its_message() -> None:
    def failing(*_: Any) -> torch.Tensor:
        raise RuntimeError("out of resource:\n shared memory")

    chosen = chosen_of(candidate("torch", torch_decode), candidate("triton", failing))
    assert chosen.name == "torch"
    assert "triton: failed at batch 1 window 5: RuntimeError: out of resource: shared memory" in chosen.reason


def test_without_any_usable_kernel_the_plain_form_is_taken_with_all_reasons() -> None:
    chosen = chosen_of(candidate("varlen", torch_decode, "no block table"))
    assert (chosen.name, chosen.kernel, chosen.reason) == ("torch", torch_decode, "varlen: no block table")


def test_where_only_the_plain_form_can_serve_nothing_runs() -> None:
    def untried(*_: Any) -> torch.Tensor:
        raise AssertionError("there is nothing to choose")

    chosen = chosen_of(candidate("torch", untried), replace(candidate("triton", untried), device="cuda"))
    assert chosen.reason == "triton: needs a CUDA device, this is cpu"


def test_a_kernel_of_wider_tolerance_may_differ_more() -> None:
    def rough(*arguments: Any) -> torch.Tensor:
        return torch_decode(*arguments) * 1.01

    one = candidate("triton", rough)
    assert chosen_of(one).name == "torch"
    assert chosen_of(replace(one, tolerance={torch.float32: 0.02})).name == "triton"


def test_a_kernel_asked_for_by_name_that_disagrees_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = candidate("varlen", lambda *arguments: torch_decode(*arguments) * 2)
    monkeypatch.setattr(paged_kernels, "DECODE", (DECODE[0], wrong))
    with pytest.raises(
        UnsupportedModelError, match=r"decode_attention: varlen cannot be had: varlen: is off by .*auto"
    ):
        paged_kernels.choose_decode("varlen", CPU, (KIND,), 3)


@pytest.mark.parametrize("name", ["triton", "varlen"])
def test_gpu_kernels_cannot_be_asked_for_on_a_cpu(name: str) -> None:
    words = (
        f"engine.decode_attention: {name} cannot be had: {name}: needs a CUDA device, this is cpu; set auto or torch"
    )
    with pytest.raises(UnsupportedModelError, match=words):
        paged_kernels.choose_decode(name, CPU, (KIND,), 3)


@pytest.mark.parametrize("asked", ["auto", "torch"])
def test_a_cpu_has_torchs_attention_without_trials(asked: str) -> None:
    facts = SimpleNamespace(
        dtype=torch.float32, num_heads=4, num_groups=2, key_dim=16, value_dim=16, shape=SHAPE, has_sinks=False
    )
    chosen = chooser(asked, CPU)([facts], 3)  # type: ignore[list-item]
    assert chosen == Kernels(prefill={}) and chosen.prefill_of(facts) is prefill_attention  # type: ignore[arg-type]


def test_an_output_that_is_not_finite_never_agrees() -> None:
    assert error_ratio(torch.tensor([float("nan")]), torch.tensor([1.0])) == float("inf")
    assert error_ratio(torch.tensor([1.5, 4.0]), torch.tensor([1.0, 4.0])) == pytest.approx(0.125)


# -- experts -----------------------------------------------------------------------------------------------------------


def plainly(module: nn.Module, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    from transformers.integrations.moe import grouped_mm_experts_forward

    out: torch.Tensor = grouped_mm_experts_forward(module, hidden, index, weights)
    return out


def rows(grouped: Callable[..., Any], ours: Callable[..., Any]) -> list[Candidate[Any, Any]]:
    return [candidate("grouped_mm", grouped), replace(candidate("triton", ours), variant=" 64x128x3")]


def by_tokens(clock: Clock, *, small_s: float, large_s: float) -> Callable[..., torch.Tensor]:
    """grouped_mm on a clock: 8 tokens and more count as large."""

    def forward(module: nn.Module, hidden: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        clock.now_s += small_s if hidden.shape[0] < 8 else large_s
        return plainly(module, hidden, *rest)

    return forward


def test_our_experts_run_up_to_the_largest_step_that_they_win() -> None:
    clock, model = Clock(), moe_model()
    grouped, ours = by_tokens(clock, small_s=3e-6, large_s=3e-6), by_tokens(clock, small_s=1e-6, large_s=9e-6)
    chosen = choose_experts(
        model, max_tokens=64, candidates=rows(grouped, ours), steps=(1, 4, 8), stopwatch=HostStopwatch(clock)
    )
    assert (chosen.decode, chosen.prefill, chosen.decode_tokens) == (NAME, "grouped_mm", 4)
    assert "grouped_mm: 3 us 1 token; triton 64x128x3: 1 us 1 token" in chosen.reason


def test_our_experts_that_win_every_trial_run_in_every_decode_step() -> None:
    clock, model = Clock(), moe_model()
    grouped, ours = by_tokens(clock, small_s=3e-6, large_s=3e-6), by_tokens(clock, small_s=1e-6, large_s=1e-6)
    chosen = choose_experts(
        model, max_tokens=24, candidates=rows(grouped, ours), steps=(1, 8), stopwatch=HostStopwatch(clock)
    )
    assert chosen.decode_tokens == 24


def test_our_experts_that_disagree_are_not_taken() -> None:
    def wrong(*arguments: Any) -> torch.Tensor:
        return plainly(*arguments) * 1.5

    candidates = rows(plainly, wrong)
    chosen = choose_experts(
        moe_model(), max_tokens=8, candidates=candidates, steps=(1,), stopwatch=HostStopwatch(Clock())
    )
    assert (chosen.decode, chosen.decode_tokens) == ("grouped_mm", 0)
    assert "triton 64x128x3: is off by 5.0e-01 at 1 token" in chosen.reason


def test_kernels_of_another_device_are_not_tried() -> None:
    chosen = choose_experts(moe_model(), max_tokens=8, candidates=[one for one in EXPERTS if one.device != "cpu"])
    assert (chosen.decode, chosen.decode_tokens, chosen.reason) == ("grouped_mm", 0, "")


def test_cpu_experts_that_disagree_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = candidate("moeprof_cpu", lambda *arguments: plainly(*arguments) * 1.5)
    monkeypatch.setattr(experts, "EXPERTS", (EXPERTS[0], wrong))
    model = moe_model()
    assert str(use_cpu_experts(model)).startswith("is off by 5.0e-01 at 8 tokens")
    assert model.config._experts_implementation == "grouped_mm"


def test_experts_on_a_cpu_may_be_chosen_by_trial_too() -> None:
    clock = Clock()
    grouped, ours = clock.taking(plainly, 3e-6), clock.taking(plainly, 1e-6)
    candidates = [candidate("grouped_mm", grouped), replace(candidate("moeprof_cpu", ours), device="cpu")]
    chosen = choose_experts(moe_model(), max_tokens=8, candidates=candidates, stopwatch=HostStopwatch(clock))
    assert (chosen.decode, chosen.decode_tokens, chosen.kernel) == (NAME, 8, ours)


def test_a_model_without_experts_is_left_alone() -> None:
    class Dense(nn.Module):
        config = None

    assert choose_experts(Dense(), max_tokens=8).decode is None


def test_what_was_chosen_is_set_on_every_layer_and_other_steps_keep_grouped_mm() -> None:
    model = moe_model()
    before = model(torch.arange(12)[None]).logits
    clock = Clock()
    grouped, ours = by_tokens(clock, small_s=3e-6, large_s=3e-6), by_tokens(clock, small_s=1e-6, large_s=9e-6)
    chosen = choose_experts(
        model, max_tokens=64, candidates=rows(grouped, ours), steps=(1, 8), stopwatch=HostStopwatch(clock)
    )
    apply_experts(model, chosen)
    assert model.config._experts_implementation == NAME
    assert [m.moeprof_decode_tokens for m in model.modules() if hasattr(m, TOKENS)] == [1, 1]
    assert torch.equal(model(torch.arange(12)[None]).logits, before)


# -- prompts -----------------------------------------------------------------------------------------------------------


def chosen_form(forms: dict[str, Callable[..., Any]], clock: Clock) -> Any:
    rows = [candidate(name, form) for name, form in forms.items()]
    default = candidate("default", prefill_attention)
    cases = partial(prefill_cases, device=CPU)
    return choose(rows, [KIND], cases, CPU, default=default, stopwatch=HostStopwatch(clock))


def test_the_fastest_form_of_attention_for_prompts_is_taken() -> None:
    clock = Clock()
    forms = {"plain": clock.taking(plain_prefill, 9e-6), "varlen": clock.taking(plain_prefill, 1e-6)}
    chosen = chosen_form(forms, clock)
    assert (chosen.name, chosen.kernel) == ("varlen", forms["varlen"])
    assert "varlen: 1 us 512 of 512 tokens, 1 us 128 of 640 tokens" in chosen.reason


def test_prompts_without_a_form_that_agrees_keep_the_default() -> None:
    def wrong(*arguments: Any) -> torch.Tensor:
        return plain_prefill(*arguments) * 2

    chosen = chosen_form({"sdpa": wrong}, Clock())
    assert (chosen.name, chosen.kernel) == ("default", prefill_attention)
    assert chosen.reason.startswith("sdpa: is off by 1.0e+00")


def test_experts_are_tried_again_for_an_engine_with_larger_steps_and_only_then(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def choose(model: Any, *, max_tokens: int) -> Any:
        tried.append(max_tokens)
        return SimpleNamespace(decode="triton", prefill="grouped_mm", reason="it won")

    monkeypatch.setattr(build, "choose_experts", choose)
    monkeypatch.setattr(build, "apply_experts", lambda model, chosen: None)
    model = SimpleNamespace()
    for sequences in (1, 64, 8, 64):
        assert build._experts(model, TransformersSettings(max_sequences=sequences), torch.device("cuda")) is not None
    assert tried == [1, 64]
