"""Which part of a model each parameter belongs to, found by structure.

Routed experts are found as modules (fused 3-D weights, or lists of equal children beside a router), never by a list of
model names; everything else follows from where a parameter sits relative to them. Generic words (``router``, ``attn``,
``mlp``) only break ties between parts that have no structure of their own.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from moeprof.capture.models.shapes import EXPERT_COUNT_KEYS, TOP_K_KEYS

TOP_K_NAMES = ("top_k", "topk", *TOP_K_KEYS)  # of modules
_ROUTER_ATTRIBUTE = re.compile(r"^(gate|router|gating|wg|.*_router|router_.*)$")
_ROUTER_CLASS = re.compile(r"Router|Gating|Gate$")
_SHARED = re.compile(r"shared_?(mlp|experts?|ffn)", re.IGNORECASE)
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_MLP = re.compile(r"(^|[._])(mlps?|ffn?|feed_?forward|fc\d*)($|[._])|mlp|feedforward|denseact", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertLayer:
    """One block of routed experts.

    Attributes:
        name: module path of the block that holds experts and router.
        experts: module paths of its expert modules (one, or several that one router feeds).
        routers: module paths (or parameter paths) of its router.
        num_experts: E.
        top_k: k.
        expert_params: parameters of one expert.
        stored_params: parameters of all its experts; more than E times one where code allocates unused ones.
        executes_all_experts: True for code that gives every token to every expert.
    """

    name: str
    experts: tuple[str, ...]
    routers: tuple[str, ...]
    num_experts: int
    top_k: int | None
    expert_params: int
    stored_params: int
    executes_all_experts: bool


def is_under(path: str, parent: str) -> bool:
    """True when ``path`` is ``parent`` or lies inside it."""
    return path == parent or path.startswith(parent + ".") or parent == ""


def find_expert_layers(model: nn.Module) -> tuple[ExpertLayer, ...]:
    """The blocks of routed experts of a model, in module order; empty for a dense model."""
    modules = dict(model.named_modules())
    found: dict[str, list[str]] = {}
    last = "\0"
    for path, module in modules.items():
        if is_under(path, last):
            continue
        block = path.rpartition(".")[0]
        if path and _num_experts_of(module, path, modules[block]) is not None:
            found.setdefault(block, []).append(path)
            last = path
    return tuple(_expert_layer(block, paths, modules, model) for block, paths in found.items())


def _num_experts_of(module: nn.Module, path: str, block: nn.Module) -> int | None:
    """E when ``module`` holds routed experts, else None."""
    kind, attribute = type(module).__name__, path.rpartition(".")[2]
    if "shared" in attribute.lower():  # not the class name: in GraniteMoeSharedExperts it is the model's
        return None
    if kind.endswith("Experts") and next(module.parameters(), None) is not None:
        return _declared_num_experts(module)
    count = _equal_children(module) or _stacked_weights(module)
    return count if count and _has_router(block, module, count) else None


def _declared_num_experts(module: nn.Module) -> int | None:
    dims = [p.shape[0] for p in module.parameters(recurse=False) if p.ndim == 3]
    if dims:
        return min(dims)
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        return sum(1 for child in module.children() if next(child.parameters(), None) is not None)
    return next((int(getattr(module, n)) for n in EXPERT_COUNT_KEYS if isinstance(getattr(module, n, None), int)), None)


def _equal_children(module: nn.Module) -> int | None:
    """Number of children of a list whose weights all have the same shapes, at least two."""
    if not isinstance(module, nn.ModuleList | nn.ModuleDict) or len(module) < 2:
        return None
    shapes = [[tuple(p.shape) for p in child.parameters()] for child in module.children()]
    return len(module) if any(len(s) >= 2 for s in shapes[0]) and all(s == shapes[0] for s in shapes) else None


def _stacked_weights(module: nn.Module) -> int | None:
    """The first dimension that a module's own 3-D weights share, at least two."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return None
    dims = {p.shape[0] for p in module.parameters(recurse=False) if p.ndim == 3}
    return dims.pop() if len(dims) == 1 and max(dims) >= 2 else None


def _has_router(block: nn.Module, experts: nn.Module, count: int) -> bool:
    """True when something beside the experts scores a token once per expert: a weight of shape [E, d]."""
    inside = {id(p) for p in experts.parameters()}
    # A router lives in the block, its children or grandchildren.
    near = (block, *block.children(), *(g for c in block.children() for g in c.children()))
    own = (p for module in near for p in module.parameters(recurse=False))
    return any(p.ndim == 2 and p.shape[0] == count and id(p) not in inside for p in own)


