"""When a worker has been silent for too long. Belongs to the parent process; no torch.

A worker shows that it lives about once a second while its loop turns, and tells the longest step so far. A step counts
as hung when nothing was heard for the workload's ``watchdog_s`` and fifty times that step on top. Work that is no step
has limits of its own: reading weights tells nothing on the way, and so do captured graphs and tables being written.

Where a hung process stands, and where a crashed one stood: the stacks of its threads, written by itself.

The worker registers the signal, the parent sends it. ``faulthandler`` answers from its own handler in C, so a main
thread that waits for a device, and never gets back to Python, still tells where it waits.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from moeprof.capture.protocol import Order, Report

LOADING_S = 1800.0  # a slow disk takes this long for the 90 GB of a large model
BETWEEN_S = 900.0  # an engine is built and its graphs are captured; tables of a long pass are written
COMPILING_S = 600.0  # a compiled model meets a shape for the first time
STOP_GRACE_S = 20.0  # from the order to stop to having stopped, apart from the step that is under way
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
        self._last_report_s = self._began_s
        self._steps, self._stopping, self._doing = False, False, "loading" if order.command == "prepare" else ""

    def on_report(self, report: Report) -> None:
        """Anything that comes from the worker is a sign of life; progress of a pass says how its steps go."""
        self._last_report_s = self._clock()
        data = report.data
        self._doing = data.get("doing", self._doing)
        self._longest_s = max(self._longest_s, data.get("longest_step_s", 0.0))
        if data.get("steps") and "total" in data:
            self._steps = data["done"] + data["refused"] < data["total"]  # after the last one tables are written

    def stop(self) -> None:
        """It got the order to stop after its current step."""
        self._stopping, self._last_report_s = True, self._clock()

    def overdue(self) -> Overdue | None:
        """What is wrong, or None as long as waiting is fine."""
        now_s = self._clock()
        silent_s, limit_s = now_s - self._last_report_s, self._limit_s(now_s)
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


PATIENCE_S = 3.0
LOOK_EVERY_S = 0.05
FRAME = re.compile(r'File "([^"]*)", line (\d+) in (\S+)')


def answer_stack_requests(path: Path) -> TextIO:
    """From now on SIGUSR1 (where the system has it) and crashes append the stacks of all threads to this file.

    The file stays open: the handler has no time to open one.
    """
    file = path.open("w", encoding="utf-8")
    faulthandler.enable(file=file, all_threads=True)
    if hasattr(faulthandler, "register"):
        faulthandler.register(signal.SIGUSR1, file=file, all_threads=True)
    return file


def ask_for_stacks(pid: int, path: Path) -> str | None:
    """The stacks of a process that listens, paths of this machine cut off; None when it does not answer in time."""
    if not hasattr(faulthandler, "register"):
        return None
    with contextlib.suppress(OSError):  # it ended by itself meanwhile
        os.kill(pid, signal.SIGUSR1)
    until, seen = time.monotonic() + PATIENCE_S, ""
    while time.monotonic() < until:
        time.sleep(LOOK_EVERY_S)
        now = _read(path)
        if now and now == seen:
            break  # written to its end
        seen = now
    return _without_folders(seen) or None


def stacks_of_crash(path: Path) -> str | None:
    """What a process wrote when it crashed (a bad address, an abort), or None: it was killed from outside."""
    return _without_folders(_read(path)) or None


def where(stacks: str) -> str | None:
    """The innermost frame of the thread that does the work, and the line of moeprof that called it; None if unknown."""
    threads = re.split(r"\n\s*\n", stacks)
    main = next((thread for thread in threads if "worker_main" in thread), None)
    frames = FRAME.findall(main or "")
    if not frames:
        return None
    frames_text = [_frame(frame) for frame in frames]
    own = next((text for text in frames_text if text.startswith("moeprof/")), None)
    return frames_text[0] if own is None or own == frames_text[0] else f"{frames_text[0]}, called by {own}"


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _frame(frame: tuple[str, str, str]) -> str:
    path, line, function = frame
    return f"{path}:{line} {function}"


def _without_folders(stacks: str) -> str:
    """Paths from the package on; a record may be published."""

    def cut(match: re.Match[str]) -> str:
        path = match[1]
        for start in ("site-packages/", "/moeprof/"):
            if start in path:
                return f'File "{"moeprof/" * (start == "/moeprof/")}{path.rpartition(start)[2]}"'
        return f'File "{"/".join(Path(path).parts[-2:])}"'

    return re.sub(r'File "([^"]*)"', cut, stacks)
