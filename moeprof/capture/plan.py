"""What the parent process tells a worker: one model, one launch. Plain data, no torch, crosses the process boundary."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from moeprof.capture.slowdown_plan import Slowdown
from moeprof.core.workload import EngineSettings, Instruments, ModelSpec, Warmup

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
        slowdown: a test hook; see moeprof/capture/slowdown.py.
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

    @property
    def label(self) -> str:
        """What messages call the worker."""
        return f"model {self.model.name}"


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
