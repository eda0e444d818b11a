"""Models of transformers in our own engines: continuous batching over a paged cache where it can, or static batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from moeprof.capture.engines.base import Engine, ListenerSet
from moeprof.capture.engines.deployment import Deployment
from moeprof.capture.engines.end_ids import end_ids
from moeprof.capture.engines.paged.build import build_paged
from moeprof.capture.engines.paged.kernels import block_step
from moeprof.capture.engines.static import StaticEngine
from moeprof.capture.engines.static_batch import needs_static
from moeprof.capture.kernels.modules import use_cpu_kernels
from moeprof.capture.memory.kv_space import kv_space
from moeprof.capture.memory.measure import Watch
from moeprof.capture.models.attention import expanded, model_attention
from moeprof.capture.models.load import LoadPart
from moeprof.capture.models.open import facts_of, open_model
from moeprof.core.errors import UnsupportedModelError
from moeprof.core.model_facts import ModelFacts
from moeprof.core.trace import Schedule
from moeprof.core.workload.engine import TransformersSettings
from moeprof.core.workload.models import ModelSpec

DEFAULT_KV_TOKENS = 16384


def open(
    spec: ModelSpec,
    settings: TransformersSettings,
    device: torch.device,
    *,
    base: ModelSpec | None = None,
    warmup: Schedule | None = None,
    before_weights: Callable[[], None] = lambda: None,
    load_part: LoadPart | None = None,
) -> Deployment:
    """Load ``spec``; see :func:`moeprof.capture.models.open.open_model`.

    Requests that may end early (those of the warm-up are as the workload's) stop at the checkpoint's end ids.
    """
    memory = Watch(device)

    def forget_peak() -> None:
        before_weights()
        memory.forget_peak()

    opened = open_model(spec, base, settings, device, warmup=warmup, before_weights=forget_peak, load_part=load_part)
    if opened.load_holds_more:
        memory.forget_peak()
    memory.loaded()
    module = opened.model
    stop_ids = end_ids(opened.origin, opened.source) if warmup is not None and warmup.outputs == "free" else None

    def build(settings: TransformersSettings, listeners: ListenerSet, *, in_turn: bool = False) -> Engine:
        return build_engine(module, settings, listeners, stop_ids or (), in_turn=in_turn)

    def describe(tokenizer_hash: str | None, overridden: str | None) -> ModelFacts:
        is_paged = settings.batching != "static" and needs_static(module) is None
        return facts_of(opened, spec, tokenizer_hash, overridden=overridden, expanded_cache=is_paged)

    def check_room() -> dict[str, Any]:
        if settings.parallel is not None:  # a rank holds a part of the model, and the parent counted on that
            return {}
        per_token = None
        if settings.batching != "static" and needs_static(module) is None:  # the paged engine keeps every token
            layers = expanded(model_attention(module).layers, opened.blueprint.dtype.itemsize)
            per_token = sum(layer.layers * layer.kv_bytes_per_token for layer in layers) or None
        space = kv_space(module, spec, opened.source.config, settings, device, base=base, bytes_per_token=per_token)
        return {"kv_space": space.to_json()}

    launch = {"dtype_reason": opened.blueprint.dtype_reason, "load_s": opened.load_s}
    if stop_ids is not None:
        launch["end_ids"] = stop_ids
    return Deployment(
        build=build, describe=describe, launch=launch, check_room=check_room, module=module, memory=memory
    )


def build_engine(
    model: Any,
    settings: TransformersSettings,
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
    asked = settings.cpu_kernels if model.device.type == "cpu" else "off"
    if asked != "off":
        use_cpu_kernels(model, asked, block_step)
    listeners, kv_tokens = listeners or ListenerSet(), settings.kv_tokens or DEFAULT_KV_TOKENS
    reason = needs_static(model)
    if reason is None and settings.batching != "static":
        engine: Engine = build_paged(model, settings, kv_tokens, listeners, eos_ids, in_turn=in_turn)
    else:
        engine = _static(model, settings, kv_tokens, listeners, eos_ids, reason)
    engine.facts = replace(engine.facts, cpu_kernels=asked)
    return engine


def refuse_batching(model: Any, settings: TransformersSettings) -> None:
    """Refuse what the structure of a model does not allow; it may be without memory.

    Raises:
        UnsupportedModelError: continuous batches or shared prefixes were asked for, and the architecture has none.
    """
    reason = needs_static(model)
    if reason is not None and settings.batching == "continuous":
        raise UnsupportedModelError(f"{type(model).__name__} cannot run in continuous batches: {reason}")
    if settings.prefix_cache and (reason is not None or settings.batching == "static"):
        raise UnsupportedModelError(
            f"engine.prefix_cache: {type(model).__name__} runs in static batches ({reason or 'asked for'}), "
            "which share no prefixes; set it to false"
        )


def _static(
    model: Any,
    settings: TransformersSettings,
    kv_tokens: int,
    listeners: ListenerSet,
    eos_ids: Sequence[int],
    reason: str | None,
) -> StaticEngine:
    refuse_batching(model, settings)
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return StaticEngine(
        model,
        max_batch=settings.max_batch,
        max_sequence_tokens=kv_tokens if limit is None else min(kv_tokens, limit),
        max_batch_tokens=settings.max_batch_tokens,
        kv_tokens=kv_tokens,
        eos_ids=eos_ids,
        listeners=listeners,
        reason=reason or "asked for",
    )
