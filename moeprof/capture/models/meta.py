"""Models without weights: built on the meta device from a config, in seconds, at any size."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from moeprof.capture import compat
from moeprof.capture.models.find import find_model
from moeprof.capture.models.parameters import model_facts
from moeprof.capture.models.shapes import EXPERT_COUNT_KEYS, nested_key
from moeprof.core.errors import ModelError, UnsupportedModelError
from moeprof.core.model_facts import ModelFacts, MoeLayerFacts
from moeprof.core.workload.models import ModelSpec

# From this many experts per layer on, code that keeps each expert as its own module takes tens of seconds to build.
MANY_EXPERTS = 1024
MOST_BUILT_LAYERS = 512
# What constructors of modelling classes raise on a config that makes no sense to them.
_BUILD_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
_KERNELS = {"_attn_implementation", "attn_implementation", "_attn_implementation_autoset", "use_flash_attention_2"}
_AUTO_CLASSES = ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModelForImageTextToText", "AutoModel")


def config_object(values: dict[str, Any], *, name: str) -> Any:
    """The transformers config object of the values of a config.json.

    A ``model_type`` that transformers does not know is built as the class that ``architectures`` names, if it has that,
    else as the language model whose config is nested in it (``stand_in_notes`` tells which).

    Args:
        values: of config.json.
        name: what to call the model in messages.

    Raises:
        UnsupportedModelError: transformers knows neither the model_type nor the class, nor those of a nested config.
        ModelError: its class refuses the values.
    """
    part = part_with_class(values)
    if not has_class(part):
        raise UnsupportedModelError(f"model {name}: {why_unknown(values)}")
    rest = _without_kernels(_with_ties(values, part))
    model_type = rest.pop("model_type", None)
    try:
        if model_type not in transformers.CONFIG_MAPPING:
            return class_named_by(part).config_class(**rest)
        return transformers.AutoConfig.for_model(model_type, **rest)
    except (*_BUILD_ERRORS, StrictDataclassError) as error:
        told = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
        first = " ".join(str(told).split())[:200]
        raise ModelError(f"model {name}: the config cannot be used ({type(told).__name__}: {first})") from error


def _without_kernels(values: dict[str, Any]) -> dict[str, Any]:
    """A config without the attention kernel that it asks for, which may not be installed and computes the same."""
    kept = {key: value for key, value in values.items() if key not in _KERNELS}
    return {key: _without_kernels(value) if isinstance(value, dict) else value for key, value in kept.items()}


def has_class(values: dict[str, Any]) -> bool:
    """Whether transformers has a class for a config: of its model_type, or one that its ``architectures`` name.

    Code that comes with a checkpoint is never run to count it, so a type that only such code knows has none.
    """
    return values.get("model_type") in transformers.CONFIG_MAPPING or class_named_by(values) is not None


def part_with_class(values: dict[str, Any]) -> dict[str, Any]:
    """The outermost part of a config.json that transformers has a class for: the whole, or a nested language model."""
    part = values
    while not has_class(part) and (key := nested_key(part)) is not None:
        part = part[key]
    return part if has_class(part) else values


def _with_ties(whole: dict[str, Any], nested: dict[str, Any]) -> dict[str, Any]:
    """A part of a config, embeddings tied as the whole says where it does not say it itself."""
    key = "tie_word_embeddings"
    return {key: whole[key], **nested} if key in whole else dict(nested)


def class_named_by(values: dict[str, Any]) -> Any:
    """The class of transformers that ``architectures`` of a config.json names, or None."""
    for named in values.get("architectures") or ():
        found = getattr(transformers, str(named), None)
        if getattr(found, "config_class", None) is not None:
            return found
    return None


def stand_in_notes(values: dict[str, Any], built: Any) -> tuple[str, ...]:
    """That another class than that of its model_type was taken, and which; empty where transformers knows the type."""
    known, part = values.get("model_type"), part_with_class(values)
    if known in transformers.CONFIG_MAPPING or not has_class(part):
        return ()
    what = f"model_type {known!r} is not known" if known else "its config names no model_type"
    if part is values:
        return (f"{what}: counted as {class_named_by(values).__name__}, which `architectures` names",)
    path, inner = [], values
    while inner is not part:
        path.append(str(nested_key(inner)))
        inner = inner[path[-1]]
    own = f"{what}: the language model alone, of its {'.'.join(path)} ({built.model_type}); other parts are not counted"
    return (own, *stand_in_notes(part, built))


def why_unknown(values: dict[str, Any], *, to_run: bool = False) -> str:
    """Why no class is there for a config.json, and what helps; only what the file itself says.

    Args:
        values: of config.json.
        to_run: True where the model was to be run, not counted.
    """
    unknown, described = _unknown(values), "describe its layers (`moeprof params --help` says how)"
    written_by = str(values.get("transformers_version") or "")
    if values.get("auto_map") and to_run:
        return (
            f"{unknown}: its code comes with the checkpoint (`auto_map`); read it, then set `trust_remote_code: true`"
        )
    if nested_key(values) is not None and to_run:
        return f"{unknown}; its language model ({nested_key(values)}) can be run alone, with `weights: random`"
    if values.get("auto_map"):
        why = "its code comes with the checkpoint (`auto_map`), and moeprof runs no such code to count a model"
    elif _version(written_by) > _version(transformers.__version__):
        newer = f"transformers {written_by}, which wrote the config, is newer"
        return f"{unknown}: {newer}; upgrade transformers, or {described}"
    elif _version(written_by):
        why = (
            f"transformers {written_by}, which wrote the config, is no newer, so a newer one need not have it, and the "
            "file names no code of its own (`auto_map`)"
        )
    else:
        why = "the file says neither which transformers wrote it nor that its code comes with it (`auto_map`)"
    return f"{unknown}: {why}; {described}"


def _unknown(values: dict[str, Any]) -> str:
    named = " ".join(", ".join(str(a) for a in values.get("architectures") or ()).split())
    wanted = f"model_type {values.get('model_type')!r}" + (f" ({named})" if named else "")
    return f"transformers {transformers.__version__} has no class for {wanted}"


def _version(text: str) -> tuple[int, ...]:
    """The first three numbers of a version; empty where there are none."""
    return tuple(int(part) for part in re.findall(r"\d{1,9}", text)[:3])


def facts_from_config(
    config: Any,
    *,
    name: str,
    source: str,
    dtype: str = "bfloat16",
    notes: Sequence[str] = (),
    allocated: bool = True,
) -> ModelFacts:
    """Count the model that a config describes, without weights.

    Args:
        config: a transformers config object.
        name: what to call it.
        source: where the config came from.
        dtype: dtype that weights would have; for a config with ``quantization_config`` bytes are as in this dtype.
        notes: more for the reader.
        allocated: count what the class allocates for experts that compute nothing; no checkpoint holds it.

    Raises:
        UnsupportedModelError: no class of the installed transformers builds it, or its experts are not understood.
        ModelError: the class refuses the config.
    """
    counts = {key: getattr(config, key, None) for key in EXPERT_COUNT_KEYS}
    key = next((key for key, count in counts.items() if isinstance(count, int) and count >= MANY_EXPERTS), None)
    if key is None:
        model = build_on_meta(config, name=name, dtype=dtype)
        return model_facts(model, name=name, source=source, weights="random", notes=notes, allocated=allocated)
    return _extrapolated(config, key, name=name, source=source, dtype=dtype, notes=notes)


def facts_elsewhere(spec: ModelSpec, tokenizer_hash: str | None, dtype: str = "bfloat16") -> ModelFacts:
    """A model that another process or engine holds, counted from its config; for engines that load no weights here."""
    source = find_model(spec, None)
    config = config_object(source.config, name=spec.name)
    notes = stand_in_notes(source.config, config)
    facts = facts_from_config(config, name=spec.name, source=source.description, dtype=dtype, notes=notes)
    return replace(facts, tokenizer_hash=tokenizer_hash, weights=spec.weights)


def total_with_other_parts(config: Any, *, name: str) -> int | None:
    """Parameters of the whole model of a config that has other parts (vision, sound) beside a language model.

    Args:
        config: a transformers config object.
        name: what to call the model in messages.

    Returns:
        None for a model that is a language model alone, or when no class builds the whole.
    """
    if getattr(config, "text_config", None) is None:
        return None
    named = (getattr(transformers, a) for a in getattr(config, "architectures", None) or () if hasattr(transformers, a))
    whole: Any = next((built for kind in named if (built := compat.from_config_of(kind)) is not None), None)
    if whole is None and compat.mapped_classes(transformers.AutoModelForImageTextToText, config):
        whole = transformers.AutoModelForImageTextToText.from_config
    if whole is None:
        return None
    model = build_on_meta(config, name=name, builder=whole)
    return sum(parameter.numel() for parameter in model.parameters())


def build_on_meta(config: Any, *, name: str, dtype: str = "bfloat16", builder: Any = None) -> nn.Module:
    """The model of a config on the meta device, embeddings tied where the config says so.

    Args:
        config: a transformers config object.
        name: what to call the model in messages.
        dtype: of the weights.
        builder: makes the model of a config; the class that transformers has for it when left out.

    Raises:
        UnsupportedModelError: no transformers class for it.
        ModelError: the class refuses the config.
    """
    layers = getattr(config, "num_hidden_layers", None)
    if isinstance(layers, int) and layers > MOST_BUILT_LAYERS:
        raise ModelError(
            f"model {name}: num_hidden_layers: found {layers:,}; models of at most {MOST_BUILT_LAYERS} layers are built"
        )
    config = copy.deepcopy(config)
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
    build = builder or _builder(config, name)
    try:
        with torch.device("meta"):
            model: Any = build(config, dtype=getattr(torch, dtype))
    except KeyError as error:  # most often the name of an activation
        raise ModelError(f"model {name}: the config cannot be built: its class knows no {error}") from error
    except _BUILD_ERRORS as error:
        first = " ".join(str(error).split())[:200]
        raise ModelError(f"model {name}: the config cannot be built ({type(error).__name__}: {first})") from error
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    assert isinstance(model, nn.Module)
    return model


def _builder(config: Any, name: str) -> Any:
    """What builds a model of this config: the auto class that knows it, else the class it names."""
    for auto in _AUTO_CLASSES[:-1]:
        if compat.mapped_classes(getattr(transformers, auto), config):
            return getattr(transformers, auto).from_config
    for architecture in getattr(config, "architectures", None) or ():
        if hasattr(transformers, architecture):
            return compat.from_config_of(getattr(transformers, architecture))
    if compat.mapped_classes(transformers.AutoModel, config):
        return transformers.AutoModel.from_config
    raise UnsupportedModelError(
        f"model {name}: transformers {transformers.__version__} reads configs of model_type "
        f"{getattr(config, 'model_type', '?')!r} and builds no model of them; describe its layers "
        "(`moeprof params --help` says how)"
    )


def _extrapolated(config: Any, key: str, *, name: str, source: str, dtype: str, notes: Sequence[str]) -> ModelFacts:
    """Counts at E experts from counts at three small numbers: every group is a + b * E, which the third one checks."""
    num_experts = getattr(config, key)
    low = max(8, 2 * max((int(getattr(config, k, 0) or 0) for k in ("num_experts_per_tok", "top_k")), default=0))
    small = []
    for count in (low, low + 1, low + 3):
        reduced = copy.deepcopy(config)
        setattr(reduced, key, count)
        model = build_on_meta(reduced, name=name, dtype=dtype)
        small.append(model_facts(model, name=name, source=source, weights="random", notes=notes))
    at_low, at_next, check = small
    if any(
        _line(at_low.params_by_group[g], at_next.params_by_group[g], 3) != n for g, n in check.params_by_group.items()
    ):
        model = build_on_meta(config, name=name, dtype=dtype)
        return model_facts(model, name=name, source=source, weights="random", notes=notes)
    return _at(small[0], small[1], num_experts - low, num_experts)


def _line(first: int, second: int, steps: int) -> int:
    return first + (second - first) * steps


def _at(low: ModelFacts, up: ModelFacts, steps: int, num_experts: int) -> ModelFacts:
    """``low`` moved ``steps`` experts further, on the line through ``low`` and ``up``."""

    def layer(a: MoeLayerFacts, b: MoeLayerFacts) -> MoeLayerFacts:
        router = _line(a.router_params, b.router_params, steps)
        return replace(a, num_experts=num_experts, router_params=router)

    numbers: dict[str, Any] = {
        field: _line(getattr(low, field), getattr(up, field), steps)
        for field in (
            "total_params",
            "active_params",
            "active_params_no_embedding",
            "active_params_no_embedding_no_head",
        )
    }
    return replace(
        low,
        **numbers,
        params_by_group={g: _line(n, up.params_by_group[g], steps) for g, n in low.params_by_group.items()},
        bytes_by_group={g: _line(n, up.bytes_by_group[g], steps) for g, n in low.bytes_by_group.items()},
        moe_layers=tuple(layer(a, b) for a, b in zip(low.moe_layers, up.moe_layers, strict=True)),
    )
