"""What the parent process tells a lock-step worker: several lanes, one launch. Plain data, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moeprof.capture.slowdown_plan import Slowdown as Slowdown
from moeprof.core.workload import EngineSettings, ModelSpec

OFFLINE_REQUESTS = 32
OFFLINE = 0  # the concurrency of a measurement in which all requests are sent at once


@dataclass(frozen=True, slots=True, kw_only=True)
class LanePlan:
    """One lane. Lanes of one model share its weights.

    Attributes:
        name: a model, or a rung of the ladder.
        model: its model.
        base: for a dense twin, its MoE.
        rung: one of :data:`moeprof.core.record_lanes.RUNGS`; None where the loaded model tells (dense or native).
        distinct: for the rung ``distinct``, experts that each step touches.
        optional: left out with a note where memory is too small for its model.
        engine: engine settings of its own; None: those of the plan. Models under other settings are loaded apart.
        slowdown: a test hook; see Slowdown.
    """

    name: str
    model: ModelSpec
    base: ModelSpec | None = None
    rung: str | None = None
    distinct: int | None = None
    optional: bool = False
    engine: EngineSettings | None = None
    slowdown: Slowdown | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LockstepPlan:
    """Several lanes in one fresh process.

    Attributes:
        kind: ``lockstep`` (models), ``ladder`` (rungs of one MoE, whose own router is one of the lanes) or ``pairs``
            (one model before and after a change: lanes ``base`` and ``new``).
        lanes: what is stepped in turn.
        engine: engine settings; the KV space is chosen from the requests of each measurement.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        threads: CPU threads of the worker, or None for torch's default.
        folder: ``<run>/lockstep/launch-<l>`` or ``<run>/ladder/launch-<l>``.
        schedule_file: the schedule that requests are taken from, with content.
        warmup_file: other text, for twins whose weights depend on which experts are popular.
        tokenizer_hash: of the tokenizer that made the schedule, or None.
        concurrency: requests in flight, one measurement each; 0: all at once.
        num_requests: the first so many requests; None: see :func:`wanted_requests`.
        max_seconds: bound on each measurement.
        facts_folder: where each model's ``<model>/model.json`` goes; None: the run has written them.
    """

    kind: Literal["lockstep", "ladder", "pairs"]
    lanes: tuple[LanePlan, ...]
    engine: EngineSettings
    device: str
    threads: int | None
    folder: Path
    schedule_file: Path
    warmup_file: Path
    tokenizer_hash: str | None
    concurrency: tuple[int, ...]
    num_requests: int | None
    max_seconds: float
    facts_folder: Path | None = None

    @property
    def label(self) -> str:
        """What messages call the worker."""
        return {"lockstep": "lock-step", "ladder": "ladder", "pairs": "launch pair"}[self.kind]


def wanted_requests(num_requests: int | None, concurrency: int, available: int) -> int:
    """Requests of one measurement: as asked, or twice the concurrency and at least 8; offline, the first 32.

    Every lane holds a KV cache of its own, so an offline measurement does not take a schedule of any size by itself.
    """
    default = max(8, 2 * concurrency) if concurrency else OFFLINE_REQUESTS
    return min(default if num_requests is None else num_requests, available)
