"""What is decided of an engine before anything runs, and what only a model in the worker's own process can do."""

from __future__ import annotations

from dataclasses import dataclass, field

from moeprof.core.workload.engine import EngineSettings
from moeprof.core.workload.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """Settings with a kind in place of ``auto``.

    Attributes:
        settings: of the kind.
        why: why this kind, where there was something to choose from.
        has_cuda_build: whether the workers' torch can use a GPU; None: they have moeprof's own environment.
        packages: versions of what computes, where they are not those of moeprof's own environment.
    """

    settings: EngineSettings
    why: str | None = None
    has_cuda_build: bool | None = None
    packages: dict[str, str | None] = field(default_factory=dict)


def needs_own_module(workload: Workload) -> str | None:
    """The first key of a workload that needs a model in the worker's own process, or None."""
    twins = any(spec.twin_of is not None for spec in workload.models)
    overridden = any(spec.routing.policy != "native" for spec in workload.models)
    batch_tokens = workload.sweep is not None and workload.sweep.max_batch_tokens
    asked = {
        "lockstep": workload.lockstep, "ladder": workload.ladder, "sweep.max_batch_tokens": batch_tokens,
        "models.twin_of": twins, "models.routing": overridden,
    }  # fmt: skip
    return next((key for key, value in asked.items() if value), None)
