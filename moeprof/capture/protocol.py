"""What the parent process and a worker say to each other: a plan, orders, reports. Plain data, no torch.

A worker holds one model alone, or several lanes that are stepped in turn; its one plan has a part for what each kind
needs on top. Test hooks stand here too: how an engine is slowed or broken (see capture/engines/faults.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from moeprof.core.workload.engine import EngineSettings, TransformersSettings, ours
from moeprof.core.workload.models import ModelSpec
from moeprof.core.workload.workload import Instruments, Warmup


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """An engine that breaks in the step after a request was handed over. Never set by a workload.

    Attributes:
        kind: ``hang`` waits for ever; the others raise what torch raises.
        model: of which model.
        request: number in the schedule; warm-up has fewer, so that a pass is what breaks.
    """

    kind: Literal["hang", "out_of_memory", "device_assert", "device_error", "device_lost"]
    model: str
    request: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Slowdown:
    """Time burnt after steps, to test whether a comparison notices. Never set by a workload.

    Attributes:
        ratio: of the step's own time; 0.03 makes it 3 % slower.
        every: only each so-manieth step, spread evenly; 1: all.
        faults: break the engine on top.
    """

    ratio: float
    every: int = 1
    faults: tuple[Fault, ...] = ()

    def of_model(self, name: str) -> Slowdown:
        """The same, without faults that are meant for other models."""
        return replace(self, faults=tuple(fault for fault in self.faults if fault.model == name))


Command = Literal["prepare", "pass", "measure", "lockstep", "note", "close", "stop"]
OFFLINE_REQUESTS = 32
OFFLINE = 0  # the concurrency of a measurement in which all requests are sent at once


@dataclass(frozen=True, slots=True, kw_only=True)
class LanePlan:
    """One lane. Lanes of one model share its weights.

    Attributes:
        name: a model, or a rung of the ladder.
        model: its model.
        base: for a dense twin, its MoE.
        rung: one of :data:`moeprof.core.record.lanes.RUNGS`; None where the loaded model tells (dense or native).
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
    engine: TransformersSettings | None = None
    slowdown: Slowdown | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SoloPart:
    """What a worker needs whose one model is measured alone.

    Attributes:
        instruments: what to watch.
        warmup: how to warm up.
        class_names: request classes, index = class in the routing counts.
        measure_peaks: whether this worker measures the device's peaks (one per run does).
        continues: True when the launch goes on after a reload (models that do not fit in memory together).
        process: 0 for the run's own process; a resumed run's are numbered from 1.
    """

    instruments: Instruments
    warmup: Warmup
    class_names: tuple[str, ...]
    measure_peaks: bool
    continues: bool = False
    process: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LockstepPart:
    """What a worker needs whose lanes are stepped in turn.

    Attributes:
        concurrency: requests in flight, one measurement each; 0: all at once.
        num_requests: the first so many requests; None: see :func:`wanted_requests`.
        max_seconds: bound on each measurement.
    """

    concurrency: tuple[int, ...]
    num_requests: int | None
    max_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPlan:
    """What one fresh process holds and measures.

    Attributes:
        kind: ``solo`` (one model alone), or lanes stepped in turn: ``lockstep`` (models), ``ladder`` (rungs of one MoE,
            whose own router is one of the lanes) or ``pairs`` (one model before and after a change: lanes ``base`` and
            ``new``).
        lanes: what is stepped; a model alone is one lane.
        engine: engine settings; lanes in turn choose the KV space from the requests of each measurement.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        threads: CPU threads of the worker, or None for torch's default.
        folder: ``<run>/<model>/launch-<l>``, ``<run>/lockstep/launch-<l>`` or ``<run>/ladder/launch-<l>``.
        facts_folder: where each model's ``<model>/model.json`` goes; None: the run has written them.
        schedule_file: the measured schedule, with content.
        warmup_file: other text: to warm up, and for twins whose weights depend on which experts are popular.
        tokenizer_hash: of the tokenizer that made the schedule, or None.
        opener: ``module:function`` that opens a model, of the table of engines; workers do not look at the table.
        solo, lockstep: the part of its kind.
    """

    kind: Literal["solo", "lockstep", "ladder", "pairs"]
    lanes: tuple[LanePlan, ...]
    engine: EngineSettings
    device: str
    threads: int | None
    folder: Path
    schedule_file: Path
    warmup_file: Path
    tokenizer_hash: str | None
    facts_folder: Path | None = None
    opener: str = "moeprof.capture.engines.hf:open"
    solo: SoloPart | None = None
    lockstep: LockstepPart | None = None

    @property
    def model(self) -> ModelSpec:
        """The model of the first lane; of a plan ``solo`` there is no other."""
        return self.lanes[0].model

    @property
    def alone(self) -> SoloPart:
        """The part of a plan ``solo``."""
        assert self.solo is not None, self.kind
        return self.solo

    @property
    def in_turn(self) -> LockstepPart:
        """The part of any other plan."""
        assert self.lockstep is not None, self.kind
        return self.lockstep

    @property
    def label(self) -> str:
        """What messages call the worker."""
        names = {"lockstep": "lock-step", "ladder": "ladder", "pairs": "launch pair"}
        return names.get(self.kind, f"model {self.model.name}")

    @property
    def own_engine(self) -> TransformersSettings:
        """Settings of a model that the worker holds itself."""
        return ours(self.engine)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A command for a worker.

    Attributes:
        command: what to do.
        name: of the pass (``round-0``, ``capacity-0``), or of the measurement.
        offline: send everything at once whatever the schedule says.
        deadline_s: ``perf_counter`` time after which to cut, or None; the clock is the same in all processes.
        schedule_file: another schedule than the launch's, with content, or None.
        max_batch_tokens: another engine setting than the launch's, or None.
        max_seconds: bound on this pass alone, or None.
        extra: further keys of pass.json (a pass), or of launch.json (``note``); ``output_bytes`` of a measurement.
    """

    command: Command
    name: str = ""
    offline: bool = False
    deadline_s: float | None = None
    schedule_file: Path | None = None
    max_batch_tokens: int | None = None
    max_seconds: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A worker's message: ``progress``, ``started``, ``done``, ``failed``, or ``alive`` when nothing else is to say.

    Attributes:
        event: what kind.
        data: JSON-able details.
    """

    event: Literal["progress", "started", "done", "failed", "alive"]
    data: dict[str, Any]


OnReport = Callable[[Report], None]


def wanted_requests(num_requests: int | None, concurrency: int, available: int) -> int:
    """Requests of one measurement: as requested, or twice the concurrency and at least 8; offline, the first 32.

    Every lane holds a KV cache of its own, so an offline measurement does not take a schedule of any size by itself.
    """
    default = max(8, 2 * concurrency) if concurrency else OFFLINE_REQUESTS
    return min(default if num_requests is None else num_requests, available)
