"""A PEFT adapter: its base counted like any model, and what the adapter's own matrices add to it, unmerged.

Its parameters stand in the header of ``adapter_model.safetensors``. Where only its config is there, those of LoRA
follow from the modules that it names: a module of n inputs and m outputs gets rank * (n + m) (arXiv 2106.09685 section
4.1), and m more where the length of each row is learnt too (DoRA, arXiv 2402.09353).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from moeprof.capture.models.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG, is_adapter, read_object
from moeprof.core.errors import ModelError
from moeprof.core.known_models import CountedModel, find_system
from moeprof.core.model_facts import ModelFacts, MoeLayerFacts

_EXPERTS = re.compile(r"(^|\.)experts(\.|$)")
_LAYER = re.compile(r"\.(\d+)\.")
# What an adapter's own tensors are called; others are whole copies of modules, which take the place of the base's.
_OWN = re.compile(r"lora_|ia3_|\.hada_|lokr_|vera_|oft_|boft_|hra_|prompt_embeddings|adaption_|\.spectrum|randlora_")


class _Config(msgspec.Struct, kw_only=True):
    """The keys of an adapter_config.json that its size follows from."""

    peft_type: str
    base_model_name_or_path: str | None = None
    r: int = 8
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    rank_pattern: dict[str, int] | None = None
    use_dora: bool = False
    lora_bias: bool = False
    modules_to_save: list[str] | None = None
    target_parameters: list[str] | None = None


@dataclass(frozen=True, slots=True)
class _Tensors:
    """Parameters of an adapter.

    Attributes:
        params: by path in the base's module tree.
        copies: of whole modules that take the place of the base's.
        size: bytes of all, or None where only the config is there.
    """

    params: Mapping[str, int]
    copies: int
    size: int | None


def count_adapter(text: str, folder: Path, count_base: Callable[[str], CountedModel]) -> CountedModel:
    """Count an adapter and its base.

    Args:
        text: what the user called it.
        folder: with adapter_config.json.
        count_base: counts the model that the adapter is of.

    Raises:
        ModelError: damaged, its base cannot be counted, or its size does not follow from what is there.
    """
    config = _read_config(text, folder)
    base_text = _base_of(text, folder, config)
    try:
        base = count_base(base_text)
    except ModelError as error:
        raise ModelError(f"{text}: its base cannot be counted: {error}") from error
    if base.facts is None:
        raise ModelError(f"{text}: its base {base_text} is a routing scheme, not a model")
    weights = folder / ADAPTER_WEIGHTS
    own = _of_weights(weights) if weights.is_file() else _of_config(text, config, base_text)
    facts = _with_adapter(text, base.facts, own, _words(config))
    stored = base.stored_bytes + own.size if base.stored_bytes is not None and own.size is not None else None
    reason = f"base: {base.stored_reason}; adapter: " + (f"{own.size} bytes" if own.size is not None else "not there")
    name = folder.resolve().name
    return CountedModel(name=name, facts=replace(facts, name=name), stored_bytes=stored, stored_reason=reason)


def _read_config(text: str, folder: Path) -> _Config:
    values = read_object(text, folder / ADAPTER_CONFIG)
    try:
        config = msgspec.convert(values, _Config)
    except msgspec.ValidationError as error:
        raise ModelError(f"{text}: {ADAPTER_CONFIG} is not as PEFT writes it: {error}") from error
    if not 1 <= config.r <= 2**20 or any(not 1 <= rank <= 2**20 for rank in (config.rank_pattern or {}).values()):
        raise ModelError(f"{text}: {ADAPTER_CONFIG}: r: found {config.r}; 1 or more is allowed")
    return config


def _base_of(text: str, folder: Path, config: _Config) -> str:
    """The base as something that can be counted: a folder (also beside the adapter), a hub id, a row of the list."""
    named = config.base_model_name_or_path
    if not named:
        raise ModelError(f"{text}: {ADAPTER_CONFIG} names no base_model_name_or_path, so its base is not known")
    places = (Path(named), folder / named, folder.parent / named)  # the first alone where it is absolute
    there = (place for place in places if os.path.isdir(place))
    found = next((place for place in there if place.resolve() != folder.resolve()), None)
    if found is not None and is_adapter(found):
        raise ModelError(f"{text}: its base {named!r} is an adapter too; merge that one first")
    if found is not None:
        return str(found)
    if find_system(named) is None and (named.count("/") != 1 or named.startswith((".", "/", "~"))):
        told = f"{named[:100]!r} is no folder here, no hub id and not in `moeprof params --list`"
        raise ModelError(f"{text}: its base {told}")
    return named


def _words(config: _Config) -> str:
    targets = config.target_modules
    on = ", ".join(sorted(targets)[:8]) if isinstance(targets, list) else targets
    rank = f", rank {config.r}" if config.peft_type == "LORA" else ""
    words = f"{config.peft_type}{rank}{f' on {on}' if on else ''}, of base {config.base_model_name_or_path}"
    return "".join(letter if letter.isprintable() else "?" for letter in words)


def _of_weights(file: Path) -> _Tensors:
    from moeprof.capture.models.counting.stored_size import stored_tensors

    header = stored_tensors(file)
    if header is None:
        raise ModelError(f"{file}: no header as safetensors files have it; damaged, fetch it again")
    params, copies = dict[str, int](), 0
    for name, tensor in header.items():
        if _OWN.search(name):
            params[name.removeprefix("base_model.model.")] = tensor.params
        else:
            copies += tensor.params
    return _Tensors(params, copies, sum(tensor.size for tensor in header.values()))


def _of_config(text: str, config: _Config, base: str) -> _Tensors:
    """LoRA's matrices, from the modules of the base that the config names."""
    if config.peft_type != "LORA":
        kind = f"the size of {config.peft_type[:40]!r}"
        raise ModelError(f"{text}: {ADAPTER_WEIGHTS} is not there, and {kind} stands only there")
    if config.target_parameters:
        raise ModelError(f"{text}: {ADAPTER_WEIGHTS} is not there, and its target_parameters do not say their shapes")
    model = _base_on_meta(text, base)
    params: dict[str, int] = {}
    matched: set[str] = set()
    head = model.get_output_embeddings()
    for path, module in model.named_modules():
        shape = _in_out(module)
        target = None if shape is None else _target(config, path, module is head or hasattr(module, "num_embeddings"))
        if shape is None or target is None:
            continue
        matched.add(target)
        inputs, outputs = shape
        params[path] = _rank(config, path) * (inputs + outputs) + outputs * (config.use_dora + config.lora_bias)
    wanted = config.target_modules
    unmatched = [one for one in wanted if one not in matched] if isinstance(wanted, list) else []
    if unmatched or not params:
        what = ", ".join(map(repr, unmatched[:4])) or f"of target_modules {wanted!r}"
        raise ModelError(f"{text}: {what}: no linear module of its base, so {ADAPTER_WEIGHTS} is needed to count it")
    saved = config.modules_to_save or ()
    copies = sum(
        p.numel() for path, m in model.named_modules() if path.rpartition(".")[2] in saved for p in m.parameters()
    )
    return _Tensors(params, copies, None)


