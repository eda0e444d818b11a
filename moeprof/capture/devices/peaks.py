"""What the device can really do: memory bandwidth and matrix rate, measured when a run starts.

Bandwidth is the best of copying (each byte counted twice: read and written), reading, and a matrix-vector product, on
buffers several times larger than the last cache. The matrix rate is that of a large product of random numbers in the
run's dtype (zeros would draw less power and run faster).

A fixed piece of work, timed before each pass: how fast was the machine itself just then?

Its time is reported and never used to correct a figure. It was tried: dividing by a reference kernel
made things worse, the largest gap between runs of the same code grew from 20 to 37 %, because noise rarely hits two
pieces of work alike. Where it drifts as far as a figure did and in the same direction, that figure is in doubt; that is
all it can say.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch

from moeprof.capture.devices.host_memory import host_room

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
CACHES_IN_BUFFER = 2  # smallest buffer, in last-level caches
SMALLEST_BUFFER_BYTES = 256 * 2**20
# A launch takes microseconds, in which a card moves tens of megabytes. Under 2 GiB torch's kernels count in 32 bits.
LARGE_BUFFER_BYTES = 2**31 - 2**26
MATMUL_SIZES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One timed run.

    Attributes:
        kind: ``copy``, ``read``, ``matrix_vector`` or ``matmul_<dtype>``.
        amount: bytes moved, or FLOPs.
        seconds: time of the best repetition.
    """

    kind: str
    amount: float
    seconds: float

    @property
    def per_s(self) -> float:
        """Bytes or FLOPs per second."""
        return self.amount / self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Peaks:
    """Measured limits of a device.

    Attributes:
        device: for example ``cpu`` or ``cuda:0``.
        threads: CPU threads used.
        bandwidth_bytes_per_s: best of the bandwidth trials, or None with ``bandwidth_reason``.
        bandwidth_method: kind of the best trial.
        bandwidth_reason: why there is none.
        flops_per_s: best of the matrix products per dtype; a dtype that the device cannot multiply is left out.
        cache_bytes: last-level cache, or None when unknown. Models that fit into it are not bound by bandwidth.
        buffer_bytes: size of the buffer.
        trials: all of them.
        spent_s: how long it took.
    """

    device: str
    threads: int
    bandwidth_bytes_per_s: float | None
    bandwidth_method: str | None
    bandwidth_reason: str | None
    flops_per_s: dict[str, float]
    cache_bytes: int | None
    buffer_bytes: int | None
    trials: tuple[Trial, ...]
    spent_s: float

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


def measure_peaks(
    device: torch.device,
    threads: int,
    *,
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16),
    budget_s: float = 2.0,
) -> Peaks:
    """Measure a device.

    Args:
        device: ``cpu`` or a CUDA device.
        threads: CPU threads, the run's own number; restored afterwards.
        dtypes: of the matrix products; those that models run in.
        budget_s: about how long to take; each trial runs at least once.
    """
    before, started = torch.get_num_threads(), time.perf_counter()
    torch.set_num_threads(threads)
    try:
        cache = cache_bytes(device)
        size = _buffer_bytes(device, cache)
        bandwidth = () if size is None else _bandwidth_trials(device, size, budget_s / 2)
        matmul = {name_of(dtype): _matmul_trials(device, dtype, budget_s / 2 / len(dtypes)) for dtype in dtypes}
    finally:
        torch.set_num_threads(before)
    best = max(bandwidth, key=lambda trial: trial.per_s, default=None)
    return Peaks(
        device=str(device),
        threads=threads,
        bandwidth_bytes_per_s=best.per_s if best else None,
        bandwidth_method=best.kind if best else None,
        bandwidth_reason=None if best else "too little free memory for a buffer larger than the cache",
        flops_per_s={name: max(trial.per_s for trial in trials) for name, trials in matmul.items() if trials},
        cache_bytes=cache,
        buffer_bytes=size,
        trials=(*bandwidth, *(trial for trials in matmul.values() for trial in trials)),
        spent_s=time.perf_counter() - started,
    )


def name_of(dtype: torch.dtype) -> str:
    """``torch.bfloat16`` -> ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


def cache_bytes(device: torch.device, root: Path = CACHES) -> int | None:
    """The largest cache of the device, or None when it does not say."""
    if device.type == "cuda":
        return int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)) or None
    sizes = [_parse_size(file) for file in root.glob("index*/size")]
    return max((size for size in sizes if size is not None), default=None)


def _parse_size(file: Path) -> int | None:
    """``32768K`` -> bytes."""
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    factor = {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1:], 1)
    digits = text.rstrip("KMG")
    return int(digits) * factor if digits.isdecimal() else None


def _buffer_bytes(device: torch.device, cache: int | None) -> int | None:
    """Large enough to miss the cache, on a GPU so large that a launch is nothing beside it; None when it cannot fit."""
    least = max(SMALLEST_BUFFER_BYTES, CACHES_IN_BUFFER * (cache or 0))
    if device.type != "cuda":
        return least if least <= host_room().free_bytes // 4 else None
    room = torch.cuda.mem_get_info(device)[0] // 4
    return max(least, min(room, LARGE_BUFFER_BYTES)) if least <= room else None


def _bandwidth_trials(device: torch.device, size: int, budget_s: float) -> tuple[Trial, ...]:
    """Copy between the halves of one buffer, read all of it, multiply it with a vector."""
    rows = 2 * max(1, size // 4 // 4096 // 2)
    buffer = torch.ones(rows, 4096, dtype=torch.float32, device=device)
    low, high = buffer[: rows // 2], buffer[rows // 2 :]
    vector = torch.ones(4096, dtype=torch.float32, device=device)
    num_bytes = buffer.numel() * 4
    share = budget_s / 3
    return (
        _trial("copy", num_bytes, lambda: high.copy_(low), device, share),
        _trial("read", num_bytes, lambda: buffer.sum(), device, share),
        _trial("matrix_vector", num_bytes, lambda: torch.mv(buffer, vector), device, share),
    )


def _matmul_trials(device: torch.device, dtype: torch.dtype, budget_s: float) -> tuple[Trial, ...]:
    """Square products of random numbers, larger ones as long as the budget allows."""
    trials: list[Trial] = []
    sizes = MATMUL_SIZES.get(device.type, MATMUL_SIZES["cpu"])
    deadline = time.perf_counter() + budget_s
    for n in sizes:
        if trials and trials[-1].seconds * (n / sizes[len(trials) - 1]) ** 3 > deadline - time.perf_counter():
            break
        try:
            a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
            multiply = partial(torch.matmul, a, b)
            trials.append(_trial(f"matmul_{name_of(dtype)}", 2.0 * n**3, multiply, device, budget_s / len(sizes)))
        except (RuntimeError, NotImplementedError):
            break
    return tuple(trials)


def _trial(kind: str, amount: float, work: Callable[[], Any], device: torch.device, budget_s: float) -> Trial:
    """The shortest of the runs that fit the budget, at least one; the shortest is never the warm-up unless alone."""
    started = time.perf_counter()
    best = _timed(work, device)
    while time.perf_counter() - started < budget_s:
        best = min(best, _timed(work, device))
    return Trial(kind=kind, amount=amount, seconds=best)


def _timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one run, from idle to idle; on a GPU by its own clock, without the host's way there and back."""
    if device.type != "cuda":
        start_s = time.perf_counter()
        work()
        return time.perf_counter() - start_s
    event: Any = torch.cuda.Event
    start, end = event(enable_timing=True), event(enable_timing=True)
    with torch.cuda.device(device):
        torch.cuda.synchronize()
        start.record()
        work()
        end.record()
        end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


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
