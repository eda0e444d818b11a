"""Samples the machine while a pass runs: power, energy, clocks, temperature, memory, load. Table ``telemetry``.

Runs in the parent process, so that sampling takes nothing from the loop. ``perf_counter`` is the same clock in all
processes of a machine, so the worker's origin places the samples on the pass's own time line. Sampling begins before
the pass and ends after it: its window is bracketed by samples.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import psutil

from moeprof.capture.devices.meters import Meter
from moeprof.capture.recorders.stream import TableStream

SAMPLE_EVERY_S = 0.2
BEFORE = 3  # samples from before the pass that are kept


class Telemetry:
    """A sampling thread for one pass; it starts at once, and writes once the pass has begun."""

    def __init__(self, meters: list[Meter], worker_pid: int) -> None:
        self._meters, self._worker_pid = meters, worker_pid
        self._stream: TableStream | None = None
        self._before: deque[dict[str, Any]] = deque(maxlen=BEFORE)
        self._origin_s = 0.0
        self._latest: dict[str, Any] = {}
        self._failure: OSError | None = None
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._thread.start()

    def begin(self, folder: Path, origin_s: float) -> None:
        """The pass began: from here on samples are written, the last ones from before it too."""
        with self._lock:
            self._origin_s, self._stream = origin_s, TableStream(folder, "telemetry")
            for row in self._before:
                self._write(row)

    def note(self, allocator: dict[str, Any]) -> None:
        """Allocator figures from the worker's last progress report."""
        self._latest = {key: allocator[key] for key in ("allocated_bytes", "reserved_bytes") if key in allocator}

    def close(self) -> None:
        """A last sample, then parquet; nothing is written of a pass that never began.

        Raises:
            OSError: that, or what the thread wrote before, could not be written.
        """
        self._done.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        if self._stream is not None:
            self._sample()
            self._stream.close()

    def _run(self) -> None:
        while not self._done.is_set():
            try:
                self._sample()
            except OSError as error:  # told by close: a thread has nobody to tell
                self._failure = error
                return
            self._done.wait(SAMPLE_EVERY_S)

    def _sample(self) -> None:
        row: dict[str, Any] = {"t_s": time.perf_counter(), "load_average_1min": os.getloadavg()[0]}
        try:
            row["host_rss_bytes"] = psutil.Process(self._worker_pid).memory_info().rss
        except psutil.Error:
            row["host_rss_bytes"] = None  # the worker is gone; the pass ends in a moment
        for meter in self._meters:
            row |= meter.read()
        row |= self._latest
        with self._lock:
            if self._stream is None:
                self._before.append(row)
            else:
                self._write(row)
                self._stream.flush_if_due()

    def _write(self, row: dict[str, Any]) -> None:
        assert self._stream is not None
        self._stream.append(row | {"t_s": row["t_s"] - self._origin_s})
