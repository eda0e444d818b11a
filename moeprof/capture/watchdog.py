"""When a worker has been silent for too long. Belongs to the parent process; no torch.

A worker shows that it lives about once a second while its loop turns, and tells the longest step so far. A step counts
as hung when nothing was heard for the workload's ``watchdog_s`` and fifty times that step on top. Work that is no step
has limits of its own: reading weights tells nothing on the way, and so do captured graphs and tables being written.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from moeprof.capture.plan import Order, Report

LOADING_S = 1800.0  # a slow disk takes this long for the 90 GB of a large model
BETWEEN_S = 900.0  # an engine is built and its graphs are captured; tables of a long pass are written
COMPILING_S = 600.0  # a compiled model meets a shape for the first time
STOP_GRACE_S = 20.0  # from being told to stop to having stopped, apart from the step that is under way
STEPS = 50.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Overdue:
    """A worker that is silent for too long.

    Attributes:
        reason: ``hung_step``, ``hung_setup`` or ``hung_stop``.
        text: what was waited for, for how long, and how long would have been fine.
    """

    reason: str
    text: str


class Watchdog:
    """Counts the silence of one worker.

    Args:
        base_s: ``watchdog_s`` of the workload; 0 waits for ever.
        compiles: True where steps may compile.
        clock: in seconds; that of ``Order.deadline_s``.
    """

    def __init__(
        self, base_s: float, *, compiles: bool = False, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._base_s, self._extra_s, self._clock = base_s, COMPILING_S * compiles, clock
        self._longest_s = 0.0
        self.begin(Order(command="prepare"))

    def begin(self, order: Order) -> None:
        """An order was given."""
        self._order, self._began_s = order, self._clock()
        self._heard_s = self._began_s
        self._steps, self._stopping, self._doing = False, False, "loading" if order.command == "prepare" else ""

    def hear(self, report: Report) -> None:
        """Anything that comes from the worker is a sign of life; progress of a pass says how its steps go."""
        self._heard_s = self._clock()
        data = report.data
        self._doing = data.get("doing", self._doing)
        self._longest_s = max(self._longest_s, data.get("longest_step_s", 0.0))
        if data.get("steps") and "total" in data:
            self._steps = data["done"] + data["refused"] < data["total"]  # after the last one tables are written

    def stop(self) -> None:
        """It was told to stop after its current step."""
        self._stopping, self._heard_s = True, self._clock()

    def overdue(self) -> Overdue | None:
        """What is wrong, or None as long as waiting is fine."""
        now_s = self._clock()
        silent_s, limit_s = now_s - self._heard_s, self._limit_s(now_s)
        if limit_s is None or silent_s <= limit_s:
            return None
        if self._stopping:
            return Overdue(reason="hung_stop", text=f"it was told to stop and did not for {silent_s:.0f} s")
        if self._in_steps(now_s):
            text = (
                f"a step hung: nothing was heard for {silent_s:.1f} s, where the longest step so far took "
                f"{self._longest_s:.3g} s; raise watchdog_s ({self._base_s:g}) if steps may take so long"
            )
            return Overdue(reason="hung_step", text=text)
        doing = self._doing or self._order.name or self._order.command
        return Overdue(reason="hung_setup", text=f"it hung: nothing was heard for {silent_s:.1f} s ({doing})")

    def _limit_s(self, now_s: float) -> float | None:
        if self._stopping:
            return STOP_GRACE_S + 5 * self._longest_s  # tables are still written after the last step
        if not self._base_s:
            return None
        if self._order.command == "prepare":
            return LOADING_S
        return self._base_s + self._extra_s + STEPS * self._longest_s if self._in_steps(now_s) else BETWEEN_S

    def _in_steps(self, now_s: float) -> bool:
        """Between the first and the last step of a pass; one that was cut by time writes its tables unannounced."""
        order = self._order
        cut = (order.deadline_s is not None and now_s >= order.deadline_s) or (
            order.max_seconds is not None and now_s >= self._began_s + order.max_seconds
        )
        return self._steps and not cut
