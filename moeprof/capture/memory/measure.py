"""Memory of a worker: device allocator where there is one, resident set of the process always.

On a CPU there is no allocator to ask, so activation peak, reserved and fragmentation are null with that reason.
Fragmentation at the peak needs both figures of one moment, and the allocator tells two peaks. What it reserves is
constant while no segment comes or goes; then both belong together, and the record says whether that was so.
"""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path
from typing import Any

import psutil
import torch

NO_ALLOCATOR = "torch keeps no allocator statistics on a CPU"
_SEGMENTS = ("segment.all.allocated", "segment.all.freed")


class Watch:
    """Notes memory at the moments that matter: after loading, after the cache, in each pass."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cuda = device.type == "cuda"
        self._start_bytes = psutil.Process().memory_info().rss
        self._facts: dict[str, Any] = {}
        self._worst: dict[str, Any] = {}
        if self._cuda:
            self._forget()

    def forget_peak(self) -> None:
        """What came before (measuring the device) is not the model's."""
        if self._cuda:
            torch.cuda.empty_cache()
            self._forget()
        _forget_rss_peak()

    def loaded(self) -> None:
        """Weights are there."""
        self._facts["after_load_bytes"] = self._now()
        self._facts["load_peak_bytes"] = self._peak()

    def engine_ready(self, kv_bytes: int | None) -> None:
        """The KV cache is there. Peaks count from here on."""
        self._facts["kv_cache_bytes"] = kv_bytes
        self._base_bytes = self._now()
        self._worst = {}
        if self._cuda:
            self._forget()

    def warmed_up(self) -> None:
        """Libraries have done what they do once; weights and cache are in it."""
        self._facts["after_warmup_bytes"] = self._now()

    def pass_started(self) -> None:
        """What came before (warming up, another pass) is kept, and not this pass's."""
        if self._cuda:
            self._keep(self._since())
            self._forget()

    def pass_ended(self) -> dict[str, Any]:
        """What was taken at its worst since the last start or end of a pass."""
        if not self._cuda:
            return {"host_rss_peak_bytes": rss_peak_bytes()}
        found = self._since()
        self._keep(found)
        self._forget()
        return found | {"host_rss_peak_bytes": rss_peak_bytes()}

    def allocator(self) -> dict[str, Any]:
        """Allocated and reserved bytes now; empty on a CPU."""
        if not self._cuda:
            return {}
        return {
            "allocated_bytes": torch.cuda.memory_allocated(self._device),
            "reserved_bytes": torch.cuda.memory_reserved(self._device),
        }

    def summary(self) -> dict[str, Any]:
        """The ``memory`` part of launch.json."""
        facts = dict(self._facts) | {"host_rss_peak_bytes": rss_peak_bytes(), "host_rss_start_bytes": self._start_bytes}
        if not self._cuda:
            names = ("peak_allocated_bytes", "peak_reserved_bytes", "activation_peak_bytes")
            total, reasons = psutil.virtual_memory().total, dict.fromkeys(names, NO_ALLOCATOR)
            return facts | {"kind": "host", "device_total_bytes": total, **dict.fromkeys(names), "reasons": reasons}
        self._keep(self._since())
        peak = self._worst["peak_allocated_bytes"]
        return facts | {
            "kind": "device",
            "device_total_bytes": torch.cuda.mem_get_info(self._device)[1],
            **self._worst,
            "activation_peak_bytes": max(0, peak - self._base_bytes) if "kv_cache_bytes" in self._facts else None,
            "num_alloc_retries": torch.cuda.memory_stats(self._device).get("num_alloc_retries", 0),
            "reasons": {},
        }

    def _since(self) -> dict[str, Any]:
        """Peaks since they were forgotten, and whether what is reserved stayed the same."""
        stats = torch.cuda.memory_stats(self._device)
        changed = [stats.get(name, 0) for name in _SEGMENTS] != self._segments
        return {
            "peak_allocated_bytes": stats["allocated_bytes.all.peak"],
            "peak_reserved_bytes": stats["reserved_bytes.all.peak"],
            "reserved_changed": changed,
        }

    def _keep(self, found: dict[str, Any]) -> None:
        """The largest figures of the run; those of the moment of the largest allocation stay together."""
        if found["peak_allocated_bytes"] > self._worst.get("peak_allocated_bytes", -1):
            self._worst |= {
                "peak_allocated_bytes": found["peak_allocated_bytes"],
                "reserved_at_peak_bytes": found["peak_reserved_bytes"],
                "reserved_at_peak_is_exact": not found["reserved_changed"],
            }
        most = max(found["peak_reserved_bytes"], self._worst.get("peak_reserved_bytes", 0))
        self._worst["peak_reserved_bytes"] = most

    def _forget(self) -> None:
        torch.cuda.reset_peak_memory_stats(self._device)
        stats = torch.cuda.memory_stats(self._device)
        self._segments = [stats.get(name, 0) for name in _SEGMENTS]

    def _now(self) -> int:
        return int(torch.cuda.memory_allocated(self._device) if self._cuda else psutil.Process().memory_info().rss)

    def _peak(self) -> int:
        return int(torch.cuda.max_memory_allocated(self._device) if self._cuda else rss_peak_bytes())


def rss_peak_bytes() -> int:
    """Largest resident set of this process since :meth:`Watch.forget_peak`, or since its start where that cannot be."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def _forget_rss_peak() -> None:
    """Linux resets the high-water mark when 5 is written here; elsewhere the mark stays."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