def _base_on_meta(text: str, base: str) -> Any:
    from moeprof.capture.models.find import hub_file, read_config
    from moeprof.capture.models.meta import build_on_meta, config_object

    system = find_system(base)
    file = Path(base) / CONFIG if Path(base).is_dir() else None
    if file is None and (system is None or system.config is None):
        file = hub_file(text, base, CONFIG, None)
    values = read_config(text, file) if file is not None else None if system is None else system.config
    if values is None:
        raise ModelError(
            f"{text}: {ADAPTER_WEIGHTS} is not there, and its base {base} has no config to build modules of"
        )
    return build_on_meta(config_object(dict(values), name=text), name=text)


def _in_out(module: Any) -> tuple[int, int] | None:
    """(inputs, outputs) of a module that LoRA can stand beside."""
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return module.in_features, module.out_features
    if hasattr(module, "num_embeddings") and hasattr(module, "embedding_dim"):
        return module.num_embeddings, module.embedding_dim
    if hasattr(module, "nx") and hasattr(module, "nf"):
        return module.nx, module.nf
    return None


def _target(config: _Config, path: str, is_end: bool) -> str | None:
    """What of target_modules names a module, by PEFT's rules; None where nothing does, or its layer is left out."""
    if _is_named(config.exclude_modules, path) or not _is_layer(config.layers_to_transform, path):
        return None
    wanted = config.target_modules
    if wanted == "all-linear":
        return None if is_end else wanted  # neither the table of tokens nor the head
    return _is_named(wanted, path)


