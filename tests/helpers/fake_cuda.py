"""A stand-in for torch.cuda's allocator: numbers that a test sets, on a machine without a GPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

GIB = 2**30


@dataclass
class FakeCuda:
    """Allocated and reserved bytes now and at their peaks; a test moves them with :meth:`hold`."""

    total: int = 140 * GIB
    allocated: int = 0
    reserved: int = 0
    peak_allocated: int = 0
    peak_reserved: int = 0
    segments: int = 0
    others: int = 0
    emptied: int = 0
    blocks: list[dict[str, Any]] = field(default_factory=list)

    def hold(self, allocated: int, reserved: int | None = None) -> None:
        """From now on so many bytes are held; more reserved memory is a new segment."""
        self.allocated = allocated
        if reserved is not None and reserved != self.reserved:
            self.segments += reserved > self.reserved
            self.reserved = reserved
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        self.peak_reserved = max(self.peak_reserved, self.reserved)

    def stats(self, device: Any = None) -> dict[str, int]:
        return {
            "allocated_bytes.all.current": self.allocated,
            "allocated_bytes.all.peak": self.peak_allocated,
            "reserved_bytes.all.current": self.reserved,
            "reserved_bytes.all.peak": self.peak_reserved,
            "segment.all.allocated": self.segments,
            "segment.all.freed": 0,
            "num_alloc_retries": 0,
        }

    def reset(self, device: Any = None) -> None:
        self.peak_allocated, self.peak_reserved = self.allocated, self.reserved

    def empty_cache(self) -> None:
        self.emptied += 1
        self.reserved = self.allocated

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
        """Put it where torch.cuda's functions are."""
        for name, function in {
            "memory_stats": self.stats,
            "reset_peak_memory_stats": self.reset,
            "empty_cache": self.empty_cache,
            "synchronize": lambda device=None: None,
            "memory_allocated": lambda device=None: self.allocated,
            "memory_reserved": lambda device=None: self.reserved,
            "max_memory_allocated": lambda device=None: self.peak_allocated,
            "mem_get_info": lambda device=None: (self.total - self.reserved - self.others, self.total),
            "memory_snapshot": lambda: [{"blocks": self.blocks}],
        }.items():
            monkeypatch.setattr(torch.cuda, name, function)
        return self
