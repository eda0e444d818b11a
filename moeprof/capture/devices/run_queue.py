"""How long the machine let a step wait for a processor: Linux's own account, by thread.

``/proc/thread-self/schedstat`` holds the nanoseconds in which the thread was ready to run and another program had the
processor. Wall time less this is the step's own time: what it computed and what it waited for by itself (locks, sleep,
disk). It is exact where one thread computes; with several, one that waits lets the others wait too, and their times do
not add up, so nothing is said. Nor is a hypervisor's theft in it. A look takes about a microsecond.
Source: https://docs.kernel.org/scheduler/sched-stats.html
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch

FILE = Path("/proc/thread-self/schedstat")
LONGEST = 128


def nobody_knows() -> float | None:
    """A clock that says nothing."""
    return None


def run_queue_clock(device: torch.device) -> Callable[[], float | None]:
    """Seconds that this thread has waited for a processor.

    Nothing is known on a GPU, elsewhere than on Linux, and where several threads compute.
    """
    if device.type != "cpu" or torch.get_num_threads() != 1:
        return nobody_knows
    try:
        file = os.open(FILE, os.O_RDONLY)  # of the thread that opens it; stays open as long as the process
        waited_s(file)
    except (OSError, ValueError, IndexError):
        return nobody_knows
    return lambda: waited_s(file)


def waited_s(file: int) -> float:
    """The second of three numbers, in seconds."""
    return int(os.pread(file, LONGEST, 0).split()[1]) / 1e9
