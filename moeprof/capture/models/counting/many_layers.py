"""Counts of a config with more layers than any model has: a few are built, and the rest are those again.

Building a layer takes milliseconds, whatever it is for, and a config of a few bytes can ask for a hundred thousand. Its
layers are counted by multiplication where they are alike: where nothing in the config speaks of single layers beyond
the first ``PERIOD``, lists of one value per layer repeat with it, and three counts lie on one line.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from moeprof.core.errors import ModelError
from moeprof.core.model_facts import LayerAttention, ModelFacts, MoeLayerFacts

MANY_LAYERS = 256
PERIOD = 12  # repeats of 1, 2, 3, 4, 6 and 12 layers
_KEYS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
_OF_LAYERS = re.compile(r"layer|dense|replace|period|freq|interval|step|every|offset")
_OF_SIZES = re.compile(r"size|dim|rank|experts|eps|drop")


def many_layers(
    config: dict[str, Any], facts_of: Callable[[dict[str, Any]], ModelFacts], *, name: str
) -> ModelFacts | None:
    """The facts of a config with very many layers; None for one with as many as models have.

    Args:
        config: the values of a config.json.
        facts_of: counts one by building it.
        name: what to call the model in messages.

    Raises:
        ModelError: its layers are not alike.
    """
    text = config.get("text_config")
    holder = text if isinstance(text, dict) else config
    key = next((key for key in _KEYS if type(holder.get(key)) is int and holder[key] > MANY_LAYERS), None)
    if key is None:
        return None
    layers: int = holder[key]
    low = PERIOD + layers % PERIOD

    def counted(number: int) -> ModelFacts:
        cut = {other: _cut(other, value, key, layers, number, name) for other, value in holder.items()}
        return facts_of(cut if holder is config else {**config, "text_config": cut})

    first, second, third = (counted(low + step * PERIOD) for step in range(3))
    if _moved(first, second, 2) != replace(third, notes=first.notes):
        raise _not_alike(name, key, layers)
    return _moved(first, second, (layers - low) // PERIOD)


def _cut(other: str, value: Any, key: str, layers: int, number: int, name: str) -> Any:
    """A value of the config as a model of ``number`` layers has it."""
    if other == key:
        return number
    if isinstance(value, list) and len(value) == layers:
        if value[PERIOD:] != value[:-PERIOD]:
            raise _not_alike(name, other, layers)
        return value[:number]
    numbers = value if isinstance(value, list) else [value]
    whole = [one for one in numbers if type(one) is int]
    if _OF_LAYERS.search(other) and not _OF_SIZES.search(other) and max(whole, default=0) > PERIOD:
        raise _not_alike(name, other, layers)
    return value


def _not_alike(name: str, key: str, layers: int) -> ModelError:
    return ModelError(
        f"model {name}: {key}: {layers:,} layers, which are not alike; more than {MANY_LAYERS} are counted only where "
        f"they repeat every {PERIOD}"
    )


def _moved(low: ModelFacts, up: ModelFacts, steps: int) -> ModelFacts:
    """``low`` with ``steps`` periods more of what ``up`` has more than it."""
    own = len(low.moe_layers)
    added = up.moe_layers[own:]
    more = [_shifted(layer, step * PERIOD) for step in range(steps) for layer in added]
    changed = {
        field.name: _line(getattr(low, field.name), getattr(up, field.name), steps)
        for field in fields(ModelFacts)
        if field.name not in ("moe_layers", "notes", "vocab_size", "hidden_size")
    }
    return replace(low, **changed, moe_layers=(*low.moe_layers, *more))


def _shifted(layer: MoeLayerFacts, by: int) -> MoeLayerFacts:
    return replace(layer, name=re.sub(r"\.(\d+)\.", lambda found: f".{int(found[1]) + by}.", layer.name, count=1))


def _line(low: Any, up: Any, steps: int) -> Any:
    """Counts, tables of counts and numbers of layers on the line through two models; all else is equal."""
    if type(low) is int and type(up) is int:
        return low + (up - low) * steps
    if isinstance(low, dict) and isinstance(up, dict):
        return {group: _line(number, up.get(group, number), steps) for group, number in low.items()}
    if isinstance(low, tuple) and low and isinstance(low[0], LayerAttention) and len(low) == len(up):
        return tuple(replace(a, layers=_line(a.layers, b.layers, steps)) for a, b in zip(low, up, strict=True))
    return low
