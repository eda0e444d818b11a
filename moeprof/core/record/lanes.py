"""Lock-step measurements of a record: several lanes stepped in turn on one schedule (docs/metrics.md#lock-step-pairs).

    lockstep/launch-<l>/c<concurrency>/pass.json      kind, concurrency, lanes, pattern, num_requests, cycles, status...
    lockstep/launch-<l>/c<concurrency>/lanes.parquet  one row per step and lane (see LANE_COLUMNS)
    ladder/...                                        the same; lanes are the rungs of the sparsity ladder

A lane is a model with one way of routing, and the concurrency of an offline measurement is 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import field

from moeprof.core.model_facts import ModelFacts
from moeprof.core.record.headers import FORMAT_VERSION, Facts, Header, read_header_if_there, written
from moeprof.core.record.launch import EngineHeader
from moeprof.core.record.tables import read_table

if TYPE_CHECKING:
    import pandas as pd

# dense: a model without routed experts; native: an MoE under its own router; the others go through the override.
_NUMBERED = re.compile(r"launch-\d{1,9}/c\d{1,9}")
RUNGS = ("dense", "concentrated", "balanced", "recorded", "native", "distinct")


class LaneHeader(Header, frozen=True, kw_only=True):
    """What a lane is.

    Attributes:
        name: of the lane.
        model: that runs in it.
        rung: one of RUNGS; None: it is not said.
        twin_of, match: of a dense twin.
        routing_policy: as the workload has it.
        distinct: experts that every step of the rung ``distinct`` touches.
    """

    name: str
    model: str | None = None
    rung: str | None = None
    twin_of: str | None = field(default_factory=written(None))
    match: str | None = field(default_factory=written(None))
    routing_policy: str | None = None
    distinct: int | None = None


class LanePassHeader(Header, frozen=True, kw_only=True):
    """pass.json of a lock-step measurement.

    Attributes:
        kind: ``lockstep``, ``ladder`` or ``pairs``.
        concurrency: requests in flight; 0: all at once.
        pattern, num_requests, outputs, schedule_sha256: of what was sent.
        source_sha256: of the schedule that these requests are the first of.
        kv_tokens, max_batch_tokens, batching: of the engines, which are equal.
        lanes: in order.
        started_unix_s: when.
        status: ``started``, ``done``, ``cut`` (not one whole cycle), ``stopped`` or ``failed``; None: it never began.
        notes: what readers should know.
        turn_steps: steps of one process in a row, where the lanes are two processes.
        reference_kernel_s: of pairs, seconds of a fixed small kernel before and after, by lane.
        cycles, steps, duration_s: how far it came.
    """

    kind: str | None = None
    concurrency: int | None = None
    pattern: str | None = None
    num_requests: int | None = None
    outputs: str | None = None
    schedule_sha256: str | None = None
    source_sha256: str | None = None
    kv_tokens: int | None = None
    max_batch_tokens: int | None = None
    batching: str | None = None
    lanes: tuple[LaneHeader, ...] = ()
    started_unix_s: float | None = None
    status: str | None = None
    notes: tuple[str, ...] = field(default_factory=written(()))
    turn_steps: int | None = None
    reference_kernel_s: dict[str, tuple[float | None, ...]] | None = None
    cycles: int | None = None
    steps: int | None = None
    duration_s: float | None = None


class LaneModel(Facts, frozen=True, kw_only=True):
    """A model that was loaded for the lanes."""

    facts: ModelFacts
    load_s: float


class LanesHeader(Header, frozen=True, kw_only=True):
    """launch.json of a lock-step measurement: its models, and by lane the engine (and machine, of two processes).

    ``cache_bytes`` is the last-level cache of one device, None where it is not known.
    """

    kind: str
    lanes: dict[str, EngineHeader] = field(default_factory=lambda: dict[str, EngineHeader]())
    models: dict[str, LaneModel] = field(default_factory=lambda: dict[str, LaneModel]())
    notes: tuple[str, ...] = field(default_factory=written(()))
    environments: dict[str, dict[str, Any]] | None = None
    threads: int | None = None
    cache_bytes: int | None = None


@dataclass(frozen=True)
class LanePass:
    """One lock-step measurement: one launch, one concurrency."""

    path: Path
    version: int = FORMAT_VERSION

    @property
    def launch(self) -> int:
        """The l of launch-<l>."""
        return int(self.path.parent.name.rpartition("-")[2])

    @property
    def concurrency(self) -> int | None:
        """Requests in flight; None when all were sent at once."""
        return int(self.path.name[1:]) or None

    @cached_property
    def info(self) -> LanePassHeader:
        """pass.json; empty when the measurement was killed before it could be written."""
        return read_header_if_there(self.path / "pass.json", LanePassHeader, self.version) or LanePassHeader()

    @cached_property
    def loaded(self) -> LanesHeader:
        """launch.json: what was loaded for the lanes, and where; empty when it was not written."""
        found = read_header_if_there(self.path.parent / "launch.json", LanesHeader, self.version)
        return found or LanesHeader(kind=self.info.kind or "")

    @cached_property
    def table(self) -> pd.DataFrame:
        """Table ``lanes``."""
        return read_table(self.path, "lanes")


def lane_passes(folder: Path, version: int = FORMAT_VERSION) -> tuple[LanePass, ...]:
    """All measurements under ``<run>/lockstep`` or ``<run>/ladder``, by launch and concurrency; empty without it."""
    paths = [
        path for path in folder.glob("launch-*/c*") if path.is_dir() and _NUMBERED.fullmatch("/".join(path.parts[-2:]))
    ]
    found = [LanePass(path, version) for path in paths]
    return tuple(sorted(found, key=lambda lane_pass: (lane_pass.launch, lane_pass.concurrency or 0)))
