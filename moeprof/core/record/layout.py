"""The record: a run is a folder on disk. This file is its contract and its reader.

    <run>/
      experiment.json      format_version, status, run, started_at, workload, environment, schedules, models, notes
      heartbeat            unix seconds, rewritten about once a second while the run lives
      schedule.parquet     what was sent (one file per tokenizer: schedule-<hash8>.parquet for others)
      <model>/model.json   ModelFacts: parameters by group, shapes, bytes (see core/model_facts.py)
      <model>/launch-<l>/launch.json        engine facts, device, peaks, warm-up, overhead, self-check, memory
      <model>/launch-0/forced.npz           picks of forced tokens (see core/record/picks.py)
      <model>/launch-<l>/{warmup,calibration}.parquet   rows as in steps;  overhead.parquet  bare_s instrumented_s phase
      <model>/launch-<l>/<pass>/pass.json   traffic, started_unix_s, duration_s, status, refused, invariants
      <model>/launch-<l>/<pass>/{requests,steps,telemetry}.parquet  routing.npz
      <model>/launch-<l>/sweep-<point>-<n>/  a pass at one setting of the sweep; pass.json says which (``sweep``)
      lockstep/launch-<l>/c<concurrency>/   {lanes.parquet,pass.json}: models stepped in turn (see core/record/lanes.py)
      ladder/launch-<l>/c<concurrency>/     the same for the rungs of the sparsity ladder
      summary.json summary.csv report.md report.html

``<pass>`` is ``round-<n>`` (the workload's own traffic) or ``capacity-<n>`` (same requests, offline). While a pass runs
its tables are Arrow streams (``requests.arrows``) flushed about once a second; the end of the pass turns them into
parquet. Readers take either, so a killed run loses at most the last seconds. All times are seconds from the start of
the pass; all missing values are null, never 0.

requests: one row per request of the schedule that was sent, refused or failed
steps:    one row per engine step
telemetry: one row per sample (about 5 per second)
routing.npz: see core/record/routing.py; while a pass runs: routing.part-<w>.npz, of windows closed in about a second
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeprof.core.errors import RecordError
from moeprof.core.jsonfile import read_json
from moeprof.core.record.lanes import LanePass, lane_passes
from moeprof.core.record.picks import FILE_NAME as FORCED_PICKS
from moeprof.core.record.picks import ForcedPicks, load_forced_picks
from moeprof.core.record.routing import Routing, merge_routing, routing_parts
from moeprof.core.record.schema import check_experiment, check_facts, check_launch, check_pass
from moeprof.core.record.tables import read_table
from moeprof.core.workload.studies import SweepPoint

if TYPE_CHECKING:
    import pandas as pd

FORMAT_VERSION = 1
HEARTBEAT_STALE_S = 10.0
PHASES = ("prefill", "decode")


@dataclass(frozen=True)
class PassRecord:
    """One pass over the schedule by one model in one launch. Tables load when first asked for."""

    path: Path

    @property
    def name(self) -> str:
        """``round-0``, ``capacity-2``..."""
        return self.path.name

    @property
    def sweep_point(self) -> SweepPoint | None:
        """The setting of a sweep's pass; None for other passes and where the pass died early."""
        point = self.info.get("sweep")
        return None if point is None else SweepPoint(**point)

    @property
    def is_capacity(self) -> bool:
        """True for the offline pass that headline dollars come from."""
        return self.name.startswith("capacity-")

    @cached_property
    def info(self) -> dict[str, Any]:
        """pass.json; empty when the pass was killed before it could be written."""
        return _read_checked(self.path / "pass.json", check_pass)

    @cached_property
    def requests(self) -> pd.DataFrame:
        """Table ``requests``."""
        return read_table(self.path, "requests")

    @cached_property
    def steps(self) -> pd.DataFrame:
        """Table ``steps``."""
        return read_table(self.path, "steps")

    @cached_property
    def telemetry(self) -> pd.DataFrame:
        """Table ``telemetry`` (may be empty)."""
        return read_table(self.path, "telemetry")

    @cached_property
    def routing(self) -> Routing | None:
        """Routing counts, or None for dense models and runs without the tap."""
        path = self.path / "routing.npz"
        if path.exists():
            return Routing.load(path)
        parts = routing_parts(self.path)  # the pass was killed: join what it left
        return merge_routing([Routing.load(part) for part in parts]) if parts else None


