"""How the executed picks are read off a module, and which architectures are refused and why.

Three kinds of hook cover all that is measured: the picks stand in the arguments of the experts module (nearly all), in
the scores that a router returns (llama4), or in the sort order that a gating module returns (jetmoe). A hook only
keeps a reference to a tensor: no device work, no synchronisation. Suffix legend: T tokens, E experts, K top-k.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from moeprof.core.errors import UnsupportedModelError

if TYPE_CHECKING:
    from moeprof.capture.moe_structure import MoeLayer

HookKind = Literal["experts_arguments", "router_scores", "gating_output"]
Store = Callable[[int, torch.Tensor], None]

# Class of a module in the model -> why it cannot be measured.
REFUSED_MODULES = {
    "DogeCDMoE": "its experts are rows of an embedding found by retrieval; no module is called with picks, and in "
    "transformers its prefill mixes router logits across tokens",
    "SwitchTransformersExperts": "an encoder-decoder: two stacks route different tokens in one forward, and a request "
    "has only one prompt and one output",
    "NllbMoeExperts": "an encoder-decoder whose code in transformers executes only experts 0 and 1 (it one-hot encodes "
    "a mask that is one-hot already)",
    "Mxfp4GptOssExperts": "MXFP4 kernels bypass router and experts; load it dequantised "
    "(quantization_config=Mxfp4Config(dequantize=True))",
    "MegaBlocksMoeMLP": "a hub kernel replaces the whole MLP; load without use_kernels",
}


def refuse_unsupported(model: nn.Module) -> None:
    """Raise for models whose executed picks cannot be seen.

    Raises:
        UnsupportedModelError: with the architecture's name and the reason.
    """
    name = type(model).__name__
    for module in model.modules():
        reason = REFUSED_MODULES.get(type(module).__name__)
        if reason is not None:
            raise UnsupportedModelError(f"{name} is not supported: {type(module).__name__}: {reason}")
        if getattr(module, "_is_expert_parallel", False):
            raise UnsupportedModelError(f"{name} is loaded with expert parallelism; load it on one device")
    config: Any = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{name} is an encoder-decoder; only decoder models continue a prompt")
    if getattr(model, "_use_kernels", False):
        raise UnsupportedModelError(f"{name} runs hub kernels that replace whole blocks; load without use_kernels")


def attach(layer: MoeLayer, index: int, store: Store, dropped_id: int) -> RemovableHandle:
    """Hook one layer so that each forward calls ``store(index, picks [T, K])``.

    Args:
        layer: the layer.
        index: its number among the MoE layers.
        store: keeps the tensor; must not synchronise.
        dropped_id: the id to give to picks that stand for "no expert".
    """
    if layer.hook == "router_scores":
        return layer.tapped.register_forward_hook(_scores_hook(index, store, layer.top_k))
    if layer.hook == "gating_output":
        return layer.tapped.register_forward_hook(_gating_hook(index, store, layer.top_k, layer.num_experts))
    hook = _skipping_hook(index, store, dropped_id) if layer.skips_zero_weight else _arguments_hook(index, store)
    return layer.tapped.register_forward_pre_hook(hook)


def _arguments_hook(index: int, store: Store) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        # Picks passed by keyword are not seen: nothing is stored, and the self-check says so.
        if len(args) > 1:
            store(index, args[1])

    return hook


def _skipping_hook(index: int, store: Store, dropped_id: int) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if len(args) > 2:
            store(index, args[1].masked_fill(args[2] == 0, dropped_id))

    return hook


def _scores_hook(index: int, store: Store, top_k: int) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: tuple[torch.Tensor, ...]) -> None:
        # Scores are 0 for all but the k chosen experts.
        store(index, output[0].topk(top_k, dim=-1).indices)

    return hook


def _gating_hook(index: int, store: Store, top_k: int, num_experts: int) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: tuple[Any, ...]) -> None:
        # Position i of the experts' sorted input is pick order[i] of the flattened [T * K] picks.
        order, expert_size = output[0], output[3]
        sizes = torch.tensor(expert_size, device=order.device)
        experts = torch.arange(num_experts, device=order.device).repeat_interleave(sizes, output_size=order.numel())
        store(index, torch.empty_like(order).scatter_(0, order, experts).view(-1, top_k))

    return hook
