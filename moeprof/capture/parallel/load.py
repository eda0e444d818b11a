"""Load one rank's part of a model by the plan that transformers has for the architecture.

The group is joined before (it has a gloo group for commands and short timeouts), so transformers takes ours. A
checkpoint is read shard by shard; random weights are drawn module by module, and are those of a model
on one device.

Random weights of one rank's part: each module is drawn whole, as on one device, and this rank's share is kept.

Seeds belong to modules and not to devices (random_weights.py), so the ranks together hold exactly the model that one
device would have. At its worst a rank needs its own part and one whole module, for a Mixtral layer 2.8 GB.

Whole experts per rank on transformers that still cuts the router's output (before 5.21).

There the rule ``ep_router`` replaces picks by local numbers before any hook can see them. This rule leaves the picks as
they are, so that an experts module is called with the same global ids on all ranks, and hides the experts of others
inside of the module's own forward. That is what transformers does by itself from 5.21 on (``all_reduce``).
Suffix legend: T tokens, K top-k, d width.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig
from transformers.distributed.tensor_parallel import ALL_PARALLEL_STYLES, TensorParallelLayer

from moeprof.capture import compat
from moeprof.capture.models.find import ModelSource
from moeprof.capture.models.random_weights import module_seed, random_model
from moeprof.capture.models.wrap import Forward, put_on
from moeprof.capture.parallel.group import joined
from moeprof.capture.parallel.mirror import mirror_calls
from moeprof.core.errors import ModelError, UnsupportedModelError
from moeprof.core.workload.engine import Parallel
from moeprof.core.workload.models import ModelSpec


def draw_part(outline: Any, plan: Any, device: torch.device, *, seed: int, name: str) -> Any:
    """Cut a model without memory by ``plan``, then draw it.

    Args:
        outline: the whole model on the meta device; it is used up.
        plan: transformers' DistributedConfig; the group is joined.
        device: of this rank.
        seed: same seed, same weights, on any number of ranks.
        name: what messages call the model.
    """

    def cut(model: Any) -> None:
        config, _, mesh = type(model).prepare_distribute_model(plan)
        type(model).maybe_distribute_model(model, config, mesh)

    std = float(getattr(outline.config.get_text_config(decoder=True), "initializer_range", None) or 0.02)
    return random_model(
        lambda: outline, device, seed=seed, name=name, reshape=cut, around_module=_drawn_whole(seed, std)
    )


def _drawn_whole(seed: int, std: float) -> Callable[[str, nn.Module], AbstractContextManager[None]]:
    """While a module's class gives its weights values, they stand there whole; what is left of them is the share."""

    @contextmanager
    def around(path: str, module: nn.Module) -> Iterator[None]:
        parts: dict[str, Any] = {k: part for k, part in module._parameters.items() if isinstance(part, DTensor)}
        for key, part in parts.items():
            module._parameters[key] = nn.Parameter(_unset(part), requires_grad=False)
        yield
        for key, part in parts.items():
            whole: Any = module._parameters[key]
            if bool(whole.view(-1)[0].isnan()):  # the class forgot it
                torch.manual_seed(module_seed(seed, f"{path}.{key}" if path else key))
                whole.normal_(0.0, std)
            share = distribute_tensor(whole.data, part.device_mesh, part.placements, src_data_rank=None)
            part.to_local().copy_(share.to_local())
            module._parameters[key] = part

    return around


def _unset(part: DTensor) -> torch.Tensor:
    whole = torch.empty(part.shape, dtype=part.dtype, device=part.to_local().device)
    whole.view(-1)[0] = math.nan
    return whole


NAME = "moeprof_whole_experts"
SUMMED, CUT_ROUTER = "moe_tp_experts", "ep_router"  # transformers' names


