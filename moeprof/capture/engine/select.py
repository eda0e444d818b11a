"""Which engine runs a model: continuous batching where the architecture allows it, static batches elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moeprof.capture.engine.base import Engine, ListenerSet
from moeprof.capture.engine.continuous import ContinuousEngine
from moeprof.capture.engine.static import StaticEngine, needs_static
from moeprof.core.errors import UnsupportedModelError
from moeprof.core.workload import EngineSettings

DEFAULT_KV_TOKENS = 16384


def build_engine(
    model: Any, settings: EngineSettings, listeners: ListenerSet | None = None, eos_ids: Sequence[int] = ()
) -> Engine:
    """The engine for ``model``. ``settings.batching: auto`` asks the model's structure; the reason is in the facts.

    Raises:
        UnsupportedModelError: continuous batching was asked for and the architecture cannot run in it.
    """
    kv_tokens = settings.kv_tokens or DEFAULT_KV_TOKENS
    reason = needs_static(model)
    if settings.batching == "continuous" and reason is not None:
        raise UnsupportedModelError(f"{type(model).__name__} cannot run in continuous batches: {reason}")
    if settings.batching == "static" or reason is not None:
        return StaticEngine(
            model,
            max_batch=settings.max_batch,
            max_sequence_tokens=_longest(model, kv_tokens),
            max_batch_tokens=settings.max_batch_tokens,
            kv_tokens=kv_tokens,
            eos_ids=eos_ids,
            listeners=listeners or ListenerSet(),
            reason=reason or "asked for",
        )
    return ContinuousEngine(
        model,
        kv_tokens=kv_tokens,
        max_batch_tokens=settings.max_batch_tokens,
        prefix_cache=settings.prefix_cache,
        eos_ids=eos_ids,
        listeners=listeners,
    )


def _longest(model: Any, kv_tokens: int) -> int:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return kv_tokens if limit is None else min(kv_tokens, limit)
