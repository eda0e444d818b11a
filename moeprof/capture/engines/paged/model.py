"""What a paged engine does to a model: learns its attention layers, takes its attention over, compiles its layers.

The layers' attention is seen in one forward of one token. torch.compile makes few kernels of norms, rotations, routers
and activations. Layers are compiled one by one because they are alike: what is compiled for the first serves all. The
attention stays outside (its plan changes with every step), so a layer is two pieces.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from moeprof.capture import compat
from moeprof.capture.engines.base import BatchLayout, ListenerSet
from moeprof.capture.engines.paged import attention
from moeprof.capture.engines.paged.cache import INDEX, AttentionFacts, PagedCache, check_layers, hub_of

RECOMPILES = 64  # batch sizes and layers of a kind; beyond it a piece runs uncompiled, silently


def decoder_layers(model: Any) -> nn.ModuleList | None:
    """The stack of layers: the list of modules whose length is the number of layers; None when there is no such."""
    num_layers = model.config.get_text_config(decoder=True).num_hidden_layers
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == num_layers]
    return lists[0] if lists else None


def compile_layers(model: Any, backend: str = "inductor") -> str | None:
    """Compile in place; once is enough for all engines of a model. ``layers``, or None when no stack was found."""
    layers = decoder_layers(model)
    if layers is None:
        return None
    compat.allow_recompiles(RECOMPILES)
    for layer in layers:
        if not compat.is_compiled(layer):
            cast("Any", layer).compile(backend=backend)
    return "layers"


def as_written(model: Any) -> None:
    """Take the compiled form away: the layers run as they are written."""
    for layer in decoder_layers(model) or ():
        compat.forget_compiled(layer)


ONE_TOKEN = BatchLayout(query_tokens=(1,), requests=(0,), is_prefill=(True,), past_tokens=(0,))


@torch.inference_mode()
def attention_layers(model: Any, listeners: ListenerSet) -> list[AttentionFacts]:
    """Every layer's attention as the model calls it, in order; each module then knows its place.

    Raises:
        UnsupportedModelError: not one call per layer.
    """
    hub, before = hub_of(model), compat.attention_of(model.config.get_text_config())
    attention.register()
    model.set_attn_implementation(attention.NAME)
    hub.seen = []
    listeners.before_forward(ONE_TOKEN)  # what replaces picks must know what the forward holds
    try:
        token = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
        model(input_ids=token, position_ids=token, use_cache=False)
        check_layers(hub.seen, model)
        found = hub.seen
    finally:
        hub.seen = None
        if not hub.caches:
            model.set_attn_implementation(before)
    for index, facts in enumerate(found):
        object.__setattr__(facts.module, INDEX, index)
    return found


def take_model(model: Any, cache: PagedCache) -> None:
    """From here on the model attends through ``cache`` whenever it is the active one."""
    hub = hub_of(model)
    if not hub.caches:
        hub.before = compat.attention_of(model.config.get_text_config())
        model.set_attn_implementation(attention.NAME)
    hub.caches.append(cache)


def leave_model(model: Any, cache: PagedCache) -> None:
    """Forget the cache; the last one to leave gives the model its own attention back."""
    hub = hub_of(model)
    hub.caches = [other for other in hub.caches if other is not cache]
    if hub.active is cache:
        hub.active = None
    if not hub.caches:
        model.set_attn_implementation(hub.before)
