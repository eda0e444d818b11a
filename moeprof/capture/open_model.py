"""Open a model as the workload names it: a checkpoint, random weights, or the dense twin of another model.

One function, so that a lone worker and a lock-step one load in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from moeprof.capture.loading import Blueprint, load_model, read_blueprint
from moeprof.capture.model_source import ModelSource, find_model
from moeprof.capture.parameters import model_facts
from moeprof.core.modelfacts import ModelFacts, TwinFacts
from moeprof.core.trace import Schedule
from moeprof.core.workload import EngineSettings, ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenModel:
    """A model on its device, in eval mode.

    Attributes:
        model: the transformers module.
        source: where it was found; that of the MoE for a twin.
        blueprint: config, dtype and why.
        load_s: seconds from start to ready, building a twin included.
        twin: how a twin relates to its MoE, or None.
        notes: what a reader should know.
    """

    model: Any
    source: ModelSource
    blueprint: Blueprint
    load_s: float
    twin: TwinFacts | None = None
    notes: tuple[str, ...] = ()


def open_model(
    spec: ModelSpec,
    base: ModelSpec | None,
    engine: EngineSettings,
    device: torch.device,
    *,
    warmup: Schedule | None = None,
    before_weights: Callable[[], None] | None = None,
) -> OpenModel:
    """Open ``spec``.

    Args:
        spec: the model.
        base: for a twin, the spec of its MoE; else None.
        engine: dtype and experts implementation.
        device: where to.
        warmup: text that shows which experts are popular (for ``initialise: popular_experts``).
        before_weights: called once the config is known to be good and before memory is taken.

    Raises:
        ModelError: it does not exist, or its weights are damaged; a twin of a model without experts.
        UnsupportedModelError: transformers cannot build it, or its experts have no dense form.
    """
    if spec.twin_of is not None:
        raise NotImplementedError("twins are being built")
    source = find_model(spec)
    blueprint = read_blueprint(spec, source, engine, device)
    if before_weights is not None:
        before_weights()
    loaded = load_model(spec, source, blueprint, engine, device)
    return OpenModel(model=loaded.model, source=source, blueprint=blueprint, load_s=loaded.load_s)


def facts_of(opened: OpenModel, spec: ModelSpec, tokenizer_hash: str | None) -> ModelFacts:
    """Count an opened model, for ``model.json``."""
    facts = model_facts(
        opened.model,
        name=spec.name,
        source=opened.source.description,
        tokenizer_hash=tokenizer_hash,
        routing_policy=spec.routing.policy,
        weights=spec.weights,
        notes=opened.notes,
    )
    return replace(facts, twin=opened.twin)
