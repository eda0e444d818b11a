"""Which experts implementation decode steps run with: our Triton kernel against transformers' grouped_mm, on the model.

Both run on the model's own experts with random tokens, a few layers in turn, so that weights come from memory as in a
decode step and not from the cache of the layer before.

Shape legend: T tokens, k picks of a token, d hidden size.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.integrations.moe import grouped_mm_experts_forward

from moeprof.capture.kernels.trials import Case, Stopwatch, Trial, fastest, give_back, run_trial, stopwatch_of
from moeprof.capture.kernels.triton import experts
from moeprof.capture.models.moe_layers import find_moe_layers

GROUPED = "grouped_mm"
TOKENS = (1, 8, 64)  # sizes of decode steps that are tried, besides the largest
LAYERS = 4  # taken in turn
Forward = Callable[[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenExperts:
    """Which experts implementation runs when.

    Attributes:
        decode: of steps of up to ``decode_tokens`` tokens; the model's own where ours is not taken; None when dense.
        prefill: of larger steps; None when dense.
        decode_tokens: largest step that takes ours, 0 for none.
        tiling: how ours cuts its work.
        reason: for the record.
        trials: all that was tried or left out, smallest steps first.
    """

    decode: str | None
    prefill: str | None
    decode_tokens: int
    tiling: experts.ExpertTiling
    reason: str
    trials: tuple[Trial, ...] = ()


def choose_experts(
    model: Any,
    *,
    max_tokens: int,
    stopwatch: Stopwatch | None = None,
    tokens: Sequence[int] = TOKENS,
    grouped: Forward | None = None,
    ours: Forward | None = None,
) -> ChosenExperts:
    """Try, and say; changes nothing (see :func:`apply_experts`).

    Ours is taken up to the largest tried step at and below which it always won.

    Args:
        model: a loaded model on its device.
        max_tokens: largest decode step that will be run.
        stopwatch: another than the device's (tests).
        tokens: steps to try; the largest that ours could run is tried too.
        grouped: another than transformers' grouped_mm (tests).
        ours: another than the Triton kernel (tests).
    """
    layers = [module for module in model.modules() if experts.is_experts(module)]
    own = getattr(model.config, "_experts_implementation", None)
    kept = functools.partial(_kept, GROUPED if own == experts.NAME else own)
    if not layers:
        return kept("no experts behind transformers' interface")
    if own not in (None, GROUPED, experts.NAME):
        return kept(f"experts: {own} is set")
    device, dtype = layers[0].down_proj.device, layers[0].down_proj.dtype
    if device.type != "cuda" and ours is None:
        return kept(f"our kernel needs a CUDA device, this is {device.type}")
    why_not = next(filter(None, (experts.why_not(layer, dtype) for layer in layers)), None)
    if why_not is not None and ours is None:
        return kept(why_not)
    k = min(find_moe_layers(model)[0].top_k, layers[0].down_proj.shape[0])  # a rank may hold fewer experts than k
    largest = min(max_tokens, experts.MAX_PICKS // k)
    sizes = sorted({*(size for size in tokens if size < largest), largest})
    trials: list[Trial] = []
    won: list[tuple[int, Trial]] = []
    for size in sizes:
        tried = _try_all(layers[:LAYERS], size, k, stopwatch or stopwatch_of(device), grouped or _grouped, ours)
        trials += tried
        best = fastest(tried)
        if best is None or best.name == GROUPED:
            break
        won.append((size, best))
    give_back(device)
    if not won:
        return kept(_said(trials) or "no decode step is small enough", tuple(trials))
    return ChosenExperts(
        decode=experts.NAME,
        prefill=GROUPED,
        decode_tokens=won[-1][0],
        tiling=_tilings()[won[-1][1].name],
        reason=_said(trials),
        trials=tuple(trials),
    )


def apply_experts(model: Any, chosen: ChosenExperts) -> None:
    """Make the model run what was chosen; its own implementation stays where ours was not taken."""
    if chosen.decode != experts.NAME:
        for module in model.modules():
            if hasattr(module, experts.TOKENS):
                setattr(module, experts.TOKENS, 0)  # taken once, and not when it was tried again
        return
    experts.register()
    for module in model.modules():
        if experts.is_experts(module):
            setattr(module, experts.TOKENS, chosen.decode_tokens)
            setattr(module, experts.TILING, chosen.tiling)
    model.set_experts_implementation(experts.NAME)


def _kept(own: str | None, reason: str, trials: tuple[Trial, ...] = ()) -> ChosenExperts:
    tiling = experts.TILINGS[0]
    return ChosenExperts(decode=own, prefill=own, decode_tokens=0, tiling=tiling, reason=reason, trials=trials)


def _said(trials: Sequence[Trial]) -> str:
    """All trials in one line, the same words once."""
    return "; ".join(dict.fromkeys(str(trial) for trial in trials))


def _tilings() -> dict[str, experts.ExpertTiling]:
    """The variants of ours, by the name of their trial."""
    return {f"triton {one.most_columns}x{one.depth}x{one.num_stages}": one for one in experts.TILINGS}


def _try_all(
    layers: Sequence[nn.Module], size: int, k: int, stopwatch: Stopwatch, grouped: Forward, ours: Forward | None
) -> list[Trial]:
    """grouped_mm and every variant of ours at one size of step."""
    variants: dict[str, Forward] = {GROUPED: grouped}
    for name, tiling in _tilings().items():
        variants[name] = ours or functools.partial(experts.triton_experts, tiling=tiling)
    tried = []
    with torch.inference_mode():
        for name, forward in variants.items():
            call, case = _case(layers, size, k, grouped, forward)
            tried.append(run_trial(name, [call], [case], stopwatch))
    return tried


def _case(
    layers: Sequence[nn.Module], size: int, k: int, grouped: Forward, forward: Forward
) -> tuple[Callable[[], torch.Tensor], Case]:
    """Random tokens with distinct picks; every call takes the next layer, and the plain form the last one taken."""
    down: torch.Tensor = layers[0].down_proj  # type: ignore[assignment]
    hidden_size = down.shape[2] if layers[0].is_transposed else down.shape[1]
    draw = torch.Generator(down.device).manual_seed(size)
    hidden_Td = torch.randn(size, hidden_size, device=down.device, generator=draw).to(down.dtype)

    def picks() -> torch.Tensor:
        return torch.rand(size, down.shape[0], device=down.device, generator=draw).topk(k).indices

    index_Tk = picks()
    weights_Tk = torch.rand(size, k, device=down.device, generator=draw).softmax(-1).to(down.dtype)
    turn, taken = itertools.cycle(layers), [layers[0]]

    def call() -> torch.Tensor:
        taken[0] = next(turn)
        return forward(taken[0], hidden_Td, index_Tk, weights_Tk)

    def change() -> None:
        index_Tk.copy_(picks())
        hidden_Td.neg_()

    def plain() -> torch.Tensor:
        return grouped(taken[0], hidden_Td, index_Tk, weights_Tk)

    return call, Case(name=f"{size} token{'s' * (size > 1)}", plain=plain, change=change, dtype=down.dtype)


def _grouped(module: nn.Module, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = grouped_mm_experts_forward(module, hidden, index, weights)
    return out