def _expert_layer(block: str, paths: list[str], modules: dict[str, nn.Module], model: nn.Module) -> ExpertLayer:
    first = modules[paths[0]]
    num_experts = _num_experts_of(first, paths[0], modules[block])
    assert num_experts is not None
    routers = _routers(block, paths, modules, num_experts)
    stored = sum(p.numel() for path in paths for p in modules[path].parameters())
    config: Any = getattr(model, "config", None)
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else None
    holders = [first, *(modules[r] for r in routers if r in modules), modules[block], config, text]
    return ExpertLayer(
        name=block,
        experts=tuple(paths),
        routers=routers,
        num_experts=num_experts,
        top_k=_top_k(holders),
        expert_params=sum(_params_of_one(modules[path], num_experts) for path in paths),
        stored_params=stored,
        executes_all_experts=_executes_all(first),
    )


def _params_of_one(module: nn.Module, num_experts: int) -> int:
    stacked = list(module.parameters(recurse=False))
    if stacked and any(p.ndim == 3 for p in stacked):
        return sum(p.numel() // p.shape[0] for p in module.parameters())
    return sum(p.numel() for p in module.parameters()) // num_experts


def _executes_all(experts: nn.Module) -> bool:
    """True when ``forward`` takes hidden states only, so that it cannot know who was picked."""
    if isinstance(experts, nn.ModuleList | nn.ModuleDict):
        return False
    return len(inspect.signature(type(experts).forward).parameters) == 2


def _routers(block: str, experts: list[str], modules: dict[str, nn.Module], num_experts: int) -> tuple[str, ...]:
    """Paths of what decides; looked for in the block, then one level up."""
    for home in (block, block.rpartition(".")[0]):
        named, scoring = [], []
        for attribute, child in modules[home].named_children():
            path = f"{home}.{attribute}" if home else attribute
            if any(is_under(e, path) for e in experts) or next(child.parameters(), None) is None:
                continue
            if _ROUTER_ATTRIBUTE.match(attribute) or _ROUTER_CLASS.search(type(child).__name__):
                named.append(path)
            elif any(p.ndim == 2 and p.shape[0] == num_experts for p in child.parameters()):
                scoring.append(path)
        own = [
            f"{home}.{name}"
            for name, p in modules[home].named_parameters(recurse=False)
            if num_experts in p.shape and home == block
        ]
        if named or scoring or own:
            return (*(named or scoring), *own)
    return ()


def _top_k(holders: list[Any]) -> int | None:
    for holder in holders:
        for name in TOP_K_NAMES:
            value = getattr(holder, name, None)
            if isinstance(value, list) and value and all(v == value[0] for v in value):
                value = value[0]
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
        match = re.search(r"Top(\d+)Router", type(holder).__name__)
        if match:
            return int(match.group(1))
    return None


class Grouper:
    """Maps a module path to a group of docs/metrics.md#parameters."""

    def __init__(self, model: nn.Module, layers: tuple[ExpertLayer, ...]) -> None:
        self._classes = {path: type(module).__name__ for path, module in model.named_modules()}
        self._experts = {path for layer in layers for path in layer.experts}
        self._routers = {path for layer in layers for path in layer.routers}
        self._blocks = {layer.name for layer in layers}
        self._shared = {path for layer in layers for path in _shared_children(model, layer)}
        self._cache: dict[str, str] = {}

    def group(self, parameter: str) -> str:
        """The group of a parameter path that is neither input embedding nor lm_head."""
        if parameter in self._routers:
            return "router"
        owner = parameter.rpartition(".")[0]
        if owner not in self._cache:
            self._cache[owner] = self._group_of_module(owner)
        return self._cache[owner]

    def _group_of_module(self, owner: str) -> str:
        ancestors = [owner]
        while ancestors[-1]:
            ancestors.append(ancestors[-1].rpartition(".")[0])
        for group, paths in (
            ("routed_experts", self._experts),
            ("router", self._routers),
            ("shared_experts", self._shared),
        ):
            if any(path in paths for path in ancestors):
                return group
        # The model's own class name says nothing about a part: leave the root out.
        words = [(path.rpartition(".")[2], self._classes.get(path, "")) for path in ancestors if path]
        if words and ("norm" in words[0][1].lower() or "norm" in words[0][0].lower()):
            return "norm"
        inner = next((i for i, path in enumerate(ancestors) if path in self._blocks), len(words))
        for attribute, kind in words[:inner]:
            if _SHARED.search(attribute) and not attribute.endswith("gate"):
                return "shared_experts"
            if _ATTENTION.search(attribute) or _ATTENTION.search(kind):
                return "attention"
            if _MLP.search(attribute) or _MLP.search(kind):
                return "dense_mlp"
        return "attention" if any(_ATTENTION.search(attribute) for attribute, _ in words) else "other"


def _shared_children(model: nn.Module, layer: ExpertLayer) -> Iterator[str]:
    """Children of a MoE block that are MLPs beside the routed experts: at least two true matrices."""
    block = model.get_submodule(layer.name)
    if any(_ATTENTION.search(type(m).__name__) for m in block.modules()):
        return
    for attribute, child in block.named_children():
        path = f"{layer.name}.{attribute}"
        taken = any(is_under(p, path) for p in (*layer.experts, *layer.routers))
        matrices = sum(1 for p in child.parameters() if p.ndim >= 2 and min(p.shape) > 1)
        if not taken and matrices >= 2:
            yield path
