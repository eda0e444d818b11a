"""Copies between host and device that wait for nothing, and captures that do no harm when they fail.

torch keeps freed pinned memory and gives it out again once the copies that used it are done (it asks their events, it
does not wait), so after the first few calls nothing is allocated here. A private pool would do the same work again.

torch ends a failed capture with an error of its own ("capturing was invalidated"), which hides the one that broke it,
and leaves the capture's stream as the current one. Before torch 2.12 its allocator also goes on believing that the
capture is under way, and the next ``torch.cuda.empty_cache`` fails (pytorch/pytorch#180395). All of it is mended here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch

from moeprof.capture import compat


def to_device(values: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """The values on the device; on a GPU through pinned memory, so that the host goes on at once."""
    if device.type != "cuda":
        return torch.from_numpy(np.ascontiguousarray(values)).to(device)
    host = torch.empty(values.shape, dtype=torch.from_numpy(values[:0]).dtype, pin_memory=True)
    host.numpy()[...] = values
    return host.to(device, non_blocking=True)


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """An asynchronous copy into pinned memory; valid once the stream has passed this point."""
    if not tensor.is_cuda:
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


T = TypeVar("T")


def capture(run: Callable[[], T], device: torch.device, *, pool: Any = None) -> tuple[Callable[[], None], T]:
    """Capture one run; what libraries do once (handles, tuning, compiling) must have been done before.

    Args:
        run: launches the work on the current stream.
        device: where.
        pool: memory shared with other graphs (``torch.cuda.graph_pool_handle``), or None for memory of its own.

    Returns:
        How to replay, and the result of the run, which every replay fills anew.

    Raises:
        Exception: whatever went wrong first.
    """
    graph: Any = torch.cuda.CUDAGraph()
    pool = torch.cuda.graph_pool_handle() if pool is None else pool
    broken: Exception | None = None
    try:
        # Other threads may ask the device for something (memory readings) while this one captures.
        with (
            torch.cuda.stream(torch.cuda.current_stream(device)),
            torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"),
        ):
            try:
                result = run()
            except Exception as error:
                broken = error
                raise
    except Exception as error:
        broken = broken or error
    if broken is not None:
        if compat.end_allocation(torch.cuda.current_device() if device.index is None else device.index, pool):
            _failed.append(graph)
        raise broken
    return graph.replay, result


_failed: list[Any] = []  # the allocator of pinned memory may still ask them whose capture a stream is in


@functools.cache
def side_stream(device: torch.device) -> Any:
    """One stream for runs before a capture: libraries keep tens of megabytes for every stream that they see."""
    return cast("type[Any]", torch.cuda.Stream)(device)
