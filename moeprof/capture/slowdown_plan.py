"""Test hooks as plain data, without torch: how an engine is slowed or broken (see capture/slowdown.py)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """An engine that breaks in the step after a request was handed over. Never set by a workload.

    Attributes:
        kind: ``hang`` waits for ever; the others raise what torch raises.
        model: of which model.
        request: number in the schedule; warm-up has fewer, so that a pass is what breaks.
    """

    kind: Literal["hang", "out_of_memory", "device_assert", "device_error", "device_lost"]
    model: str
    request: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Slowdown:
    """Time burnt after steps, to test whether a comparison notices. Never set by a workload.

    Attributes:
        ratio: of the step's own time; 0.03 makes it 3 % slower.
        every: only each so-manieth step, spread evenly; 1: all.
        faults: break the engine on top.
    """

    ratio: float
    every: int = 1
    faults: tuple[Fault, ...] = ()

    def of_model(self, name: str) -> Slowdown:
        """The same, without faults that are meant for other models."""
        return replace(self, faults=tuple(fault for fault in self.faults if fault.model == name))
