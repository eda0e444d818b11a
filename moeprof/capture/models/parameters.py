"""Counts what a model is: parameters, bytes, shapes. Exact, by parameter identity, on any device including meta.

Formulas: docs/metrics.md#parameters. ``idle = sum over MoE layers of (routed - k * one expert)``; A = total - idle
- parts that no text token passes;
B = A without the input embedding (kept when tied: the head reads it); C = B without the head.

Parameter counts of a quantised model come from its unquantised architecture (built on meta); bytes come from what is
stored: packed weights, scales, zero points, and the state that bitsandbytes keeps beside the tensor. A method that is
not in the table is refused by name, because a forgotten scale tensor would be a silent error.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from moeprof.capture.models.attention import model_attention
from moeprof.capture.models.groups import ExpertLayer, Grouper, find_expert_layers, is_under
from moeprof.capture.models.language_model import other_parts
from moeprof.capture.models.shapes import EXPERT_COUNT_KEYS
from moeprof.core.errors import UnsupportedModelError
from moeprof.core.model_facts import GROUPS, OTHER_MODALITIES, ModelFacts, MoeLayerFacts

# Methods whose storage is tensors on modules (parameters, buffers, tensor subclasses, quant_state).
COUNTED_METHODS = (
    "awq",
    "bitsandbytes",
    "compressed-tensors",
    "fbgemm_fp8",
    "fp8",
    "gptq",
    "mxfp4",
    "torchao",
)


# No method stores a weight in less than this; fewer bytes than that mean that tensors hide where we did not look.
LEAST_BITS = {"mxfp4": 4.25, "fp8": 8, "fbgemm_fp8": 8}  # MXFP4: 4 bits and a byte of scale per 32
LEAST_BITS_OTHERWISE = 2


def quantisation_method(model: nn.Module) -> str | None:
    """The name of the method that quantised the weights, or None.

    Raises:
        UnsupportedModelError: weights are of integer dtype and nothing says why.
    """
    config = getattr(getattr(model, "config", None), "quantization_config", None)
    if config is not None and getattr(model, "is_quantized", True) is not False:
        method = config.get("quant_method") if isinstance(config, dict) else getattr(config, "quant_method", None)
        return str(getattr(method, "value", method))
    for path, parameter in model.named_parameters():
        if not parameter.dtype.is_floating_point and not parameter.dtype.is_complex:
            raise UnsupportedModelError(
                f"weights of {type(model).__name__} are of integer type at {path} ({parameter.dtype}), but its config "
                "names no quantisation; moeprof cannot count its parameters"
            )
    return None


def stored_bytes_by_group(
    twin: nn.Module, stored: nn.Module, groups: dict[str, str], layers: Sequence[ExpertLayer], method: str
) -> dict[str, int]:
    """Bytes per group as stored.

    Args:
        twin: the unquantised architecture (its module paths say what belongs where).
        stored: the quantised model.
        groups: group per parameter path of ``twin``.
        layers: MoE layers of ``twin``.
        method: from :func:`quantisation_method`.

    Raises:
        UnsupportedModelError: the method is not one whose storage is known.
    """
    if method not in COUNTED_METHODS:
        raise UnsupportedModelError(
            f"quantisation method {method!r}: moeprof does not know where it stores its weights, so bytes would be "
            f"wrong; it counts {', '.join(COUNTED_METHODS)}. Load the model dequantised"
        )
    size = dict.fromkeys((*GROUPS, *({OTHER_MODALITIES} & {*groups.values()})), 0)
    plain_buffers = {path for path, _ in twin.named_buffers()}
    grouper = Grouper(twin, tuple(layers))
    counted: set[int] = set()
    for path, tensor in _stored_tensors(stored):
        if path in plain_buffers or id(tensor) in counted:
            continue
        counted.add(id(tensor))
        size[_group_of(path, groups, grouper)] += sum(t.numel() * t.element_size() for t in _inner(tensor))
    _refuse_hidden_storage(twin, groups, size, method)
    return size


def _refuse_hidden_storage(twin: nn.Module, groups: dict[str, str], size: dict[str, int], method: str) -> None:
    params = dict.fromkeys(size, 0)
    for path, parameter in twin.named_parameters():
        params[groups[path]] += parameter.numel()
    bits = LEAST_BITS.get(method, LEAST_BITS_OTHERWISE)
    for group, count in params.items():
        if size[group] * 8 < count * bits:
            raise UnsupportedModelError(
                f"quantisation method {method!r}: {size[group]} bytes were found for {count} parameters of {group}, "
                f"less than {bits:g} bits each, so some storage is out of sight; load the model dequantised"
            )


def _stored_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """All parameters and buffers, and the tensors of a ``quant_state`` or ``SCB`` kept beside them."""
    yield from model.named_parameters()
    yield from model.named_buffers()
    for path, parameter in model.named_parameters():
        for extra in _tensors_in(getattr(parameter, "quant_state", None)):
            yield path, extra
        scale = getattr(parameter, "SCB", None)
        if isinstance(scale, torch.Tensor):
            yield path, scale
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            for tensor in _tensors_of_kernel_object(value):
                yield f"{path}.{name}", tensor


def _tensors_of_kernel_object(value: Any) -> Iterator[torch.Tensor]:
    """Weights that MXFP4 kernels keep as attributes: an object whose storage.data is a tensor, and its scales."""
    scale = getattr(value, "weight_scale", None)
    if isinstance(scale, torch.Tensor) and not isinstance(value, nn.Module):
        yield scale
    for holder in (value, scale):
        data = getattr(getattr(holder, "storage", None), "data", None)
        if isinstance(data, torch.Tensor) and not isinstance(holder, torch.Tensor):
            yield data


def _tensors_in(state: Any) -> Iterator[torch.Tensor]:
    """Tensors of a bitsandbytes QuantState; its state2 is the nested one of double quantisation."""
    for name in ("absmax", "code", "offset"):
        tensor = getattr(state, name, None)
        if isinstance(tensor, torch.Tensor):
            yield tensor
    nested = getattr(state, "state2", None)
    if nested is not None:
        yield from _tensors_in(nested)


def _inner(tensor: torch.Tensor) -> list[torch.Tensor]:
    """What a tensor subclass really stores; the tensor itself when it is plain."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        return [tensor]
    names, _context = flatten()
    return [leaf for name in names for leaf in _inner(getattr(tensor, name))]


