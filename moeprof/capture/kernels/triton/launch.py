"""What all launches of Triton programs share: the device they go to, how many processors it has, padded sizes."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import Any

import torch

STAND_IN_PROCESSORS = 4  # multiprocessors of a "device" that is none (Triton's interpreter on a CPU)
MIN_ROWS = 16  # least rows and columns of tl.dot


def why_no_triton() -> str | None:
    """The reason why no Triton kernel can run here, or None. No C compiler is one that only a launch finds out."""
    return "triton is not installed" if importlib.util.find_spec("triton") is None else None


@functools.cache
def programs() -> Any:
    """The programs; they cannot be imported where there is no Triton."""
    return importlib.import_module("moeprof.capture.kernels.triton.programs")


def launch(program: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], **constants: Any) -> None:
    """Launch a ``triton.jit`` function on the current stream of its tensors' device, which Triton does not look at."""
    device = next(one.device for one in arguments if isinstance(one, torch.Tensor))
    with torch.cuda.device(device if device.type == "cuda" else -1):
        program[grid](*arguments, **constants)


@functools.cache
def processors(device: torch.device) -> int:
    """Multiprocessors of the device; a stand-in on a CPU."""
    if device.type != "cuda":
        return STAND_IN_PROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@functools.cache
def padded(size: int, least: int = MIN_ROWS) -> int:
    """The power of two that holds ``size``."""
    return max(least, 1 << (size - 1).bit_length())
