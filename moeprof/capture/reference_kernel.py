"""A fixed piece of work, timed before each pass: how fast was the machine itself just then?

Its time is reported and never used to correct a figure. It was tried (DESIGN section 9): dividing by a reference kernel
made things worse, the largest gap between runs of the same code grew from 20 to 37 %, because noise rarely hits two
pieces of work alike. Where it drifts as far as a figure did and in the same direction, that figure is in doubt; that is
all it can say.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, cast

import torch

REPETITIONS = 15
WARM_UP = 2
# Width of the matrices, products in the chain, floats of the elementwise pass. Small: it must not move memory peaks.
CPU_WORK = (384, 4, 2**20)
CUDA_WORK = (1024, 32, 2**22)


def time_reference(
    device: torch.device, *, repetitions: int = REPETITIONS, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Median seconds of one run of the kernel: a chain of float32 matrix products, then a pass over a vector.

    The same numbers every time, in buffers taken before the first run; two runs warm up. About 70 ms on one core. On a
    GPU the time is the device's own, between events; elsewhere the clock's.

    Args:
        device: where models run; a CPU uses as many threads as torch is set to.
        repetitions: timed runs, of which the median is taken.
        clock: seconds, for a device without events.
    """
    with torch.inference_mode():
        work = _kernel(device)
        for _ in range(WARM_UP):
            work()
        if device.type == "cuda":
            with torch.cuda.device(device):
                return statistics.median(_device_seconds(work, repetitions))
        return statistics.median(_clock_seconds(work, repetitions, clock))


def _kernel(device: torch.device) -> Callable[[], None]:
    """The work, with its memory. The same input starts every run, so numbers neither grow nor fade."""
    width, products, length = CUDA_WORK if device.type == "cuda" else CPU_WORK
    generator = torch.Generator().manual_seed(0)  # its own: a model's draws are not disturbed
    start = torch.randn(width, width, generator=generator).to(device)
    factor = (torch.randn(width, width, generator=generator) / width**0.5).to(device)
    vector = torch.ones(length, device=device)
    buffers = (torch.empty_like(start), torch.empty_like(start))

    def work() -> None:
        source = start
        for i in range(products):
            torch.mm(source, factor, out=buffers[i % 2])
            source = buffers[i % 2]
        torch.mul(vector, 1.0, out=vector)

    return work


def _clock_seconds(work: Callable[[], None], repetitions: int, clock: Callable[[], float]) -> list[float]:
    found = []
    for _ in range(repetitions):
        start = clock()
        work()
        found.append(clock() - start)
    return found


def _device_seconds(work: Callable[[], None], repetitions: int) -> list[float]:
    """Between events on the device's queue, so that the host's launch time is not in it once the queue is filled."""
    event = cast("type[Any]", torch.cuda.Event)
    marks = [event(enable_timing=True) for _ in range(repetitions + 1)]
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) / 1000 for before, after in pairwise(marks)]
