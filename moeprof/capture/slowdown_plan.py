"""A test hook as plain data, without torch: how much slower an engine is made (see capture/slowdown.py)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Slowdown:
    """Time burnt after steps, to test whether a comparison notices. Never set by a workload.

    Attributes:
        ratio: of the step's own time; 0.03 makes it 3 % slower.
        every: only each so-manieth step, spread evenly; 1: all.
    """

    ratio: float
    every: int = 1
