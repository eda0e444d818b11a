"""Times a step on the device and brings its tokens to the host without a wait in between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch


@dataclass(slots=True)
class Marks:
    """Events of one step: device work begins, ends, tokens are on the host."""

    start: Any
    end: Any
    copied: Any


class StepWatch:
    """Marks steps by events; on a CPU, where work is done when a call returns, there is nothing to mark."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"

    def start(self) -> Marks | None:
        """Just before a step's first device work."""
        if not self._is_cuda:
            return None
        event = cast("type[Any]", torch.cuda.Event)
        marks = Marks(event(enable_timing=True), event(enable_timing=True), event())
        marks.start.record()
        return marks

    def end(self, marks: Marks | None, chosen: torch.Tensor) -> torch.Tensor:
        """Just after its last; returns where its tokens will be on the host (a copy: captured steps reuse theirs)."""
        if marks is None:
            return chosen.clone()
        marks.end.record()
        host = torch.empty(chosen.shape, dtype=chosen.dtype, pin_memory=True)
        host.copy_(chosen, non_blocking=True)
        marks.copied.record()
        return host

    def wait(self, marks: Marks | None) -> float | None:
        """Until its tokens are on the host; device seconds of the step, or None on a CPU."""
        if marks is None:
            return None
        marks.copied.synchronize()
        return float(marks.start.elapsed_time(marks.end)) / 1e3
