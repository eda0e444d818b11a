"""Where a hung process stands, and where a crashed one stood: the stacks of its threads, written by itself.

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
from pathlib import Path
from typing import TextIO

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
    told = [_frame(frame) for frame in frames]
    own = next((text for text in told if text.startswith("moeprof/")), None)
    return told[0] if own is None or own == told[0] else f"{told[0]}, called by {own}"


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
