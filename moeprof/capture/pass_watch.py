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
        self._worker, self._order, self._tell = worker, order, tell
        self._telemetry = Telemetry(meters, worker.pid) if order.command == "pass" else None

    def hear(self, report: Report) -> None:
        """Write samples once the pass has begun; pass progress on."""
        if self._telemetry is not None:
            if report.event == "started":
                self._telemetry.begin(self._worker.plan.launch_folder / report.data["pass"], report.data["origin_s"])
            else:
                self._telemetry.note(report.data)
        self._tell(self._worker.plan.model.name, report.event, report.data)

    def close(self) -> None:
        """End sampling."""
        if self._telemetry is not None:
            self._telemetry.close()
