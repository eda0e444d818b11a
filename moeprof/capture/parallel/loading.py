"""Load one rank's part of a model by the plan that transformers has for the architecture.

The group is joined before (it has a gloo group for commands and short timeouts), so transformers takes ours. A
checkpoint is read shard by shard; random weights are drawn module by module (random_parts.py), and are those of a model
on one device.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

from moeprof.capture.model_source import ModelSource
from moeprof.capture.parallel.group import joined
from moeprof.capture.parallel.mirror import keep_own_forwards, mirror_calls
from moeprof.capture.parallel.random_parts import draw_part
from moeprof.core.errors import ModelError, UnsupportedModelError
from moeprof.core.modelspec import ModelSpec
from moeprof.core.parallel import Parallel

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
    else:
        keep_own_forwards(model)
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
    tensor_plan, expert_plan = outline._tp_plan or {}, outline._ep_plan or {}
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
    from moeprof.capture.parallel.experts_517 import expert_plan

    rules = expert_plan(outline._tp_plan, outline._ep_plan)
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
