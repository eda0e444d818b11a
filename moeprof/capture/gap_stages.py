"""Which part of a step each module of a model is, and profiler ranges around them.

Found by structure, with the groups that parameters are counted by: the largest modules that hold one group alone are
one part (an experts module, a router, a norm, a dense MLP); what holds the projections of attention and nothing but
norms beside them is ``attention``, and the projections inside it are a part of their own; a block of experts and router
is ``dispatch`` wherever it is neither. So cache writes, rotary embedding and the attention function are ``attention``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.profiler import record_function
from torch.utils.hooks import RemovableHandle

from moeprof.capture.gap_trace import PREFIX
from moeprof.capture.parameter_groups import find_expert_layers
from moeprof.capture.parameters import parameter_groups

OF_GROUP = {
    "embedding": "embedding",
    "attention": "attention_projections",
    "dense_mlp": "mlp",
    "router": "router",
    "shared_experts": "mlp",
    "routed_experts": "experts",
    "norm": "elementwise",
    "lm_head": "lm_head",
    "other": "elementwise",
}


def find_stages(model: nn.Module) -> dict[str, str]:
    """Module path -> stage, outer modules before inner ones; what runs inside both belongs to the inner one."""
    layers = find_expert_layers(model)
    of_module = _groups_of_modules(model, parameter_groups(model, layers))
    modules = dict(model.named_modules())
    blocks = {layer.name for layer in layers}
    stages: dict[str, str] = {}
    for path, groups in of_module.items():
        parent = path.rpartition(".")[0]
        if not path or not _is_called(modules[path]):
            continue
        if path in blocks:
            stages[path] = "dispatch"
        elif _is_attention(groups):
            if not _is_attention(of_module[parent]) or not _is_called(modules[parent]):
                stages[path] = "attention"
            if groups == {"attention"} and any(p.ndim >= 2 for p in modules[path].parameters(recurse=False)):
                stages[path] = "attention_projections"
        elif len(groups) == 1 and (of_module[parent] != groups or not _is_called(modules[parent])):
            stages[path] = OF_GROUP[next(iter(groups))]
    _add_tied_head(model, stages)
    return stages


def _add_tied_head(model: Any, stages: dict[str, str]) -> None:
    """A head that shares the embedding's weights is still the head; weights alone would call it an embedding."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    for path, module in model.named_modules():
        if head is not None and module is head:
            stages[path] = "lm_head"


def _groups_of_modules(model: nn.Module, of_parameter: dict[str, str]) -> dict[str, frozenset[str]]:
    """The groups of all parameters in each module that has any."""
    found: dict[str, set[str]] = {path: set() for path, _ in model.named_modules()}
    for parameter, group in of_parameter.items():
        owner = parameter
        while owner:
            owner = owner.rpartition(".")[0]
            found[owner].add(group)
    return {path: frozenset(groups) for path, groups in found.items() if groups}


def _is_attention(groups: frozenset[str]) -> bool:
    return "attention" in groups and groups <= {"attention", "norm"}


def _is_called(module: nn.Module) -> bool:
    """Lists of modules are never called, so no range would open; their children are asked instead."""
    return not isinstance(module, nn.ModuleList | nn.ModuleDict)


@contextmanager
def stage_ranges(model: nn.Module, stages: dict[str, str]) -> Iterator[None]:
    """Inside, every module of ``stages`` opens a profiler range named after its stage; outside no hook is left."""
    handles: list[RemovableHandle] = []
    try:
        for path, stage in stages.items():
            handles += _ranged(model.get_submodule(path), f"{PREFIX}{stage}")
        yield
    finally:
        for handle in handles:
            handle.remove()


def _ranged(module: nn.Module, name: str) -> tuple[RemovableHandle, RemovableHandle]:
    opened: list[Any] = []  # a module may be called inside itself

    def enter(*_: Any) -> None:
        opened.append(record_function(name))
        opened[-1].__enter__()

    def leave(*_: Any) -> None:
        if opened:  # another hook may have failed before ours opened anything
            opened.pop().__exit__(None, None, None)

    close: Callable[..., None] = leave
    return module.register_forward_pre_hook(enter), module.register_forward_hook(close, always_call=True)