class WholeExperts(TensorParallelLayer):  # type: ignore[misc]
    """An experts module of which each rank holds some experts, and sums what the ranks compute."""

    def should_use_local_tensors(self, module: Any) -> bool:
        """The kernels know plain tensors only."""
        return True

    def install_forward(self, module: Any, mesh: Any) -> Any:
        """Wrap the module's forward; its weights are cut already, and ``num_experts`` is this rank's number."""
        rank, group = mesh.get_local_rank(), mesh.get_group()

        def wrap(inner: Forward) -> Forward:
            def forward(hidden_Td: torch.Tensor, picks_TK: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
                local = module.num_experts
                elsewhere_TK = picks_TK // local != rank
                own_TK = torch.where(elsewhere_TK, local, picks_TK % local)
                with self.context_around_forward(module, mesh):
                    output_Td: torch.Tensor = inner(hidden_Td, own_TK, weights_TK.masked_fill(elsewhere_TK, 0.0))
                dist.all_reduce(output_Td, group=group)
                return output_Td

            return forward

        put_on(module, "kernel", wrap)
        return module


def expert_plan(tensor_plan: dict[str, str], expert_plan: dict[str, str]) -> dict[str, str]:
    """The rules of a model for whole experts: its own for them with ours in the middle, tensor rules for the rest."""
    ALL_PARALLEL_STYLES.register(NAME, WholeExperts())
    own = {rule: NAME if style == SUMMED else style for rule, style in expert_plan.items() if style != CUT_ROUTER}
    blocks = tuple(rule for rule, style in own.items() if style == NAME)
    rest = {
        rule: style
        for rule, style in tensor_plan.items()
        if not any(rule == block or rule.startswith(f"{block}.") for block in blocks)
    }
    return rest | own


HAS_EXPERT_SIZE = "ep_size" in inspect.signature(DistributedConfig).parameters
EXPERTS_RULES = ("ep_dispatch_experts", "moe_tp_experts")
WHOLE = "moeprof_num_experts"  # on an experts module: how many experts all ranks hold together


def load_part(
    spec: ModelSpec,
    source: ModelSource,
    config: Any,
    parallel: Parallel,
    device: torch.device,
    kwargs: dict[str, Any],
    seed: int,
) -> Any:
    """This rank's part of ``spec``. Rank 0 tells the others to load theirs.

    Args:
        spec: which weights, and the name for messages.
        source: where they are.
        config: transformers' config.
        parallel: the plan.
        device: of this rank.
        kwargs: more for transformers (dtype, attention, experts).
        seed: of random weights.

    Raises:
        UnsupportedModelError: the architecture has no such plan, or its heads or experts cannot be shared evenly.
        ModelError: config and weights do not match.
    """
    group = joined(device)
    if group.leads:
        group.tell("open")
    with group.hold():
        outline = _outline(config, kwargs)
        check_shares(spec.name, outline, parallel)
        plan = _distributed(outline, parallel)
        if spec.weights == "random":
            model = draw_part(outline, plan, device, seed=seed, name=spec.name)
        else:
            model = _read_part(spec, source, plan, kwargs)
    _note_whole_experts(model)
    if group.leads:
        mirror_calls(model, group)
    return model


def check_shares(name: str, outline: Any, parallel: Parallel) -> None:
    """Refuse what cannot be shared evenly.

    Args:
        name: of the model.
        outline: the model without memory.
        parallel: the plan.

    Raises:
        UnsupportedModelError: says what cannot be shared, and which numbers of ranks could.
    """
    config, ranks = outline.config.get_text_config(decoder=True), parallel.ranks
    tensor_plan, expert_plan = compat.parallel_plans(outline)
    keeps_whole = parallel.plan == "expert" and _has_experts(outline)
    if keeps_whole and not any(style in EXPERTS_RULES for style in expert_plan.values()):
        raise UnsupportedModelError(
            f"model {name}: transformers has no expert parallel plan for {type(outline).__name__}; use plan: tensor or "
            "leave engine.parallel out"
        )
    if not keeps_whole and not any("*" in rule for rule in tensor_plan):  # a rule for the head alone shares no layer
        raise UnsupportedModelError(
            f"model {name}: transformers has no tensor parallel plan for {type(outline).__name__}; leave "
            "engine.parallel out"
        )
    cut = [style for rule, style in tensor_plan.items() if rule.rpartition(".")[2] in ("k_proj", "qkv_proj")]
    heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_attention_heads", 1)
    counts: dict[str, int] = {"key-value heads": int(heads or 1) if "colwise" in cut else ranks}
    if parallel.plan == "expert":
        counts["experts"] = _num_experts(outline) or ranks
    for what, count in counts.items():
        if count % ranks:
            fitting = ", ".join(str(n) for n in range(2, count + 1) if count % n == 0)
            raise UnsupportedModelError(
                f"model {name}: {count} {what} cannot be shared by {ranks} ranks; engine.parallel.ranks may be "
                f"{fitting or 'nothing'}"
            )


def _outline(config: Any, kwargs: dict[str, Any]) -> Any:
    """The model without memory: which rules it has, and what there is to share."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, **kwargs)


def _has_experts(outline: Any) -> bool:
    return _num_experts(outline) is not None


def _num_experts(outline: Any) -> int | None:
    """Of the stacked weights of experts modules; None for a dense model."""
    for module in outline.modules():
        if type(module).__name__.endswith("Experts"):
            stacked = [p.shape[0] for p in module.parameters(recurse=False) if p.ndim == 3]
            if stacked:
                return int(min(stacked))
    return None


def _distributed(outline: Any, parallel: Parallel) -> Any:
    """The plan in the words of the installed transformers. A dense model has no experts to keep whole."""
    if parallel.plan == "tensor" or not _has_experts(outline):
        return DistributedConfig(tp_size=parallel.ranks, tp_plan="auto")
    if HAS_EXPERT_SIZE:
        return DistributedConfig(tp_size=parallel.ranks, ep_size=parallel.ranks, ep_implementation="all_reduce")

    rules = expert_plan(*compat.parallel_plans(outline))
    return DistributedConfig(tp_size=parallel.ranks, tp_plan=rules)


def _read_part(spec: ModelSpec, source: ModelSource, plan: Any, kwargs: dict[str, Any]) -> Any:
    model, info = AutoModelForCausalLM.from_pretrained(
        source.hub_id or source.folder,
        revision=spec.revision,
        trust_remote_code=spec.trust_remote_code,
        use_safetensors=True,
        output_loading_info=True,
        distributed_config=plan,
        **kwargs,
    )
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"model {spec.name}: the weights lack {len(missing)} tensors that config.json asks for ({missing[0]}, ...)"
            "; config and weights do not match"
        )
    return model


def _note_whole_experts(model: Any) -> None:
    """An experts module says how many experts are here; the tap counts all of them."""
    for module in model.modules():
        stacked = [p.shape[0] for p in module.parameters(recurse=False) if p.ndim == 3]
        if type(module).__name__.endswith("Experts") and stacked:
            setattr(module, WHOLE, min(stacked))
