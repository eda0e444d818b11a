"""A model that is ready to answer requests, and what a measurement may ask of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from moeprof.capture.engines.base import ListenerSet, ServedEngine
from moeprof.capture.memory.measure import Watch
from moeprof.core.model_facts import ModelFacts
from moeprof.core.trace import Schedule

NEEDS = {
    "module": "the module is not in the worker's process",
    "steps": "the engine steps itself and tells tokens, not steps",
    "routing": "the engine does not show its routing",
    "memory": "the model is not in the worker's memory",
    "energy": "the model's devices are not this machine's",
    "forced ids": "outputs have the length that was asked for, and the text is the model's own",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownLayer:
    """An MoE layer whose picks an engine shows: what is counted needs no more of it."""

    name: str
    num_experts: int
    top_k: int
    num_identity: int = 0
    notes: tuple[str, ...] = ()


class ShownRouter(Protocol):
    """Picks of an engine whose module is not ours to put a tap on; they are looked at between two steps.

    Attributes:
        layers: its MoE layers.
        how: where the picks are taken from, in words.
    """

    layers: tuple[ShownLayer, ...]
    how: str

    def watch(self, on: bool) -> None:
        """Show picks from now on, or no longer."""

    def take(self, num_tokens: int) -> Any:
        """Picks of the last forward: per layer a tensor [tokens, k], or None where just that was not seen."""

    def move(self, by: int) -> bool:
        """Move every pick that is executed so many experts on, for a check; False where that cannot be."""


class RoutingSource(Protocol):
    """Counts where tokens go, a block of steps at a time (see moeprof/capture/routing/count.py)."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Request classes, index = class in the counts."""

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Of the MoE layers."""

    @property
    def top_k(self) -> tuple[int, ...]:
        """Experts per token of each."""

    def bind(self, request_class: Sequence[str]) -> None:
        """Say which class each row of the schedule has."""

    def collect_blocks(self, *, everything: bool = False) -> Sequence[Any]:
        """RoutingBlocks of forwards that have ended; with ``everything`` of all."""

    def discard(self) -> None:
        """Forget what was counted."""


class PassWatch(Protocol):
    """Sees of a pass what the loop does not: the client itself, and the server's own counters."""

    def begin(self, folder: Path, schedule: Schedule) -> None:
        """A pass over ``schedule`` is about to begin; tables go to ``folder``."""

    def end(self) -> dict[str, Any]:
        """It has ended: keys of pass.json."""


class Build(Protocol):
    """Builds an engine of an open model."""

    def __call__(self, settings: Any, listeners: ListenerSet, *, in_turn: bool = False) -> ServedEngine:
        """Build; ``in_turn``: to be stepped in turn with another, so a step must have ended when it is told."""


@dataclass(slots=True, kw_only=True)
class Deployment:
    """What a row of ``ENGINES`` opens.

    Attributes:
        build: gives an engine. Where the module is here, several can be built one after the other, with other settings.
        describe: the model, for model.json, from the tokenizer's hash and the words for an overridden routing.
        launch: what launch.json says about opening.
        check_room: whether there is room for an engine, once the weights are there; for launch.json. Raises where not.
        module: the torch module, or None where it is elsewhere.
        memory: watches this process's memory, or None where the model is not in it.
        routing: the engine's own account of its routing, or None; on a module we put a tap of our own.
        shown: picks of an engine that shows them after each step, or None; they are counted here.
        has_router: False for a dense model, of which there is no routing to tell.
        tells_steps: False for an engine that steps itself.
        is_metered: False where the energy of the model's devices cannot be read here.
        forces_ids: False where a schedule's output ids are not fed.
        fixes_length: False where outputs may end before the length that was asked for.
        watch: sees of passes what the loop does not, or None.
        reasons: why something of ``NEEDS`` cannot be had here, where there is more to say than that table says.
    """

    build: Build
    describe: Callable[[str | None, str | None], ModelFacts]
    launch: dict[str, Any] = field(default_factory=dict)
    check_room: Callable[[], dict[str, Any]] = dict
    module: Any = None
    memory: Watch | None = None
    routing: RoutingSource | None = None
    shown: ShownRouter | None = None
    has_router: bool = True
    tells_steps: bool = True
    is_metered: bool = True
    forces_ids: bool = True
    fixes_length: bool = True
    watch: PassWatch | None = None
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def offers(self) -> frozenset[str]:
        """Names of ``NEEDS`` that can be had."""
        there = {
            "module": self.module is not None,
            "steps": self.tells_steps,
            "routing": not self.has_router or any(one is not None for one in (self.module, self.routing, self.shown)),
            "memory": self.memory is not None,
            "energy": self.is_metered,
            "forced ids": self.forces_ids,
        }
        return frozenset(name for name, has in there.items() if has)

    def why_not(self, need: str) -> str | None:
        """Why ``need`` cannot be had, or None where it can."""
        return None if need in self.offers else self.reasons.get(need, NEEDS[need])

    @property
    def lacks(self) -> dict[str, str]:
        """Need -> why it cannot be had; for launch.json."""
        return {need: reason for need in NEEDS if (reason := self.why_not(need)) is not None}
