"""Test hooks: an engine that burns time after its steps, to see whether a comparison notices; one that breaks.

Never for users.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TypeVar, cast

import torch

from moeprof.capture.engines.base import Engine, ServedEngine, Step, WrappedEngine
from moeprof.capture.protocol import Fault, Slowdown
from moeprof.core.trace import Request


class SlowedEngine(WrappedEngine):
    """The engine, with ``slowdown`` after its steps: a busy loop, so that processor time grows as wall time does.

    The count of steps goes on over passes, so that slow ones do not always hit the same requests.
    """

    def __init__(self, engine: Engine, slowdown: Slowdown) -> None:
        super().__init__(engine)
        self._slowdown = slowdown
        self._steps = 0
        self._due: Fault | None = None

    def submit(self, request: Request) -> None:
        """Hand on; a fault is due in the next step."""
        self._due = next((fault for fault in self._slowdown.faults if fault.request == request.index), self._due)
        self._engine.submit(request)

    def step(self) -> Step | None:
        """One step, then what it is slowed by."""
        if self._due is not None:
            break_down(self._due)
        start = time.perf_counter()
        step = self._engine.step()
        end = time.perf_counter()
        self._steps += 1
        if step is not None and self._steps % self._slowdown.every == 0:
            until = end + self._slowdown.ratio * (end - start)
            while time.perf_counter() < until:
                pass
            step = replace(step, end_s=time.perf_counter())  # a run reads step times from here
        return step


def break_down(fault: Fault) -> None:
    """Hang, or raise as torch does."""
    if fault.kind == "hang":
        threading.Event().wait()
    if fault.kind == "out_of_memory":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    said = {
        "device_assert": "device-side assert triggered",
        "device_error": "an illegal memory access was encountered",
        "device_lost": "GPU is lost",
    }
    raise RuntimeError(f"CUDA error: {said[fault.kind]}\nCUDA kernel errors might be reported later.")


E = TypeVar("E", bound=ServedEngine)


def slowed(engine: E, slowdown: Slowdown | None) -> E | SlowedEngine:
    """The engine itself without a slowdown; only engines that we step can be slowed."""
    return engine if slowdown is None else SlowedEngine(cast("Engine", engine), slowdown)
