"""The same steps on all ranks: rank 0 decides when, the others follow.

Each rank runs a whole engine over its part of the model: scheduler, cache and sampling included. Engines decide by
what was submitted and by nothing else, so ranks that get the same requests before the same step form the same batch;
what they chose is compared whenever a pass ends.

Build the engine of a shared model: on rank 0 the one that leads, elsewhere the plain one of that rank.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from moeprof.capture import compat
from moeprof.capture.engines import hf
from moeprof.capture.engines.base import Engine, EngineFacts, ListenerSet, Step, SteppedEngine
from moeprof.capture.engines.deployment import Deployment
from moeprof.capture.parallel.group import Group, joined
from moeprof.capture.parallel.load import load_part
from moeprof.core.errors import EngineError
from moeprof.core.trace import Request
from moeprof.core.workload.engine import Parallel, TransformersSettings
from moeprof.core.workload.models import ModelSpec

NO_TOKEN = -1
EAGER = "ranks share the model: transformers' experts, no captured decode steps and no running ahead"
SAME = ("kind", "batching", "scheduler", "dtype", "kv_tokens", "max_batch_tokens", "max_sequence_tokens")


def settings_of_rank(settings: TransformersSettings, model: Any) -> TransformersSettings:
    """How each rank builds its engine: as one without ranks, each step reported when it has ended.

    Experts keep transformers' kernel, which knows that some of them are elsewhere; trials of others would time each
    rank by itself.
    """
    experts = settings.experts
    if experts == "auto":
        experts = compat.experts_of(model.config.get_text_config()) or "eager"
    return replace(settings, parallel=None, decode_graphs="off", run_ahead="off", experts=experts)


class ParallelEngine(SteppedEngine):
    """Rank 0's engine; see :class:`moeprof.capture.engines.base.Engine`.

    Args:
        engine: this rank's own.
        group: joined.
        parallel: the plan.
        number: what the ranks call this engine; they have built theirs.
    """

    def __init__(self, engine: Engine, group: Group, parallel: Parallel, number: int) -> None:
        self._engine, self._group, self._number = engine, group, number
        self._pending: list[Request] = []
        self._digest = 0
        self.facts = _shared_facts(group.gather(engine.facts), parallel)

    @property
    def listeners(self) -> ListenerSet:
        """Those of this rank's engine."""
        found: Any = self._engine
        return found.listeners  # type: ignore[no-any-return]

    def submit(self, request: Request) -> None:
        """Hand over a request; the others get it with the next step."""
        self._engine.submit(request)
        self._pending.append(request)

    def step(self) -> Step | None:
        """One step on all ranks."""
        self._group.tell("step", self._number, tuple(self._pending), self._is_watched())
        self._pending.clear()
        with self._group.hold():
            step = self._engine.step()
        self._digest = digest(self._digest, step)
        return step

    def reset(self) -> None:
        """Forget all requests, then compare what the ranks chose since the last reset.

        Raises:
            EngineError: they did not choose the same.
        """
        self._group.tell("reset", self._number)
        with self._group.hold():
            self._engine.reset()
        self._pending.clear()
        mine, self._digest = self._digest, 0
        replies = self._group.gather((mine, None))
        strays = [rank for rank, (found, _) in enumerate(replies) if found != mine]
        if strays:
            raise EngineError(
                f"rank {strays[0]} formed other batches or chose other tokens than rank 0, so its part of the model "
                "was not the one that was measured"
            )
        self._group.counts_of_followers = [counts for _, counts in replies[1:]]

    def close(self) -> None:
        """Release the engines of all ranks."""
        self._group.tell("close", self._number)
        with self._group.hold():
            self._engine.close()

    def _is_watched(self) -> bool:
        from moeprof.capture.routing.tap import RoutingTap

        return any(isinstance(listener, RoutingTap) for listener in self.listeners.listeners)


def digest(before: int, step: Step | None) -> int:
    """A checksum that goes on from ``before`` with who was in a step and what each of them chose."""
    if step is None:
        return before
    digits = array("q")
    for sequence in step.sequences:
        digits.extend((sequence.request, sequence.query_tokens, sequence.past_tokens))
        digits.extend(NO_TOKEN if token is None else token for token in (sequence.token, sequence.chosen))
    return zlib.crc32(digits.tobytes(), before)


def _shared_facts(facts: Sequence[EngineFacts], parallel: Parallel) -> EngineFacts:
    """Rank 0's facts for the whole; bytes of the cache are the sum.

    Raises:
        EngineError: the ranks have different engines.
    """
    first = facts[0]
    for rank, other in enumerate(facts):
        for key in SAME:
            if getattr(other, key) != getattr(first, key):
                found, wanted = getattr(other, key), getattr(first, key)
                raise EngineError(f"rank {rank} built another engine than rank 0: {key} is {found}, not {wanted}")
    sizes = [fact.kv_bytes for fact in facts if fact.kv_bytes is not None]
    return replace(
        first,
        kv_bytes=sum(sizes) if len(sizes) == len(facts) else None,
        notes=(*first.notes, EAGER, *_other_kernels(facts)),
        ranks=parallel.ranks,
        parallel=parallel.plan,
    )


def _other_kernels(facts: Sequence[EngineFacts]) -> list[str]:
    """Ranks choose the fastest attention each by itself."""
    mine = facts[0].attention
    return [f"rank {rank} attends with {fact.attention}" for rank, fact in enumerate(facts) if fact.attention != mine]


def open(spec: ModelSpec, settings: TransformersSettings, device: torch.device, **more: Any) -> Deployment:
    """Rank 0's part of a model that ranks share, as :func:`moeprof.capture.engines.hf.open` opens a whole one."""
    opened = hf.open(spec, settings, device, load_part=load_part, **more)
    alone, end_ids = opened.build, opened.launch.get("end_ids", ())

    def build(settings: TransformersSettings, listeners: ListenerSet, *, in_turn: bool = False) -> Engine:
        return build_on_all_ranks(opened.module, settings, lambda own: alone(own, listeners, in_turn=in_turn), end_ids)

    return replace(opened, build=build)


def build_on_all_ranks(
    model: Any,
    settings: TransformersSettings,
    build: Callable[[TransformersSettings], Any],
    eos_ids: Sequence[int] = (),
) -> Engine:
    """Rank 0's engine of a shared model.

    Args:
        model: this rank's part.
        settings: with ``parallel``.
        build: makes an engine for this rank alone.
        eos_ids: ids that end an output, for the other ranks.
    """
    assert settings.parallel is not None
    group = joined(next(model.parameters()).device)
    number = group.new_number()
    group.tell("build", number, settings, tuple(eos_ids))
    with group.hold():
        engine = build(settings_of_rank(settings, model))
    return ParallelEngine(engine, group, settings.parallel, number)