def _group_of(path: str, groups: dict[str, str], grouper: Grouper) -> str:
    """Group of a stored tensor: by the same path, else by the twin's parameter in the same module, else by path."""
    if path in groups:
        return groups[path]
    owner = path.rpartition(".")[0]
    same_module = next((group for p, group in groups.items() if owner and is_under(p, owner)), None)
    return same_module or grouper.group(path)


def model_facts(
    model: nn.Module,
    *,
    name: str,
    source: str,
    weights: str = "checkpoint",
    tokenizer_hash: str | None = None,
    routing_policy: str = "native",
    notes: Sequence[str] = (),
    allocated: bool = True,
) -> ModelFacts:
    """Count a model.

    Args:
        model: a transformers model, real or on the meta device, quantised or not.
        name: the workload's name for it.
        source: where it came from.
        weights: ``checkpoint`` or ``random``.
        tokenizer_hash: of the tokenizer used.
        routing_policy: ``native`` or the override in force.
        notes: more for the reader.
        allocated: count what the class allocates for experts that compute nothing.

    Raises:
        UnsupportedModelError: the config speaks of experts and none are found, top-k is unknown, or the weights are
            quantised in a way whose bytes cannot be counted.
    """
    method = quantisation_method(model)
    plain = model if method is None else build_plain_twin(model)
    facts = _count(plain, model, method, name, allocated)
    return replace(
        facts,
        source=source,
        weights=weights,
        tokenizer_hash=tokenizer_hash,
        routing_policy=routing_policy,
        notes=(*notes, *facts.notes),
    )


