"""Find the mixture-of-experts layers of a model by the shape of its modules, not by its name.

Rule: an experts module has a class name that ends in ``Experts`` and is called with ``(hidden_states [T, d],
top_k_index [T, k], top_k_weights [T, k])``. What is in those arguments is what gets executed; router logits are not
(group limits and correction biases change the pick afterwards). The few architectures that break the rule have an
adapter or a refusal in capture/routing/adapters.py. Suffix legend: T tokens, E experts, K top-k.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from moeprof.capture import compat
from moeprof.capture.models.shapes import EXPERT_COUNT_KEYS, TOP_K_KEYS, LayerShape, layer_number
from moeprof.core.errors import UnsupportedModelError

MOE_SWITCHES = ("is_moe", "enable_moe_block")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MoeLayer:
    """One MoE layer of a live model.

    Attributes:
        name: module path of the MoE block.
        block: the module that owns router and experts.
        experts: the module that holds the experts' weights.
        tapped: the module that the hook sits on.
        hook: how the executed picks are read from it.
        num_experts: E, experts that compute.
        num_identity: ids at and above E that stand for zero-computation experts.
        top_k: k.
        skips_zero_weight: True where a pick of weight 0 stands for "no expert" (it is counted as dropped).
        executes_all_experts: True for code that runs every expert on every token.
        notes: what a reader should know.
    """

    name: str
    block: nn.Module
    experts: nn.Module
    tapped: nn.Module
    hook: HookKind
    num_experts: int
    top_k: int
    num_identity: int = 0
    skips_zero_weight: bool = False
    executes_all_experts: bool = False
    notes: tuple[str, ...] = ()


def find_moe_layers(model: nn.Module) -> tuple[MoeLayer, ...]:
    """The MoE layers in module order; empty for a dense model.

    Raises:
        UnsupportedModelError: the architecture is known not to be measurable, or its configuration names experts that
            no module rule finds; the message says which and why.
    """
    refuse_unsupported(model)
    config = _text_config(model)
    layers = []
    for name, module in model.named_modules():
        parent_name = name.rpartition(".")[0]
        if type(module).__name__ in ("JetMoeMoE", "JetMoeMoA"):
            layers.append(_jetmoe_layer(name, module))
        elif type(module).__name__.endswith("Experts"):
            block = model.get_submodule(parent_name)
            if _takes_picks(module):
                layers.append(_standard_layer(parent_name, block, module, config))
            elif type(block).__name__ == "Llama4TextMoe":
                layers.append(_llama4_layer(parent_name, block, module))
    if not layers:
        _refuse_hidden_experts(model, config)
    return tuple(layers)


def _text_config(model: nn.Module) -> dict[str, Any]:
    config: Any = getattr(model, "config", None)
    if config is None:
        return {}
    values: dict[str, Any] = config.get_text_config(decoder=True).to_dict()
    return values


def _takes_picks(module: nn.Module) -> bool:
    """True when forward takes hidden states, picks and weights (shared experts take less).

    The class is asked: a parallel plan puts a forward of its own on the module.
    """
    return len(inspect.signature(type(module).forward).parameters) >= 4


def _standard_layer(name: str, block: nn.Module, experts: nn.Module, config: dict[str, Any]) -> MoeLayer:
    num_experts, num_identity = _expert_counts(name, experts)
    gates = [child for child in block.children() if child is not experts]
    skips = any(getattr(gate, "num_router_classes", num_experts) > num_experts for gate in gates)
    notes = []
    if num_identity:
        notes.append(f"ids {num_experts} and above are {num_identity} identity experts, counted apart")
    if skips:
        notes.append("the router's skip expert (weight 0) is counted as dropped")
    if getattr(block, "is_hash", False):
        notes.append("routes by a hash of the token id, not by a learnt gate")
    return MoeLayer(
        name=name,
        block=block,
        experts=experts,
        tapped=experts,
        hook="experts_arguments",
        num_experts=num_experts,
        num_identity=num_identity,
        top_k=_top_k(name, [*gates, block], config),
        skips_zero_weight=skips,
        notes=tuple(notes),
    )


def _expert_counts(name: str, experts: nn.Module) -> tuple[int, int]:
    """Experts that compute, and identity experts above them, from the stacked weights."""
    stacked = [parameter.shape[0] for parameter in experts.parameters(recurse=False) if parameter.dim() == 3]
    stated = next((getattr(experts, n) for n in EXPERT_COUNT_KEYS if isinstance(getattr(experts, n, None), int)), None)
    stated = getattr(experts, "moeprof_num_experts", stated)  # of all ranks that share the model
    if stacked and stated is not None and stated != min(stacked):
        raise UnsupportedModelError(
            f"{name}: {type(experts).__name__} says {stated} experts but holds {min(stacked)}; sharded experts are not "
            "measured, load the model on one device without tensor or expert parallelism"
        )
    if stacked:
        return min(stacked), max(stacked) - min(stacked)
    if stated is not None:
        return stated, 0
    children = list(experts.children())
    if len(children) >= 2 and len({type(child) for child in children}) == 1:
        return len(children), 0
    raise UnsupportedModelError(
        f"{name}: cannot tell how many experts {type(experts).__name__} holds (no 3-D weight, no list of equal modules)"
    )


def _top_k(name: str, modules: list[nn.Module], config: dict[str, Any]) -> int:
    for module in modules:
        for attribute in ("top_k", *TOP_K_KEYS):
            value = getattr(module, attribute, None)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    for attribute in ("top_k", *TOP_K_KEYS):
        if isinstance(config.get(attribute), int):
            return int(config[attribute])
    raise UnsupportedModelError(
        f"{name}: neither its gate nor the configuration says how many experts a token picks (looked for "
        f"{', '.join(('top_k', *TOP_K_KEYS))})"
    )


def _llama4_layer(name: str, block: Any, experts: nn.Module) -> MoeLayer:
    return MoeLayer(
        name=name,
        block=block,
        experts=experts,
        tapped=block.router,
        hook="router_scores",
        num_experts=int(block.num_experts),
        top_k=int(block.top_k),
        executes_all_experts=True,
        notes=("this code runs every expert on every token: counts are what was routed, not what was executed",),
    )


def _jetmoe_layer(name: str, block: Any) -> MoeLayer:
    family = "attention experts" if type(block).__name__ == "JetMoeMoA" else "feed-forward experts"
    return MoeLayer(
        name=name,
        block=block,
        experts=block,
        tapped=block.router,
        hook="gating_output",
        num_experts=int(block.router.num_experts),
        top_k=int(block.router.top_k),
        notes=(f"{family}; a JetMoE layer has two families, listed as two MoE layers",),
    )


def _refuse_hidden_experts(model: nn.Module, config: dict[str, Any]) -> None:
    """A configuration with experts but no module that shows its picks is refused, not measured as dense."""
    if any(config.get(switch) is False for switch in MOE_SWITCHES):
        return
    counts = {name: config[name] for name in EXPERT_COUNT_KEYS if isinstance(config.get(name), int)}
    if not counts or max(counts.values()) <= 1:
        return
    lists = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) >= 2 and name.rpartition(".")[2] == "experts"
    ]
    if not lists and not any(name.rpartition(".")[2] in ("router", "gate") for name, _ in model.named_modules()):
        return  # every layer is dense by configuration (for example mlp_only_layers)
    key, value = max(counts.items(), key=lambda item: int(item[1]))
    where = f"; {lists[0]} is a list run inside its block, so no module shows the picks" if lists else ""
    raise UnsupportedModelError(
        f"{type(model).__name__}: {key} is {value} but no module is called with the picks of each token "
        f"(a class ending in Experts, called with hidden states, picks and weights){where}"
    )


def layer_shapes(layers: Sequence[MoeLayer]) -> list[LayerShape]:
    """E, k and number of each layer."""
    return [
        LayerShape(
            num_experts=layer.num_experts,
            top_k=layer.top_k,
            num_identity=layer.num_identity,
            number=layer_number(layer.name),
        )
        for layer in layers
    ]


HookKind = Literal["experts_arguments", "router_scores", "gating_output"]


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
        if compat.is_expert_parallel(module) and not hasattr(module, "moeprof_num_experts"):
            raise UnsupportedModelError(f"{name} is loaded with expert parallelism; say so in engine.parallel")
    config: Any = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{name} is an encoder-decoder; only decoder models continue a prompt")
    if compat.uses_hub_kernels(model):
        raise UnsupportedModelError(f"{name} runs hub kernels that replace whole blocks; load without use_kernels")
