"""What every part of a run needs: its set-up, and who listens to its progress."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from moeprof.capture.devices.meters import Meter
from moeprof.capture.protocol import Slowdown
from moeprof.capture.run.resume import Resume
from moeprof.capture.run.schedules import Scheduled
from moeprof.core.workload.workload import Workload


class ProgressListener(Protocol):
    """Whoever shows progress: gets every event, answers nothing."""

    def on_event(self, model: str, event: str, data: dict[str, Any]) -> None:
        """``event`` is ``launch``, ``loading``, ``pass``, ``progress``, ``pass_done``, ``failed``..."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Everything decided before the first worker starts.

    Attributes:
        workload: with ``auto`` values resolved.
        folder: the record.
        private: a folder outside the record for schedules with content.
        schedules: model name -> its schedules.
        device: ``cpu`` or ``cuda:N``.
        together: True when all models fit in memory at once.
        meters: power and clocks.
        deadline_s: ``perf_counter`` time at which ``--max-minutes`` ends, or None.
        resume: the interrupted run that this one goes on with, or None.
        slowdown: a test hook; see moeprof/capture/engines/faults.py.
    """

    workload: Workload
    folder: Path
    private: Path
    schedules: dict[str, Scheduled]
    device: str
    together: bool
    meters: list[Meter]
    deadline_s: float | None
    resume: Resume | None = None
    slowdown: Slowdown | None = None
