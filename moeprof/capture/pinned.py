"""Copies between host and device that wait for nothing.

torch keeps freed pinned memory and gives it out again once the copies that used it are done (it asks their events, it
does not wait), so after the first few calls nothing is allocated here. A private pool would do the same work again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch


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
