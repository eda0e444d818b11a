"""Build the engine of a shared model: on rank 0 the one that leads, elsewhere the plain one of that rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from moeprof.capture.engine.base import Engine
from moeprof.capture.parallel.engine import ParallelEngine, settings_of_rank
from moeprof.capture.parallel.group import joined
from moeprof.core.workload import EngineSettings


def build_on_all_ranks(
    model: Any, settings: EngineSettings, build: Callable[[EngineSettings], Engine], eos_ids: Sequence[int] = ()
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