def _is_named(names: list[str] | str | None, path: str) -> str | None:
    if isinstance(names, str):
        try:
            return names if re.fullmatch(names, path) else None
        except re.error:
            return None
    return next((one for one in names or () if path == one or path.endswith(f".{one}")), None)


def _is_layer(layers: list[int] | int | None, path: str) -> bool:
    match = _LAYER.search(path)
    wanted = [layers] if isinstance(layers, int) else layers
    return wanted is None or (match is not None and int(match.group(1)) in wanted)


def _rank(config: _Config, path: str) -> int:
    for name, rank in (config.rank_pattern or {}).items():
        if path == name or path.endswith(f".{name}"):
            return rank
    return config.r


def _with_adapter(text: str, base: ModelFacts, own: _Tensors, words: str) -> ModelFacts:
    """The base with an adapter beside it: in every token's way but for what stands beside single experts."""
    of_experts: dict[int, int] = {}
    everywhere = 0
    for path, params in own.params.items():
        layer = _LAYER.search(f".{path}")
        if _EXPERTS.search(path) and layer is not None:
            of_experts[int(layer.group(1))] = of_experts.get(int(layer.group(1)), 0) + params
        else:
            everywhere += params
    layers = tuple(_beside_experts(text, layer, of_experts) for layer in base.moe_layers)
    if of_experts:
        raise ModelError(f"{text}: its adapter is on experts of layer {min(of_experts)}, where the base has none")
    idle = sum((x.num_experts - x.top_k) * x.expert_params for x in layers)
    idle -= sum((x.num_experts - x.top_k) * x.expert_params for x in base.moe_layers)
    added, active = sum(own.params.values()), sum(own.params.values()) - idle
    told = [
        f"with an adapter, unmerged: {words}: {base.total_params} parameters of the base and {added} of the adapter"
    ]
    if own.copies:
        told.append(f"{own.copies} more are whole modules (modules_to_save), which take the place of the base's")
    return replace(
        base,
        total_params=base.total_params + added,
        active_params=base.active_params + active,
        active_params_no_embedding=base.active_params_no_embedding + active,
        active_params_no_embedding_no_head=base.active_params_no_embedding_no_head + active,
        params_by_group=_more(base.params_by_group, everywhere, added - everywhere, 1),
        bytes_by_group=_more(base.bytes_by_group, everywhere, added - everywhere, 2),
        moe_layers=layers,
        notes=(*told, *base.notes),
    )


def _more(groups: Mapping[str, int], everywhere: int, experts: int, each: int) -> dict[str, int]:
    grown = dict(groups)
    grown["other"] = grown.get("other", 0) + everywhere * each
    grown["routed_experts"] = grown.get("routed_experts", 0) + experts * each
    return grown


def _beside_experts(text: str, layer: MoeLayerFacts, of_experts: dict[int, int]) -> MoeLayerFacts:
    """A layer whose experts are larger by what the adapter has beside each; takes it out of ``of_experts``."""
    number = _LAYER.search(f".{layer.name}.")
    own = of_experts.pop(int(number.group(1)), 0) if number is not None else 0
    if own % layer.num_experts:
        raise ModelError(
            f"{text}: its adapter is on some experts of {layer.name} only; active parameters do not follow"
        )
    each = own // layer.num_experts
    return replace(layer, expert_params=layer.expert_params + each, expert_bytes=layer.expert_bytes + 2 * each)
