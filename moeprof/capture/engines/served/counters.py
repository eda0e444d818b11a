"""A server's own counters (Prometheus text): fetched about once a second during a pass, read after it.

Sums and counts of a server that runs on are differences between the first and the last look; sums over engines and
over servers, when several addresses are given. Quantiles of histograms are not used: buckets are coarse.
"""

from __future__ import annotations

import http.client
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeprof.core.record.passes import CountersHeader
from moeprof.core.record.tables import COUNTER_COLUMNS, arrow_schema

EVERY_S, LOOK_S = 1.0, 5.0
MOST_LOOK_BYTES = 2**24  # of what a server says of itself at once
COUNTERS = ("input_tokens", "output_tokens", "prefix_queries", "prefix_hits", "preemptions", "prefill_s", "decode_s")
HISTOGRAMS = {  # our name -> (sum, count)
    "queue": ("queue_s", "queue_requests"),
    "prefill": ("prefill_s", "prefill_requests"),
    "decode": ("decode_s", "decode_requests"),
    "step_tokens": ("step_tokens", "steps"),
}
GAUGES = {"running": "running", "waiting": "waiting", "kv_use": "kv_use_ratio"}
NONE_KNOWN = "the server has no counters that are known here"
WENT_BACK = "a counter of the server went back: it was started again"
Sample = dict[str, float]  # our name -> value


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The counters of one address at one time; only lines of known names are kept."""

    at_s: float
    url: str
    text: bytes


class Counters:
    """Looks at the counters of a deployment while a pass runs. ``names``: our name -> the server's."""

    def __init__(self, urls: Sequence[str], names: Mapping[str, str]) -> None:
        self._urls, self._names = tuple(urls), names
        self._wanted = tuple(name.encode() for name in names.values())
        self._looks: list[Look] = []
        self._problem: str | None = None
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Look once, and from then on once a second."""
        self._looks, self._problem = [], None
        if not self._urls or not self._names:
            self._problem = NONE_KNOWN
            return
        self._over.clear()
        self._look()
        self._thread = threading.Thread(target=self._go_on, daemon=True, name="counters")
        self._thread.start()

    def end(self, folder: Path, origin_s: float) -> dict[str, Any]:
        """Look once more; what was seen (``CountersHeader``), gauges over time in table ``counters``."""
        if self._thread is not None:
            self._over.set()
            self._thread.join()
            self._thread = None
            self._look()
        if self._problem is not None or not self._looks:
            return {"reason": self._problem or NONE_KNOWN}
        by_url = {url: [look for look in self._looks if look.url == url] for url in self._urls}
        seen = {url: [(look.at_s, samples(look.text, self._names)) for look in looks] for url, looks in by_url.items()}
        _write_gauges(folder, seen, origin_s)
        try:
            return differences(list(seen.values()))
        except ValueError as error:
            return {"reason": str(error)}

    def _go_on(self) -> None:
        while not self._over.wait(EVERY_S):
            self._look()

    def _look(self) -> None:
        for url in self._urls:
            at_s = time.perf_counter()
            try:
                with self._opener.open(url, timeout=LOOK_S) as answer:
                    lines = answer.read(MOST_LOOK_BYTES).split(b"\n")
            except (OSError, http.client.HTTPException, urllib.error.URLError) as error:
                self._problem = f"the server's counters could not be read ({type(error).__name__})"
                continue
            kept = b"\n".join(line for line in lines if line.startswith(self._wanted))
            self._looks.append(Look(at_s=at_s, url=url, text=kept + b"\n"))


def samples(text: bytes, names: Mapping[str, str]) -> Sample:
    """Our names -> values, summed over labels (engines); the share of a cache is their mean."""
    from prometheus_client.parser import text_string_to_metric_families

    theirs: dict[str, list[float]] = {}
    for family in text_string_to_metric_families(text.decode("utf-8", "replace")):
        for sample in family.samples:
            theirs.setdefault(sample.name, []).append(sample.value)
    found: Sample = {}
    for ours, name in names.items():
        if ours in HISTOGRAMS:
            for key, end in zip(HISTOGRAMS[ours], ("_sum", "_count"), strict=True):
                if name + end in theirs:
                    found[key] = sum(theirs[name + end])
        elif name in theirs:
            values = theirs[name]
            found[GAUGES.get(ours, ours)] = sum(values) / (len(values) if ours == "kv_use" else 1)
    return found


def differences(seen: Sequence[Sequence[tuple[float, Sample]]]) -> dict[str, Any]:
    """Last minus first look, summed over addresses; a name that one of them lacks is None.

    Raises:
        ValueError: a counter went back.
    """
    known = [*COUNTERS, *(key for pair in HISTOGRAMS.values() for key in pair)]
    changes: dict[str, float | None] = {}
    for name in dict.fromkeys(known):
        parts = [
            looks[-1][1][name] - looks[0][1][name] for looks in seen if name in looks[0][1] and name in looks[-1][1]
        ]
        if any(part < 0 for part in parts):
            raise ValueError(WENT_BACK)
        changes[name] = sum(parts) if len(parts) == len(seen) else None
    window_s = max(looks[-1][0] for looks in seen) - min(looks[0][0] for looks in seen)
    return {name: changes.get(name) for name in CountersHeader.__struct_fields__} | {"window_s": window_s}


def _write_gauges(folder: Path, seen: Mapping[str, Sequence[tuple[float, Sample]]], origin_s: float) -> None:
    """One row a look, of all addresses together: requests are summed, the share of the caches is their mean."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = []
    for looks in zip(*seen.values(), strict=False):
        row: dict[str, Any] = {"t_s": looks[0][0] - origin_s}
        for name in COUNTER_COLUMNS:
            values = [sample[name] for _, sample in looks if name in sample]
            if name != "t_s" and len(values) == len(looks):
                row[name] = sum(values) / (len(values) if name == "kv_use_ratio" else 1)
        rows.append(row)
    schema = arrow_schema("counters")
    columns = {name: [row.get(name) for row in rows] for name in schema.names}
    pq.write_table(pa.table(columns, schema=schema), folder / "counters.parquet")