@dataclass(frozen=True)
class LaunchRecord:
    """One fresh process of one model."""

    path: Path

    @property
    def number(self) -> int:
        """The l of launch-<l>."""
        return int(self.path.name.rpartition("-")[2])

    @cached_property
    def info(self) -> dict[str, Any]:
        """launch.json; empty when the launch died early."""
        return _read_checked(self.path / "launch.json", check_launch)

    @cached_property
    def passes(self) -> tuple[PassRecord, ...]:
        """Passes in order: rounds, then capacity passes."""
        return (*self._named("round-"), *self._named("capacity-"))

    @cached_property
    def sweep(self) -> tuple[PassRecord, ...]:
        """Passes of the sweep, by point and round; they belong to no other figure."""
        return self._named("sweep-")

    @cached_property
    def forced_picks(self) -> ForcedPicks | None:
        """Where the model sent a fixed text; None where that was not recorded (launch.json says why)."""
        path = self.path / FORCED_PICKS
        return load_forced_picks(path) if path.exists() else None

    def _named(self, start: str) -> tuple[PassRecord, ...]:
        folders = [p for p in self.path.iterdir() if p.is_dir() and p.name.startswith(start)]
        return tuple(PassRecord(p) for p in sorted(folders, key=lambda p: [int(n) for n in p.name.split("-")[1:]]))

    @property
    def rounds(self) -> tuple[PassRecord, ...]:
        """The workload's own traffic."""
        return tuple(p for p in self.passes if not p.is_capacity)

    @property
    def capacity(self) -> tuple[PassRecord, ...]:
        """The offline passes of an open-loop run."""
        return tuple(p for p in self.passes if p.is_capacity)


@dataclass(frozen=True)
class ModelRecord:
    """Everything measured of one model."""

    path: Path
    name: str
    status: str  # done | failed | interrupted | started
    error: str | None

    @cached_property
    def facts(self) -> dict[str, Any]:
        """model.json (see core/model_facts.py); empty when loading failed."""
        return _read_checked(self.path / "model.json", check_facts)

    @cached_property
    def launches(self) -> tuple[LaunchRecord, ...]:
        """Launches in order."""
        if not self.path.is_dir():
            return ()
        folders = [p for p in self.path.iterdir() if p.is_dir() and p.name.startswith("launch-")]
        return tuple(LaunchRecord(p) for p in sorted(folders, key=lambda p: int(p.name.rpartition("-")[2])))


@dataclass(frozen=True)
class Record:
    """A run folder, opened for reading."""

    path: Path
    experiment: dict[str, Any]
    status: str  # done | failed | interrupted | started

    @property
    def run(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def workload(self) -> dict[str, Any]:
        """The resolved workload."""
        return dict(self.experiment["workload"])

    @property
    def environment(self) -> dict[str, Any]:
        """What machine this was."""
        return dict(self.experiment["environment"])

    @cached_property
    def lockstep(self) -> tuple[LanePass, ...]:
        """Models stepped in turn: every measurement of every launch."""
        return lane_passes(self.path / "lockstep")

    @cached_property
    def ladder(self) -> tuple[LanePass, ...]:
        """The sparsity ladder: every measurement of every launch."""
        return lane_passes(self.path / "ladder")

    @cached_property
    def models(self) -> tuple[ModelRecord, ...]:
        """Models in the workload's order."""
        return tuple(
            ModelRecord(self.path / m["folder"], m["name"], m.get("status", "started"), m.get("error"))
            for m in self.experiment["models"]
        )


def open_record(path: Path) -> Record:
    """Open a run folder.

    Raises:
        RecordError: no such folder, no or damaged experiment.json, or a newer format.
    """
    if not path.is_dir():
        raise RecordError(f"{path}: no such run folder; `moeprof run` prints the folder it writes")
    file = path / "experiment.json"
    if not file.exists():
        raise RecordError(f"{path}: not a moeprof run (no experiment.json)")
    experiment = read_json(file)
    version = experiment.get("format_version")
    if type(version) is not int or version < 1:  # True is an int too
        raise RecordError(f"{file}: damaged, format_version is {version!r}; a whole number from 1 belongs there")
    if version > FORMAT_VERSION:  # before its shape, which may be another
        raise RecordError(
            f"{file}: format {version}, this moeprof reads up to {FORMAT_VERSION}; upgrade moeprof to read it"
        )
    check_experiment(file, experiment)
    return Record(path, experiment, _status(path, experiment))


def _status(path: Path, experiment: dict[str, Any]) -> str:
    status = str(experiment.get("status", "started"))
    if status != "started":
        return status
    try:
        beat = float((path / "heartbeat").read_text())
    except (OSError, ValueError):
        return "interrupted"
    return "started" if time.time() - beat < HEARTBEAT_STALE_S else "interrupted"


def _read_checked(path: Path, check: Callable[[Path, dict[str, Any]], None]) -> dict[str, Any]:
    """The content of a JSON file that may be absent, checked."""
    if not path.exists():
        return {}
    value = read_json(path)
    check(path, value)
    return value
