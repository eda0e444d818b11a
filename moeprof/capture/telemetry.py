"""Samples the machine while a pass runs: power, energy, clocks, temperature, memory, load. Table ``telemetry``.

Runs in the parent process, so that sampling takes nothing from the loop. ``perf_counter`` is the same clock in all
processes of a machine, so the worker's origin places the samples on the pass's own time line.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any, Protocol

import psutil

from moeprof.capture.streams import TableStream

SAMPLE_EVERY_S = 0.2


class Meter(Protocol):
    """Something that reads power and clocks into telemetry columns."""

    def read(self) -> dict[str, Any]:
        """Column name -> value; what cannot be read is left out."""


class Telemetry:
    """A sampling thread for one pass."""

    def __init__(self, folder: Path, origin_s: float, meters: list[Meter], worker_pid: int) -> None:
        self._stream = TableStream(folder, "telemetry")
        self._origin_s, self._meters = origin_s, meters
        self._worker = psutil.Process(worker_pid)
        self._latest: dict[str, Any] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._thread.start()

    def note(self, allocator: dict[str, Any]) -> None:
        """Allocator figures from the worker's last progress report."""
        self._latest = {key: allocator[key] for key in ("allocated_bytes", "reserved_bytes") if key in allocator}

    def close(self) -> None:
        """A last sample, then parquet. The window is bracketed by samples."""
        self._done.set()
        self._thread.join()
        self._sample()
        self._stream.close()

    def _run(self) -> None:
        while not self._done.is_set():
            self._sample()
            self._stream.flush_if_due()
            self._done.wait(SAMPLE_EVERY_S)

    def _sample(self) -> None:
        row: dict[str, Any] = {"t_s": time.perf_counter() - self._origin_s, "load_average_1min": os.getloadavg()[0]}
        try:
            row["host_rss_bytes"] = self._worker.memory_info().rss
        except psutil.Error:
            row["host_rss_bytes"] = None  # the worker is gone; the pass ends in a moment
        for meter in self._meters:
            row |= meter.read()
        self._stream.append(row | self._latest)