def _count(model: nn.Module, stored: nn.Module, method: str | None, name: str, allocated: bool) -> ModelFacts:
    """Facts of ``model``, with bytes as they lie in ``stored`` (the same model unless quantised)."""
    layers = find_expert_layers(model)
    groups = parameter_groups(model, layers)
    params, size = _sums(model, groups)
    config: Any = getattr(model, "config", None)
    _refuse_unknown_experts(config, layers, name, sum(params.values()))
    if method is not None:
        size = stored_bytes_by_group(model, stored, groups, layers, method)
    tied = _is_tied(model)
    total = sum(params.values())
    active = total - params.get(OTHER_MODALITIES, 0)
    active -= sum(layer.stored_params - _picks(layer, name) * layer.expert_params for layer in layers)
    if not allocated:
        total = _leave_out_unused(layers, params, size)
    embedding, head = params["embedding"], params["lm_head"]
    no_embedding = active if tied else active - embedding
    parts = other_parts(model)
    attention = model_attention(model, tuple(parts))
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    table = _input_embedding(model)
    return ModelFacts(
        name=name,
        source="",
        model_type=str(getattr(config, "model_type", "unknown")),
        architecture=type(model).__name__,
        dtype=_dtype_name(model),
        total_params=total,
        active_params=active,
        active_params_no_embedding=no_embedding,
        active_params_no_embedding_no_head=no_embedding - (embedding if tied else head),
        params_by_group=params,
        bytes_by_group=size,
        tied_embeddings=tied,
        moe_layers=tuple(_layer_facts(layer, model, groups, params, size) for layer in layers),
        num_layers=_num_layers(text),
        hidden_size=int(getattr(text, "hidden_size", None) or getattr(text, "d_model", 0) or 0),
        vocab_size=0 if table is None else int(table.shape[0]),
        kv_bytes_per_token=attention.kv_bytes_per_token,
        attention_flops_per_pair=attention.flops_per_pair,
        notes=(*_quantised_note(method), *attention.notes, *_layer_notes(layers, allocated), *_parts_note(parts)),
        attention=attention.layers,
        other_parts=parts,
    )


def parameter_groups(model: nn.Module, layers: Sequence[ExpertLayer] | None = None) -> dict[str, str]:
    """Group of each parameter by its first path; tied parameters appear once, as the input embedding."""
    layers = tuple(layers) if layers is not None else find_expert_layers(model)
    table, head = _input_embedding(model), _output_weights(model)
    grouper, towers = Grouper(model, layers), tuple(other_parts(model))
    groups: dict[str, str] = {}
    for path, parameter in model.named_parameters():
        if table is not None and parameter is table:
            groups[path] = "embedding"
        elif any(parameter is h for h in head):
            groups[path] = "lm_head"
        elif any(is_under(path, tower) for tower in towers):
            groups[path] = OTHER_MODALITIES
        else:
            groups[path] = grouper.group(path)
    return groups


def _sums(model: nn.Module, groups: dict[str, str]) -> tuple[dict[str, int], dict[str, int]]:
    all_groups = (*GROUPS, *({OTHER_MODALITIES} & {*groups.values()}))
    params, size = dict.fromkeys(all_groups, 0), dict.fromkeys(all_groups, 0)
    for path, parameter in model.named_parameters():
        params[groups[path]] += parameter.numel()
        size[groups[path]] += parameter.numel() * parameter.element_size()
    return params, size


def _layer_facts(
    layer: ExpertLayer, model: nn.Module, groups: dict[str, str], params: dict[str, int], size: dict[str, int]
) -> MoeLayerFacts:
    block = dict(model.get_submodule(layer.name).named_parameters(prefix=layer.name))
    inside = Counter[str]()
    for path, parameter in block.items():
        inside[groups.get(path, "other")] += parameter.numel()
    router = sum(_numel_at(model, path) for path in layer.routers)
    # Quantised experts have one format within a model, so bytes follow parameters within the group.
    routed = params["routed_experts"]
    expert_bytes = layer.expert_params * size["routed_experts"] // routed if routed else 0
    return MoeLayerFacts(
        name=layer.name,
        num_experts=layer.num_experts,
        top_k=min(layer.top_k or 0, layer.num_experts),
        expert_params=layer.expert_params,
        expert_bytes=expert_bytes,
        shared_params=inside["shared_experts"],
        router_params=router,
        executes_all_experts=layer.executes_all_experts,
    )


def _num_layers(config: Any) -> int:
    """Layers of the language model; of encoder and decoder together where it has both."""
    stacks = [getattr(config, f"num_{stack}layers", None) for stack in ("", "decoder_")]
    if not all(stacks):
        stacks = [getattr(config, f"{stack}_layers", None) for stack in ("encoder", "decoder")]
    if getattr(config, "is_encoder_decoder", False) and all(stacks):
        return sum(int(layers) for layers in stacks if layers)
    return int(getattr(config, "num_hidden_layers", None) or getattr(config, "num_layers", 0) or 0)


def _numel_at(model: nn.Module, path: str) -> int:
    """Parameters at a path that names a module or one parameter."""
    home, _, attribute = path.rpartition(".")
    found = getattr(model.get_submodule(home), attribute)
    return found.numel() if isinstance(found, torch.Tensor) else sum(p.numel() for p in found.parameters())


