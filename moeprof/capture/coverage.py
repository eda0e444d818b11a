"""Which MoE classes of the installed transformers can be measured: every one is tried, tiny and random.

A class is run through the real engine with the tap on and the self-check of every replay; nothing is concluded from a
forward pass alone. ``moeprof doctor --coverage`` prints the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from moeprof.capture.engine.base import Engine, ListenerSet
from moeprof.capture.moe_structure import MoeLayer, find_moe_layers
from moeprof.capture.routing_check import SelfCheck, self_check
from moeprof.capture.routing_tap import RoutingTap
from moeprof.capture.tiny_models import VOCABULARY, moe_causal_lm_types, tiny_model
from moeprof.core.errors import UnsupportedModelError
from moeprof.core.trace import Request

Verdict = Literal["works", "adapter", "refused", "fails"]
EngineFactory = Callable[[Any, ListenerSet], Engine]
PROMPT_TOKENS, OUTPUT_TOKENS = (7, 4), (3, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class CoverageRow:
    """One architecture.

    Attributes:
        model_type: as in its configuration.
        architecture: class name.
        verdict: ``works`` by the rule, by an ``adapter``, ``refused`` by name, or ``fails`` the self-check.
        batching: ``continuous`` or ``static``; None when refused.
        reason: why refused or failing, else what a reader should know; may be empty.
        check: the self-check, or None when refused.
    """

    model_type: str
    architecture: str
    verdict: Verdict
    batching: str | None
    reason: str
    check: SelfCheck | None = None


def coverage(engine_factory: EngineFactory, model_types: Sequence[str] | None = None) -> list[CoverageRow]:
    """Try every class (or the given types) through the engine; an unexpected error is raised, not hidden."""
    return [_try(model_type, engine_factory) for model_type in (model_types or moe_causal_lm_types())]


def _try(model_type: str, engine_factory: EngineFactory) -> CoverageRow:
    model, listeners = tiny_model(model_type), ListenerSet()
    architecture = type(model).__name__
    try:
        layers = find_moe_layers(model)
    except UnsupportedModelError as error:
        return CoverageRow(
            model_type=model_type, architecture=architecture, verdict="refused", batching=None, reason=str(error)
        )
    engine = engine_factory(model, listeners)
    tap = RoutingTap(model, layers)
    try:
        check = self_check(tap, engine, listeners, lambda: _run(engine))
    finally:
        tap.close()
    verdict: Verdict = "works" if check.passed else "fails"
    if check.passed and any(_is_adapted(layer) for layer in layers):
        verdict = "adapter"
    return CoverageRow(
        model_type=model_type,
        architecture=architecture,
        verdict=verdict,
        batching=engine.facts.batching,
        reason=check.reason or "; ".join((*engine.facts.notes, *check.notes)),
        check=check,
    )


def _is_adapted(layer: MoeLayer) -> bool:
    return layer.hook != "experts_arguments" or layer.skips_zero_weight or layer.num_identity > 0


def _run(engine: Engine) -> None:
    for index, (prompt, output) in enumerate(zip(PROMPT_TOKENS, OUTPUT_TOKENS, strict=True)):
        ids = [3 + (5 * index + 7 * i) % (VOCABULARY - 3) for i in range(prompt)]
        engine.submit(
            Request(
                index=index,
                request_id=str(index),
                arrival_s=0.0,
                input_ids=ids,
                output_tokens=output,
                output_ids=None,
                request_class="all",
            )
        )
    while engine.step() is not None:
        pass
