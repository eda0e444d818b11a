"""What the parent process tells a worker: one model, one launch. Plain data, no torch, crosses the process boundary.

Test hooks as plain data, without torch: how an engine is slowed or broken (see capture/engines/faults.py).

What the parent process tells a lock-step worker: several lanes, one launch. Plain data, no torch.
"""

from __future__ import annotations

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


Command = Literal["prepare", "pass", "quality", "forced_picks", "gap", "overhead", "note", "measure", "close", "stop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchPlan:
    """One model in one fresh process.

    Attributes:
        model: the model.
        engine: engine settings, ``kv_tokens`` resolved.
        instruments: what to watch.
        warmup: how to warm up.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        threads: CPU threads of the worker, or None for torch's default.
        model_folder: ``<run>/<model>``.
        launch_folder: ``<run>/<model>/launch-<l>``.
        schedule_file: the measured schedule, with content.
        warmup_file: the warm-up schedule, with content.
        class_names: request classes, index = class in the routing counts.
        tokenizer_hash: of the tokenizer that made the schedule, or None.
        measure_peaks: whether this worker measures the device's peaks (one per run does).
        twin_base: for a dense twin, its MoE.
        continues: True when the launch goes on after a reload (models that do not fit in memory together).
        process: 0 for the run's own process; a resumed run's are numbered from 1.
        slowdown: a test hook; see moeprof/capture/engines/faults.py.
        opener: ``module:function`` that opens the model, of the table of engines; workers do not look at the table.
    """

    model: ModelSpec
    engine: EngineSettings
    instruments: Instruments
    warmup: Warmup
    device: str
    threads: int | None
    model_folder: Path
    launch_folder: Path
    schedule_file: Path
    warmup_file: Path
    class_names: tuple[str, ...]
    tokenizer_hash: str | None
    measure_peaks: bool
    twin_base: ModelSpec | None = None
    continues: bool = False
    process: int = 0
    slowdown: Slowdown | None = None
    opener: str = "moeprof.capture.engines.hf:open"

    @property
    def label(self) -> str:
        """What messages call the worker."""
        return f"model {self.model.name}"

    @property
    def own_engine(self) -> TransformersSettings:
        """Settings of a model that the worker holds itself."""
        return ours(self.engine)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A command for a worker.

    Attributes:
        command: what to do.
        name: of the pass, ``round-0`` or ``capacity-0``.
        offline: send everything at once whatever the schedule says.
        deadline_s: ``perf_counter`` time after which to cut, or None; the clock is the same in all processes.
        schedule_file: another schedule than the launch's, with content, or None.
        max_batch_tokens: another engine setting than the launch's, or None.
        max_seconds: bound on this pass alone, or None.
        extra: further keys of pass.json (a pass), or of launch.json (``note``).
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
    engine: TransformersSettings
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
