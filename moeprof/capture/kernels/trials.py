"""Candidates tried on random data: does it agree with the plain form, can it be captured, how long does it take?"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from moeprof.capture.devices.streams import capture

# Largest difference from the plain form, over the largest magnitude of the plain form. A step of bfloat16 is
# 2^-8 = 0.4 %, of float16 2^-11; weights of a softmax and inner activations are rounded once more.
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 1e-4}
# Where the kernel rounds once and the original after each operation: some last bits (2^-8, 2^-11, 2^-24).
LAST_BITS = {torch.bfloat16: 2**-6, torch.float16: 2**-9, torch.float32: 1e-5}
REPEATS = 20  # calls in one captured graph
ROUNDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """How a candidate did.

    Attributes:
        name: of the candidate.
        why_out: why it was left out, or None when it could have been taken.
        error_ratio: largest difference from the plain form over the largest magnitude, or None when it did not run.
        seconds: of one call per trial case, in the order of ``cases``; empty when it was not timed.
        cases: what was timed, in words.
    """

    name: str
    why_out: str | None = None
    error_ratio: float | None = None
    seconds: tuple[float, ...] = ()
    cases: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.why_out is not None:
            return f"{self.name}: {self.why_out}"
        times = ", ".join(f"{s * 1e6:.0f} us {case}" for s, case in zip(self.seconds, self.cases, strict=True))
        return f"{self.name}: {times or 'not timed'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A candidate on random data.

    Attributes:
        name: in words, for the record.
        call: the candidate.
        plain: the plain form.
        change: puts other values (same shapes) into the inputs, in place.
        dtype: decides the tolerance.
        is_timed: False where only agreement counts.
    """

    name: str
    call: Callable[[], torch.Tensor]
    plain: Callable[[], torch.Tensor]
    change: Callable[[], None]
    dtype: torch.dtype
    is_timed: bool = True


class Stopwatch(Protocol):
    """Runs a candidate as decode steps run it."""

    def capture(self, call: Callable[[], torch.Tensor], repeats: int) -> tuple[Callable[[], None], torch.Tensor]:
        """Prepare ``repeats`` calls as one launch; returns how to launch and where the last call's result lies."""

    def seconds(self, launch: Callable[[], None]) -> float:
        """Device time of one launch, the shortest of a few."""


class CudaStopwatch:
    """Calls captured in a CUDA graph: what the host needs to launch them is not timed, as in captured decode steps."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def capture(self, call: Callable[[], torch.Tensor], repeats: int) -> tuple[Callable[[], None], torch.Tensor]:
        """See :class:`Stopwatch`. Runs once before, so that what is compiled is compiled."""
        call()
        torch.cuda.synchronize(self._device)

        def run() -> torch.Tensor:
            for _ in range(repeats):
                out = call()
            return out

        return capture(run, self._device)

    def seconds(self, launch: Callable[[], None]) -> float:
        """See :class:`Stopwatch`."""
        launch()
        event: Any = torch.cuda.Event
        found = []
        for _ in range(ROUNDS):
            begin, end = (event(enable_timing=True) for _ in range(2))
            begin.record()
            launch()
            end.record()
            end.synchronize()
            found.append(begin.elapsed_time(end) / 1e3)
        return float(min(found))


class HostStopwatch:
    """Plain calls and the host's clock, on a CPU."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock

    def capture(self, call: Callable[[], torch.Tensor], repeats: int) -> tuple[Callable[[], None], torch.Tensor]:
        """See :class:`Stopwatch`; a launch copies into the result, as a replay would."""
        out = call().clone()

        def launch() -> None:
            for _ in range(repeats):
                out.copy_(call())

        return launch, out

    def seconds(self, launch: Callable[[], None]) -> float:
        """See :class:`Stopwatch`."""
        found = []
        for _ in range(ROUNDS):
            begin = self._clock()
            launch()
            found.append(self._clock() - begin)
        return min(found)


def stopwatch_of(device: torch.device) -> Stopwatch:
    """The stopwatch of a device."""
    return CudaStopwatch(device) if device.type == "cuda" else HostStopwatch()


def error_ratio(found: torch.Tensor, plain: torch.Tensor) -> float:
    """Largest difference over the largest magnitude of ``plain``; infinite where ``found`` is not finite."""
    if not bool(torch.isfinite(found).all()):
        return float("inf")
    most = plain.float().abs().max().clamp(min=1e-30)
    return float((found.float() - plain.float()).abs().max() / most)


def run_trial(
    name: str,
    cases: Sequence[Case],
    stopwatch: Stopwatch,
    tolerance: Mapping[torch.dtype, float] = TOLERANCE,
) -> Trial:
    """Capture, change the inputs, launch, compare, time; whatever goes wrong is the reason to leave it out.

    Inputs change between capture and launch: a candidate that baked their values into its launches disagrees.
    """
    worst, seconds, timed = 0.0, [], []
    why_out: str | None = None
    for case in cases:
        repeats = REPEATS if case.is_timed else 1
        try:
            launch, out = stopwatch.capture(case.call, repeats)
            case.change()
            launch()
            worst = max(worst, error_ratio(out, case.plain()))
            if worst > tolerance[case.dtype]:
                why_out = f"is off by {worst:.1e} at {case.name}, {tolerance[case.dtype]:.0e} is allowed"
            elif case.is_timed:
                seconds.append(stopwatch.seconds(launch) / repeats)
                timed.append(case.name)
        except Exception as error:
            # A candidate may fail in any way (compiler, driver, library): the plain form stays, the reason is kept.
            why_out = f"failed at {case.name}: {one_line(error)}"
        if why_out is not None:
            return Trial(name=name, why_out=why_out, error_ratio=worst or None)
    return Trial(name=name, error_ratio=worst, seconds=tuple(seconds), cases=tuple(timed))


def fastest(trials: Sequence[Trial]) -> Trial | None:
    """The trial with the smallest product of seconds (each case counts alike), or None when all are out."""
    usable = [trial for trial in trials if trial.why_out is None]
    return min(usable, key=lambda trial: math.prod(trial.seconds), default=None)


def one_line(error: Exception) -> str:
    """Type and message of an error, cut to what a record can bear."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
