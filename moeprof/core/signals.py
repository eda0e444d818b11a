"""Signals that ask a command to end: Ctrl-C, TERM and HUP, heard from its first line to its last.

Normally one ends the command where it stands. While it measures, the first is only remembered, so that the step under
way ends and what was measured is kept; the second ends it where it stands, the third does not even clean up (workers
end with their parent, and the next start sweeps what it left). A library that swallows the exception does not swallow
the wish: the next watch raises it anew, and the command's exit code is that of the signal.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, ClassVar, Self

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WITHOUT_CLEANING_UP = 3


class SignalWatch:
    """Hears the signals that ask for an end while active. Does nothing outside the main thread.

    Args:
        patient: a first signal is remembered in ``number``, for a loop that looks there; else it is raised at once.

    Attributes:
        number: the first signal that this watch heard; 0: none.
        heard: all that came since the outermost watch began.
    """

    heard: ClassVar[list[int]] = []
    _depth: ClassVar[int] = 0

    def __init__(self, *, patient: bool = True) -> None:
        self.number = 0
        self._patient = patient
        self._old: dict[int, Any] = {}

    @property
    def at_once(self) -> bool:
        """Somebody asked a second time: nothing is worth waiting for."""
        return len(self.heard) > 1

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        if not SignalWatch._depth:
            self.heard.clear()
        elif self.heard:
            raise KeyboardInterrupt  # one that a library took for its own error
        SignalWatch._depth += 1
        for number in ENDING:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup's wish is kept
                self._old[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._old:
            SignalWatch._depth -= 1
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.heard.append(number)
        if len(self.heard) >= WITHOUT_CLEANING_UP:
            os._exit(128 + self.heard[0])
        is_first, self.number = not self.number, self.number or number
        if not (is_first and self._patient) or self.at_once:
            raise KeyboardInterrupt


@contextmanager
def held_back() -> Iterator[None]:
    """Processes started inside begin deaf to these signals, until :func:`let_in`; this thread hears none meanwhile."""
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # its own start would let them in again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def let_in() -> None:
    """In a process that began deaf: what it does about these signals is settled, so they may come."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
