"""What the parent does while a worker carries out one order: samples the machine, passes progress on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moeprof.capture.plan import Order, Report
from moeprof.capture.telemetry import Meter, Telemetry
from moeprof.capture.workers import Worker


class PassWatch:
    """Watches one order.

    Args:
        worker: who carries it out.
        order: what.
        meters: power and clocks.
        tell: hears model, event and data of every report.
    """

    def __init__(
        self, worker: Worker, order: Order, meters: list[Meter], tell: Callable[[str, str, dict[str, Any]], None]
    ) -> None:
        self._worker, self._order, self._meters, self._tell = worker, order, meters, tell
        self._telemetry: Telemetry | None = None

    def hear(self, report: Report) -> None:
        """Start sampling when a pass starts; pass progress on."""
        if report.event == "started":
            if self._order.command == "pass":
                folder = self._worker.plan.launch_folder / report.data["pass"]
                self._telemetry = Telemetry(folder, report.data["origin_s"], self._meters, self._worker.pid)
        elif self._telemetry is not None:
            self._telemetry.note(report.data)
        self._tell(self._worker.plan.model.name, report.event, report.data)

    def close(self) -> None:
        """End sampling."""
        if self._telemetry is not None:
            self._telemetry.close()
