"""Which engine runs a model: continuous batching over our paged cache where it can, or static batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from moeprof.capture.engines.base import Engine, ListenerSet
from moeprof.capture.engines.paged.build import build_paged
from moeprof.capture.engines.static import StaticEngine
from moeprof.capture.engines.static_batch import needs_static
from moeprof.capture.kernels.cpu.swap import use_cpu_kernels
from moeprof.core.errors import UnsupportedModelError
from moeprof.core.workload.engine import EngineSettings

DEFAULT_KV_TOKENS = 16384


def build_engine(
    model: Any,
    settings: EngineSettings,
    listeners: ListenerSet | None = None,
    eos_ids: Sequence[int] = (),
    *,
    in_turn: bool = False,
) -> Engine:
    """The engine for ``model``. ``settings.batching: auto`` asks the model's structure; the reason is in the facts.

    Args:
        model: on its device.
        settings: of the workload.
        listeners: told about every forward.
        eos_ids: ids that end an output where a request says so.
        in_turn: it will be stepped in turn with another engine, so a step must have ended when it is told.

    Raises:
        UnsupportedModelError: continuous batches or shared prefixes were asked for, and the architecture has none.
    """
    listeners = listeners or ListenerSet()
    if settings.parallel is not None:
        from moeprof.capture.parallel.engine import build_on_all_ranks  # torch.distributed is not there everywhere

        return build_on_all_ranks(model, settings, lambda own: build_engine(model, own, listeners, eos_ids), eos_ids)
    if settings.cpu_kernels == "off" or model.device.type != "cpu":
        return _build(model, settings, listeners, eos_ids, in_turn=in_turn)
    use_cpu_kernels(model, settings.cpu_kernels)
    engine = _build(model, settings, listeners, eos_ids, in_turn=in_turn)
    engine.facts = replace(engine.facts, cpu_kernels=settings.cpu_kernels)
    return engine


def _build(
    model: Any, settings: EngineSettings, listeners: ListenerSet, eos_ids: Sequence[int], *, in_turn: bool
) -> Engine:
    kv_tokens = settings.kv_tokens or DEFAULT_KV_TOKENS
    reason = needs_static(model)
    if reason is None and settings.batching != "static":
        return build_paged(model, settings, kv_tokens, listeners, eos_ids, in_turn=in_turn)
    if settings.batching == "continuous":
        raise UnsupportedModelError(f"{type(model).__name__} cannot run in continuous batches: {reason}")
    if settings.prefix_cache:
        raise UnsupportedModelError(
            f"engine.prefix_cache: {type(model).__name__} runs in static batches ({reason or 'asked for'}), "
            "which share no prefixes; set it to false"
        )
    return _static(model, settings, kv_tokens, listeners, eos_ids, reason or "asked for")


def _static(
    model: Any,
    settings: EngineSettings,
    kv_tokens: int,
    listeners: ListenerSet,
    eos_ids: Sequence[int],
    reason: str,
) -> StaticEngine:
    return StaticEngine(
        model,
        max_batch=settings.max_batch,
        max_sequence_tokens=_longest(model, kv_tokens),
        max_batch_tokens=settings.max_batch_tokens,
        kv_tokens=kv_tokens,
        eos_ids=eos_ids,
        listeners=listeners,
        reason=reason,
    )


def _longest(model: Any, kv_tokens: int) -> int:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return kv_tokens if limit is None else min(kv_tokens, limit)
