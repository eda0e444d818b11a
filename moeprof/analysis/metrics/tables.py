"""What the metrics are given: the tables of one pass.

Metrics are functions of these values only. They open no file, read no clock, and draw random numbers only from a
generator with a stated seed, so that the same record always gives the same bytes of report.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import numpy as np
import numpy.typing as npt

from moeprof.analysis.stats.arrays import FloatArray, IntArray
from moeprof.core.record.layout import PassRecord
from moeprof.core.record.passes import ClientHeader, CountersHeader
from moeprof.core.record.routing import Routing
from moeprof.core.record.tables import read_table

if TYPE_CHECKING:
    import pandas as pd

Traffic = Literal["open", "closed", "offline"]
BoolArray = npt.NDArray[np.bool_]
ALL = "all"
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class PassTables:
    """The tables of one pass of one model.

    Attributes:
        name: ``round-0``, ``capacity-1``...
        traffic: ``open``, ``closed`` or ``offline``.
        requests: table ``requests`` of core/record/tables.py.
        steps: table ``steps``; row i is step i of the routing arrays.
        telemetry: table ``telemetry``, may be empty.
        routing: routing counts, or None.
        window_s: start and end of the measured window, seconds of the pass.
        classes: distinct request classes, sorted.
        client, counters, gauges: where the engine is a server: the client, its counters, and its gauges over time.
    """

    name: str
    traffic: Traffic
    requests: pd.DataFrame
    steps: pd.DataFrame
    telemetry: pd.DataFrame
    routing: Routing | None
    window_s: tuple[float, float]
    classes: tuple[str, ...]
    client: ClientHeader | None = None
    counters: CountersHeader | None = None
    gauges: pd.DataFrame | None = None
    _made: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What several metrics take from these tables and only one should work out; nobody may change it."""
        if key not in self._made:
            self._made[key] = make()
        return cast(T, self._made[key])

    def of_requests(self, name: str) -> FloatArray:
        """A numeric column of the requests, NaN where null."""
        return self.once(("requests", name), lambda: column(self.requests, name))

    @property
    def done(self) -> BoolArray:
        """True for requests that ended well."""
        return self.once("done", lambda: is_done(self.requests))

    @staticmethod
    def from_record(pass_record: PassRecord) -> PassTables:
        """Read a pass. The window is [0, duration of the pass]; of a killed pass, up to its last recorded step."""
        info, steps, requests = pass_record.info, pass_record.steps, pass_record.requests
        traffic = "offline" if pass_record.is_capacity else info.traffic
        duration_s = info.duration_s
        if duration_s is None:
            duration_s = float(steps["end_s"].max()) if len(steps) else 0.0
        return PassTables(
            name=pass_record.name,
            traffic=cast(Traffic, traffic),
            requests=requests,
            steps=steps,
            telemetry=pass_record.telemetry,
            routing=pass_record.routing,
            window_s=(0.0, float(duration_s)),
            classes=tuple(sorted({str(c) for c in requests["request_class"].dropna()})),
            client=info.client,
            counters=info.counters,
            gauges=None if info.counters is None else read_table(pass_record.path, "counters"),
        )

    @property
    def duration_s(self) -> float:
        """Length of the measured window."""
        return self.window_s[1] - self.window_s[0]


def column(table: pd.DataFrame, name: str) -> FloatArray:
    """A numeric column as float64, NaN where null (NaN never leaves the analysis wing)."""
    return cast(FloatArray, table[name].to_numpy(dtype=np.float64, na_value=np.nan))


def is_done(requests: pd.DataFrame) -> BoolArray:
    """True for requests that ended well."""
    return np.asarray(requests["status"] == "done", dtype=np.bool_)


def is_phase(steps: pd.DataFrame, phase: str) -> BoolArray:
    """True for steps of this phase (``all`` = every step)."""
    if phase == ALL:
        return np.ones(len(steps), dtype=np.bool_)
    return np.asarray(steps["phase"] == phase, dtype=np.bool_)


def token_times(requests: pd.DataFrame) -> tuple[FloatArray, IntArray]:
    """All output token times, flattened, and the row of ``requests`` that each belongs to. No loop over tokens."""
    lists = [np.asarray(t, dtype=np.float64) if t is not None else np.empty(0) for t in requests["token_times_s"]]
    lengths = np.array([len(t) for t in lists], dtype=np.int64)
    flat = np.concatenate(lists) if lists else np.empty(0)
    return flat, np.repeat(np.arange(len(lists), dtype=np.int64), lengths)


def all_classes(rounds: Sequence[PassTables]) -> tuple[str, ...]:
    """Request classes of any round, sorted; empty when there is only one (nothing to split by)."""
    found = sorted({name for tables in rounds for name in tables.classes})
    return tuple(found) if len(found) > 1 else ()
