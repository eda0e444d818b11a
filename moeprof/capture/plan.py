"""What the parent process tells a worker: one model, one launch. Plain data, no torch, crosses the process boundary."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from moeprof.core.workload import EngineSettings, Instruments, ModelSpec, Warmup

Command = Literal["prepare", "pass", "overhead", "close", "stop"]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A command for a worker.

    Attributes:
        command: what to do.
        name: of the pass, ``round-0`` or ``capacity-0``.
        offline: send everything at once whatever the schedule says.
        deadline_s: ``perf_counter`` time after which to cut, or None; the clock is the same in all processes.
    """

    command: Command
    name: str = ""
    offline: bool = False
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A worker's message: ``progress``, ``started``, ``done`` or ``failed``.

    Attributes:
        event: what kind.
        data: JSON-able details.
    """

    event: Literal["progress", "started", "done", "failed"]
    data: dict[str, Any]
