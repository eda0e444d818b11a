"""Open a model as the workload names it: a checkpoint, random weights, or the dense twin of another model.

One function, so that a lone worker and a lock-step one load in the same way.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from moeprof.capture.models.attention import expanded
from moeprof.capture.models.find import ModelSource, find_model
from moeprof.capture.models.language_model import left_out
from moeprof.capture.models.load import Blueprint, LoadPart, load_model, read_blueprint, revision_of
from moeprof.capture.models.meta import stand_in_notes
from moeprof.capture.models.parameters import model_facts
from moeprof.capture.models.random_weights import residual_scale
from moeprof.capture.models.twins import (
    Twin,
    TwinLayer,
    check_unquantised,
    describe_twin,
    draw_weights,
    read_layers,
    replace_experts,
)
from moeprof.capture.models.twins_popular import popular_twin
from moeprof.core.model_facts import ModelFacts, TwinFacts
from moeprof.core.trace import Schedule
from moeprof.core.workload.engine import TransformersSettings
from moeprof.core.workload.models import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenModel:
    """A model on its device, in eval mode.

    Attributes:
        model: the transformers module.
        source: where it was found; that of the MoE for a twin.
        origin: whose weights were read: the model's spec, or that of the MoE for a twin.
        blueprint: config, dtype and why.
        load_s: seconds from start to ready, building a twin included.
        weights: ``checkpoint``, or ``random`` (also where only a twin's MLPs are).
        twin: how a twin relates to its MoE, or None.
        notes: what a reader should know.
    """

    model: Any
    source: ModelSource
    origin: ModelSpec
    blueprint: Blueprint
    load_s: float
    weights: str
    twin: TwinFacts | None = None
    notes: tuple[str, ...] = ()

    @property
    def load_holds_more(self) -> bool:
        """True when more was in memory on the way than the model: a twin made of a loaded MoE's experts."""
        return self.twin is not None and self.twin.initialise == "popular_experts"


def open_model(
    spec: ModelSpec,
    base: ModelSpec | None,
    engine: TransformersSettings,
    device: torch.device,
    *,
    warmup: Schedule | None = None,
    before_weights: Callable[[], None] | None = None,
    load_part: LoadPart | None = None,
) -> OpenModel:
    """Open ``spec``.

    Args:
        spec: the model.
        base: for a twin, the spec of its MoE; else None.
        engine: dtype and experts implementation.
        device: where to.
        warmup: text that shows which experts are popular (for ``initialise: popular_experts``).
        before_weights: called once the config is known to be good and before memory is taken.
        load_part: loads one rank's part, where ranks share the model.

    Raises:
        ModelError: it does not exist, or its weights are damaged; a twin of a model without experts.
        UnsupportedModelError: transformers cannot build it, or its experts have no dense form.
    """
    weights = spec if base is None else replace(base, name=spec.name, dtype=spec.dtype or base.dtype)
    source = find_model(spec, base)
    blueprint = read_blueprint(weights, source, engine, device)
    if base is not None:
        check_unquantised(blueprint.config, spec)
    if before_weights is not None:
        before_weights()
    start = time.perf_counter()
    twin = None
    if base is None:
        model = load_model(weights, source, blueprint, engine, device, load_part=load_part).model
    elif spec.initialise == "popular_experts":
        model = load_model(weights, source, blueprint, engine, device).model
        twin = popular_twin(model, spec, warmup)
    else:
        model, twin = _random_twin(spec, weights, source, blueprint, engine, device)
    return OpenModel(
        model=model,
        source=source,
        origin=weights,
        blueprint=blueprint,
        load_s=time.perf_counter() - start,
        weights="random" if spec.twin_of is not None and spec.initialise == "random" else weights.weights,
        twin=None if twin is None else twin.facts,
        notes=(
            *_changed(source),
            *stand_in_notes(source.config, blueprint.config),
            *_without(model),
            *(twin.notes if twin else ()),
        ),
    )


def _without(model: Any) -> list[str]:
    parts = ", ".join(f"{path} ({params} parameters)" for path, params in left_out(model).items())
    return [f"the language model alone, because no text token passes the rest: without {parts}"] if parts else []


def _changed(source: ModelSource) -> list[str]:
    return [f"not the model's own config: {', '.join(source.changes)}"] if source.changes else []


def _random_twin(
    spec: ModelSpec,
    weights: ModelSpec,
    source: ModelSource,
    blueprint: Blueprint,
    engine: TransformersSettings,
    device: torch.device,
) -> tuple[Any, Twin]:
    """The experts are never loaded: they are replaced while the model has no memory yet."""
    layers: list[TwinLayer] = []

    def reshape(model: Any) -> None:
        layers.extend(read_layers(model, spec))
        replace_experts(model, tuple(layers), spec)

    model = load_model(weights, source, blueprint, engine, device, reshape=reshape).model
    draw_weights(model, spec, residual_scale=residual_scale(model.config) if weights.weights == "random" else 1.0)
    return model, describe_twin(model, tuple(layers), spec)


def facts_of(
    opened: OpenModel,
    spec: ModelSpec,
    tokenizer_hash: str | None,
    *,
    overridden: str | None = None,
    expanded_cache: bool = False,
) -> ModelFacts:
    """Count an opened model, for ``model.json``.

    Args:
        opened: the model.
        spec: its spec.
        tokenizer_hash: of the tokenizer that made the schedule, or None.
        overridden: what replaces the model's own routing, in words; None where nothing does.
        expanded_cache: True where the engine (moeprof's paged one) caches latent attention expanded to all heads.
    """
    facts = model_facts(
        opened.model,
        name=spec.name,
        source=opened.source.description,
        tokenizer_hash=tokenizer_hash,
        routing_policy=spec.routing.policy,
        weights=opened.weights,
        notes=opened.notes if overridden is None else (*opened.notes, overridden),
    )
    if expanded_cache:
        facts = _with_expanded_cache(facts, opened)
    return replace(facts, twin=opened.twin, revision=revision_of(opened.source, opened.origin, spec))


def _with_expanded_cache(facts: ModelFacts, opened: OpenModel) -> ModelFacts:
    """As the paged engine keeps them: of latent attention keys and values of all heads."""
    attention = expanded(facts.attention, opened.blueprint.dtype.itemsize)
    if attention == facts.attention:
        return facts
    per_token = sum(layer.keeps_bytes_per_token for layer in attention)
    note = f"latent attention is cached as keys and values of all heads: {per_token} bytes per token"
    return replace(facts, kv_bytes_per_token=per_token, attention=attention, notes=(*facts.notes, note))
