"""The language model of a checkpoint that has other parts (vision, sound): which class builds it, what is left out.

A text token passes the language model and its head only. A run never gives a model anything but text, so the towers are
taken out while they have no memory yet, and the rest of the class computes as before.
"""

from __future__ import annotations

import copy
from typing import Any

import transformers
from torch import nn

from moeprof.capture import compat

LEFT_OUT = "moeprof_left_out"
AUTO_CLASSES = ("AutoModelForCausalLM", "AutoModelForImageTextToText")


def continuing_classes(config: Any) -> tuple[Any, tuple[Any, ...]]:
    """The auto class whose models continue a text for this kind of config, and those models; ``(None, ())`` if none."""
    for name in AUTO_CLASSES:
        auto = getattr(transformers, name)
        classes = compat.mapped_classes(auto, config)
        if classes:
            return auto, classes
    return None, ()


def why_not_continued(config: Any) -> str | None:
    """Why nothing in transformers continues a text with this kind of config, or None where something does."""
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder; only decoder models continue a prompt"
    if continuing_classes(config)[1]:
        return None
    return (
        f"transformers {transformers.__version__} has no class that continues a text for model_type "
        f"{getattr(config, 'model_type', '?')!r}"
    )


def language_model_config(config: Any) -> Any:
    """The config of the language model alone, where transformers has a class for that; else None."""
    text = config.get_text_config(decoder=True)
    if text is config or getattr(config, "is_encoder_decoder", False):
        return None
    if not compat.mapped_classes(transformers.AutoModelForCausalLM, text):
        return None
    alone = copy.deepcopy(text)
    alone.tie_word_embeddings = config.tie_word_embeddings  # the whole model decides
    return alone


def other_parts(model: Any) -> dict[str, int]:
    """Parameters of each part of a model that no text token passes, by path: all beside language model and head.

    Empty for a model whose config describes a language model alone.
    """
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "get_text_config") or getattr(config, "is_encoder_decoder", False):
        return {}
    if config.get_text_config(decoder=True) is config or not hasattr(model, "get_decoder"):
        return {}
    decoder = model.get_decoder()
    home = next((path for path, module in model.named_modules() if module is decoder), "")
    ends = (end for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None)
    text = {id(p) for part in (decoder, *ends) for p in part.parameters()}
    found: dict[str, int] = {}
    for path, parameter in model.named_parameters() if home else ():
        if id(parameter) not in text:
            part = _beside(path, home)
            found[part] = found.get(part, 0) + parameter.numel()
    return found


def _beside(path: str, home: str) -> str:
    """The part of the model that holds a parameter: one step beyond what its path shares with the language model's."""
    parts, shared = path.split("."), 0
    for ours, theirs in zip(parts, home.split("."), strict=False):
        if ours != theirs:
            break
        shared += 1
    return ".".join(parts[: shared + 1])


def left_out(model: nn.Module) -> dict[str, int]:
    """Parameters of the parts that :func:`leave_out_other_parts` took out, by path."""
    found: dict[str, int] = getattr(model, LEFT_OUT, {})
    return found


def leave_out_other_parts(model: nn.Module) -> None:
    """Take the parts out that no text token passes; what asks for them finds an empty module, see ``left_out``."""
    parts = other_parts(model)
    object.__setattr__(model, LEFT_OUT, left_out(model) | parts)
    for path in parts:
        home, _, name = path.rpartition(".")
        owner = model.get_submodule(home)
        if name in owner._parameters:
            owner.register_parameter(name, None)
        else:
            setattr(owner, name, nn.Module())
