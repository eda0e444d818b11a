"""What is seen of a pass over a server beside its tokens: the client itself, and the server's own counters."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from moeprof.capture.engines.served.client import Client
from moeprof.capture.engines.served.counters import Counters
from moeprof.capture.engines.served.limit import Limit, measure, streams_of
from moeprof.capture.engines.served.probe import Server
from moeprof.capture.engines.served.settings import OpenAISettings
from moeprof.core.trace import Schedule


class ServedWatch:
    """See ``PassWatch``. ``client``: the one that is mounted."""

    def __init__(self, settings: OpenAISettings, server: Server) -> None:
        self.client: Client | None = None
        self._counters = Counters(server.metrics, server.kind.counters)
        self._limit: Limit | str | None = None

    def begin(self, folder: Path, schedule: Schedule) -> None:
        """Before the first pass the client's limit is measured."""
        assert self.client is not None
        if self._limit is None:
            self._limit = measure(streams_of(schedule))
            self.client.prepare(streams_of(schedule), 0)  # connections that waited so long are gone
        self._folder = folder
        self._counters.begin()
        self.client.watch()
        self._start_s, self._cpu_s, self._tokens = time.perf_counter(), self.client.cpu_s, self.client.tokens

    def end(self) -> dict[str, Any]:
        """Keys ``client`` and ``counters`` of pass.json."""
        assert self.client is not None
        client, seconds = self.client, time.perf_counter() - self._start_s
        lag_s = np.array(client.lag_s)
        p50, p99 = (float(p) for p in np.percentile(lag_s, (50, 99))) if len(lag_s) else (None, None)
        cpu_s = client.cpu_s
        found: dict[str, Any] = {
            "tokens_per_s": (client.tokens - self._tokens) / seconds,
            "cpu_ratio": None if cpu_s is None or self._cpu_s is None else (cpu_s - self._cpu_s) / seconds,
            "lag_p50_s": p50,
            "lag_p99_s": p99,
        }
        found |= self._limit.to_json() if isinstance(self._limit, Limit) else {"reason": self._limit}
        return {"client": found, "counters": self._counters.end(self._folder, self._start_s)}
