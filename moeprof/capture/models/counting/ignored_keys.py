"""Keys of a config.json that speak of the model's shape and that the installed class does not read.

transformers keeps unknown keys as attributes and says nothing, so a count could silently be that of another model.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from contextlib import suppress
from functools import cache
from typing import Any

from transformers import PreTrainedConfig

_OF_SHAPE = re.compile(
    r"expert|moe|layer|head|hidden|intermediate|_dim$|_size$|rank|window|freq|top_?k|nextn|mtp|depth"
)
_OF_SOMETHING_ELSE = re.compile(
    r"norm|eps$|loss|coef|dropout|drop_|scal|token|init|ep_size|pretraining|act|output_|return_|rope|transformers|image|"
    r"patch|vision|audio|video|chunk_size_feed"
)
_TOWER = re.compile(r"vision|audio|video")
_NEXT_TOKENS = re.compile(r"nextn|mtp")


def ignored_keys(values: dict[str, Any], built: Any) -> tuple[str, ...]:
    """One note per config that has such keys, the nested one of the language model too; empty where all are read.

    Args:
        values: of config.json.
        built: the config object made of them.
    """
    nested = values.get("text_config")
    text = built.get_text_config(decoder=True)
    found = _ignored(values, built)
    if isinstance(nested, dict) and text is not built:
        found |= {f"text_config.{key}": value for key, value in _ignored(nested, text).items()}
    if not found:
        return ()
    named = ", ".join(f"{key} {value}" for key, value in found.items())
    return (f"keys of its config without effect in {type(built).__name__}, so the count is without them: {named}",)


def _ignored(values: dict[str, Any], built: Any) -> dict[str, Any]:
    parts = [
        part for name, part in vars(built).items() if isinstance(part, PreTrainedConfig) and not _TOWER.search(name)
    ]
    found = {}
    for key, value in values.items():
        speaks = _OF_SHAPE.search(key) and not _OF_SOMETHING_ELSE.search(key)
        if not speaks or not value or isinstance(value, (dict, list, str)):
            continue
        if key == "max_window_layers" and not values.get("use_sliding_window"):
            continue
        holders = [part for part in parts if key in _fields(type(part))]
        if holders and key not in _fields(type(built)):  # flat beside a nested config: does the class hand it down?
            has_effect = any(getattr(holder, key, None) == value for holder in holders)
        else:
            has_effect = _is_read(key, type(built))
        if not has_effect:
            found[key] = value
    return found


def _fields(config_class: Any) -> set[str]:
    known = {f.name for f in dataclasses.fields(config_class)} if dataclasses.is_dataclass(config_class) else set()
    return known | set(getattr(config_class, "attribute_map", {}))


def _is_read(key: str, config_class: Any) -> bool:
    """True for a field of the class, another name of one, or a key that its code takes from what it is given.

    Layers that predict further tokens have fields in classes that never build them: there the model's code decides.
    """
    aliases = {key} | {old for old, new in getattr(config_class, "attribute_map", {}).items() if new == key}
    aliases |= {new for old, new in getattr(config_class, "attribute_map", {}).items() if old == key}
    of_config, of_model = _sources(config_class)
    if _NEXT_TOKENS.search(key):
        return any(re.search(rf"\.{alias}\b", of_model) for alias in aliases)
    if key in _fields(config_class):
        return True
    return re.search(rf"[\"']{key}[\"']|\.{key}\b", of_config + of_model) is not None


@cache
def _sources(config_class: Any) -> tuple[str, str]:
    """The text of the files that define the config and the model: its own, and those of the classes it is made of."""
    texts: tuple[list[str], list[str]] = ([], [])
    for base in config_class.__mro__:
        if base is PreTrainedConfig:
            break
        name = base.__module__
        for found, module in zip(texts, (name, name.replace(".configuration_", ".modeling_")), strict=True):
            with suppress(ImportError, OSError, TypeError):
                found.append(inspect.getsource(importlib.import_module(module)))
    return "\n".join(texts[0]), "\n".join(texts[1])
