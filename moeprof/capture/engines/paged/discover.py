"""Learns a model's attention layers from one forward of one token, and switches the model to paged attention."""

from __future__ import annotations

from typing import Any

import torch

from moeprof.capture import compat
from moeprof.capture.engines.base import BatchLayout, ListenerSet
from moeprof.capture.engines.paged import attention
from moeprof.capture.engines.paged.cache import INDEX, AttentionFacts, PagedCache, check_layers, hub_of

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