def _picks(layer: ExpertLayer, name: str) -> int:
    if layer.top_k is None:
        raise UnsupportedModelError(
            f"model {name}: {layer.name} has {layer.num_experts} experts, but nothing says how many a token uses "
            "(no top_k on router, block or config); moeprof cannot count its active parameters"
        )
    return min(layer.top_k, layer.num_experts)


def _quantised_note(method: str | None) -> tuple[str, ...]:
    if method is None:
        return ()
    return (f"weights quantised by {method}: parameters are the architecture's, bytes are as stored",)


def _parts_note(parts: dict[str, int]) -> tuple[str, ...]:
    if not parts:
        return ()
    each = ", ".join(f"{path} ({params} parameters)" for path, params in parts.items())
    return (f"in the total only, because no text token passes them: {each}",)


def _unused(layers: Sequence[ExpertLayer]) -> int:
    """Parameters that the class allocates for experts that compute nothing."""
    return sum(layer.stored_params - layer.num_experts * layer.expert_params for layer in layers)


def _leave_out_unused(layers: Sequence[ExpertLayer], params: dict[str, int], size: dict[str, int]) -> int:
    """Take unused experts out of the counts, bytes in proportion; returns the new total."""
    routed, unused = params["routed_experts"], _unused(layers)
    if unused:
        params["routed_experts"] = routed - unused
        size["routed_experts"] = size["routed_experts"] * (routed - unused) // routed
    return sum(params.values())


def _layer_notes(layers: Sequence[ExpertLayer], allocated: bool) -> tuple[str, ...]:
    notes = []
    if any(layer.executes_all_experts for layer in layers):
        notes.append("its code runs every expert on every token: routed sparsely, executed densely")
    asked = max((layer.top_k or 0 for layer in layers), default=0)
    if any((layer.top_k or 0) > layer.num_experts for layer in layers):
        notes.append(f"it asks for {asked} experts per token where a layer has fewer: counted as all of them")
    extra = _unused(layers)
    if extra:
        counted = "" if allocated else ", not counted here; a token that picks them uses less than the active count"
        notes.append(f"{extra} parameters are allocated for experts that compute nothing{counted}")
    return tuple(notes)


def _refuse_unknown_experts(config: Any, layers: Sequence[ExpertLayer], name: str, total: int) -> None:
    """A config with experts and a model without: counting it as dense would be wrong."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if layers or getattr(text, "is_moe", None) is False or getattr(text, "enable_moe_block", None) is False:
        return
    kinds = getattr(text, "layers_block_type", None) or getattr(text, "mlp_layer_types", None)
    if kinds and not {"moe", "sparse"} & {str(kind) for kind in kinds}:  # the count is then a default of the class
        return
    named = {key: getattr(text, key, None) for key in EXPERT_COUNT_KEYS}
    declared = next(((k, v) for k, v in named.items() if isinstance(v, int) and v > 1), None)
    if declared is not None:
        raise UnsupportedModelError(
            f"model {name} ({getattr(text, 'model_type', '?')}): its config says {declared[0]}={declared[1]}, but no "
            f"module holds routed experts in a form moeprof knows (stacked 3-D weights, or a list of equal experts "
            f"beside a router); it has {total} parameters in total, its active parameters cannot be counted"
        )


def _input_embedding(model: nn.Module) -> torch.Tensor | None:
    getter = getattr(model, "get_input_embeddings", None)
    try:
        module = getter() if getter is not None else None
    except NotImplementedError:  # transformers says so of models with no one table for tokens
        module = None
    return getattr(module, "weight", None)


def _output_weights(model: nn.Module) -> list[torch.Tensor]:
    getter = getattr(model, "get_output_embeddings", None)
    module = getter() if getter is not None else None
    return list(module.parameters()) if module is not None else []


def _is_tied(model: nn.Module) -> bool:
    table = _input_embedding(model)
    return table is not None and any(p is table for p in _output_weights(model))


def _dtype_name(model: nn.Module) -> str:
    """The dtype that most parameters have."""
    counts = Counter[torch.dtype]()
    for parameter in model.parameters():
        counts[parameter.dtype] += parameter.numel()
    return str(counts.most_common(1)[0][0]).removeprefix("torch.") if counts else "none"


def build_plain_twin(model: Any) -> nn.Module:
    """The same architecture without quantisation, on the meta device: it holds the true parameter counts."""
    config = copy.deepcopy(model.config)
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
    dtype = getattr(config, "dtype", None) or torch.bfloat16
    with torch.device("meta"):
        twin: Any = type(model)._from_config(config, dtype=dtype)
    twin.tie_weights()
    assert isinstance(twin, nn.Module)
    return twin
