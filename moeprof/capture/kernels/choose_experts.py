"""Which experts implementation a model runs with: our kernels against transformers' grouped_mm, on its own experts."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from moeprof.capture.kernels.candidates import EXPERTS
from moeprof.capture.kernels.cases import experts_cases
from moeprof.capture.kernels.choose import Candidate, choose, in_words
from moeprof.capture.kernels.cpu.experts import NAME as CPU_NAME
from moeprof.capture.kernels.experts import (
    KERNEL,
    MAX_PICKS,
    NAME,
    TOKENS,
    ExpertsKernel,
    decode_experts,
    is_experts,
    run_by,
)
from moeprof.capture.kernels.trials import Stopwatch, Trial
from moeprof.capture.models.moe_layers import find_moe_layers

STEPS = (1, 8, 64)  # tokens of the decode steps that are tried, besides the largest
GROUPED = EXPERTS[0].name


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenExperts:
    """Which experts implementation runs when.

    Attributes:
        decode: of steps of up to ``decode_tokens`` tokens; the model's own where no kernel is taken; None when dense.
        prefill: of larger steps; None when dense.
        reason: for the record.
        decode_tokens: largest step that takes the kernel, 0 for none.
        kernel: of decode steps, or None.
    """

    decode: str | None
    prefill: str | None
    reason: str
    decode_tokens: int = 0
    kernel: ExpertsKernel | None = None


def choose_experts(
    model: Any,
    *,
    max_tokens: int,
    candidates: Sequence[Candidate[Sequence[nn.Module], ExpertsKernel]] = EXPERTS,
    steps: Sequence[int] = STEPS,
    stopwatch: Stopwatch | None = None,
) -> ChosenExperts:
    """Try, and say; changes nothing (see :func:`apply_experts`).

    A kernel is taken up to the largest tried step at and below which one of ours always won.

    Args:
        model: a loaded model on its device.
        max_tokens: largest decode step that will be run.
        candidates: others than the usual ones (tests); the first is the plain form.
        steps: tokens of the steps to try; the largest that ours could run is tried too.
        stopwatch: another than the device's (tests).
    """
    layers = [module for module in model.modules() if is_experts(module)]
    own = getattr(model.config, "_experts_implementation", None)
    kept = functools.partial(
        ChosenExperts, decode=GROUPED if own == NAME else own, prefill=GROUPED if own == NAME else own
    )
    if not layers:
        return kept(reason="no experts behind transformers' interface")
    if own not in (None, GROUPED, NAME):
        return kept(reason=f"experts: {own} is set")
    device, top_k = layers[0].down_proj.device, _top_k(model, layers)
    usual = [one for one in candidates if one.device in (None, device.type)]
    largest = min(max_tokens, MAX_PICKS // top_k)
    trials: list[Trial] = []
    won: list[tuple[int, ExpertsKernel]] = []
    for size in sorted({*(size for size in steps if size < largest), largest}):
        cases = functools.partial(experts_cases, size=size, top_k=top_k)
        choice = choose(usual, [layers], cases, device, default=candidates[0], stopwatch=stopwatch)
        trials += choice.trials
        if choice.name == GROUPED:
            break
        won.append((size, choice.kernel))
    if not won:
        return kept(reason=in_words(trials))
    size, kernel = won[-1]
    return ChosenExperts(decode=NAME, prefill=GROUPED, reason=in_words(trials), decode_tokens=size, kernel=kernel)


def apply_experts(model: Any, chosen: ChosenExperts) -> None:
    """Make the model run what was chosen; its own implementation stays where no kernel was taken."""
    if chosen.kernel is None:
        for module in model.modules():
            if hasattr(module, TOKENS):
                setattr(module, TOKENS, 0)  # taken once, and not when it was tried again
        return
    for module in filter(is_experts, model.modules()):
        setattr(module, TOKENS, chosen.decode_tokens)
        setattr(module, KERNEL, chosen.kernel)
    # torch.compile goes round it: it cannot look into programs that are launched by hand.
    disable: Any = torch.compiler.disable
    run_by(model, NAME, disable(decode_experts))


def use_cpu_experts(model: Any) -> str | None:
    """Switch all experts of the model to the CPU kernel if it agrees; the reason why they stay as they are, or None."""
    layers = [module for module in model.modules() if type(module).__name__.endswith("Experts")]
    if not layers:
        return "no routed experts"
    if getattr(model.config, "_experts_implementation", None) == CPU_NAME:
        return None
    wanted = [one for one in EXPERTS if one.name == CPU_NAME]
    cases = functools.partial(experts_cases, size=8, top_k=_top_k(model, layers), is_timed=False)
    chosen = choose(wanted, [layers], cases, torch.device("cpu"), default=EXPERTS[0])
    if chosen.name != CPU_NAME:
        return chosen.trials[0].why_out
    run_by(model, CPU_NAME, chosen.kernel)
    return None


def _top_k(model: Any, layers: Sequence[Any]) -> int:
    """A rank may hold fewer experts than a token picks."""
    return min(find_moe_layers(model)[0].top_k, len(layers[0].down_proj))
