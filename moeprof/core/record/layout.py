"""The record: a run is a folder on disk. This file is its contract and its reader.

    <run>/
      experiment.json      format_version, status, workload, environment, schedules, models (see experiment.py)
      heartbeat            unix seconds, rewritten about once a second while the run lives
      lock                 whose run it is, as long as it lives (see owner.py)
      schedule.parquet     what was sent (one file per tokenizer: schedule-<hash8>.parquet for others)
      <model>/model.json   ModelFacts: parameters by group, shapes, bytes (see core/model_facts.py)
      <model>/launch-<l>/launch.json        engine, peaks, warm-up, self-check, memory (see launch.py)
      <model>/launch-0/forced.npz           picks of forced tokens (see picks.py)
      <model>/launch-<l>/{warmup,calibration}.parquet   rows as in steps;  overhead.parquet  bare_s instrumented_s phase
      <model>/launch-<l>/<pass>/pass.json   traffic, started_unix_s, duration_s, status, invariants (see passes.py)
      <model>/launch-<l>/<pass>/{requests,steps,telemetry}.parquet  routing.npz  counters.parquet (of a server)
      <model>/launch-<l>/sweep-<point>-<n>/  a pass at one setting of the sweep; pass.json says which (``sweep``)
      lockstep/launch-<l>/c<concurrency>/   {lanes.parquet,pass.json}: models stepped in turn (see lanes.py)
      ladder/launch-<l>/c<concurrency>/     the same for the rungs of the sparsity ladder
      summary.json summary.csv report.md report.html

``<pass>`` is ``round-<n>`` (the workload's own traffic) or ``capacity-<n>`` (same requests, offline). While a pass runs
its tables are Arrow streams (``requests.arrows``) flushed about once a second; the end of the pass turns them into
parquet. Readers take either, so a killed run loses at most the last seconds. All times are seconds from the start of
the pass; all missing values are null, never 0.

requests: one row per request of the schedule that was sent, refused or failed
steps:    one row per engine step
telemetry: one row per sample (about 5 per second)
routing.npz: see routing.py; while a pass runs: routing.part-<w>.npz, of windows closed in about a second

**History.** ``format_version`` of experiment.json is that of the whole folder. A key, a file or a column (LATER in
tables.py) that is only added changes no version: readers have a default for it. A version ends when a key changes its
name, its unit or its meaning; ``UPGRADERS[n]`` of headers.py then makes the JSON files of version n those of n + 1.

format 1 (0.1.0), current. Came to it, in this order: launch.json ``peaks``, ``kv_space``, ``forced_picks``, ``gap``,
``ranks``; pass.json ``reference_kernel_s``, ``process``, ``sweep``, ``saturation``, ``captured_steps``, ``decode``;
experiment.json ``device_at_start``, ``device_at_end``, ``device_why``, ``resumed``, ``lockstep``, ``ladder``,
``files`` (what the run wrote, see whole.py); launch.json ``end_ids``, of lanes ``cache_bytes``; the
engine's ``scheduler``, ``decode``, ``compiled``, ``run_ahead``, ``decode_experts``, ``cpu_kernels``, ``ranks``,
``parallel``; model.json ``twin``, ``revision``; column ``queued_s`` of lanes; model.json ``attention``,
``other_parts``; columns ``window_*`` of steps and keys ``window_*`` of the points of ``gap``; model.json
``attention.state_flops``; experiment.json ``engine_why``, launch.json ``taken`` and ``server``, pass.json
``client`` and ``counters``, table ``counters``, columns of requests from ``first_answer_s`` on.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from moeprof.core.errors import RecordError
from moeprof.core.files import UnreadableError, read_json, read_text
from moeprof.core.model_facts import ModelFacts
from moeprof.core.record.experiment import EnvironmentHeader, ExperimentHeader, ScheduleHeader, WorkloadHeader
from moeprof.core.record.headers import FORMAT_VERSION, check_version, header_of, read_header_if_there, upgraded
from moeprof.core.record.lanes import LanePass, lane_passes
from moeprof.core.record.launch import LaunchHeader
from moeprof.core.record.passes import PassHeader
from moeprof.core.record.picks import FILE_NAME as FORCED_PICKS
from moeprof.core.record.picks import ForcedPicks, load_forced_picks
from moeprof.core.record.routing import Routing, merge_routing, routing_parts
from moeprof.core.record.tables import read_table, read_whole_rows
from moeprof.core.record.whole import check_whole
from moeprof.core.workload.workload import Slo

if TYPE_CHECKING:
    import pandas as pd

HEARTBEAT_STALE_S = 10.0
MOST_BEAT_BYTES = 64
PHASES = ("prefill", "decode")


@dataclass(frozen=True)
class PassRecord:
    """One pass over the schedule by one model in one launch. Tables load when first asked for."""

    path: Path
    version: int = FORMAT_VERSION

    @property
    def name(self) -> str:
        """``round-0``, ``capacity-2``..."""
        return self.path.name

    @property
    def is_capacity(self) -> bool:
        """True for the offline pass that headline dollars come from."""
        return self.name.startswith("capacity-")

    @cached_property
    def info(self) -> PassHeader:
        """pass.json; empty when the pass was killed before it could be written."""
        return read_header_if_there(self.path / "pass.json", PassHeader, self.version) or PassHeader()

    @cached_property
    def requests(self) -> pd.DataFrame:
        """Table ``requests``."""
        return read_whole_rows(self.path, "requests")

    @cached_property
    def steps(self) -> pd.DataFrame:
        """Table ``steps``."""
        return read_whole_rows(self.path, "steps")

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
    version: int = FORMAT_VERSION

    @property
    def number(self) -> int:
        """The l of launch-<l>."""
        return int(self.path.name.rpartition("-")[2])

    @cached_property
    def info(self) -> LaunchHeader:
        """launch.json; empty when the launch died early."""
        return read_header_if_there(self.path / "launch.json", LaunchHeader, self.version) or LaunchHeader()

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
        name = re.compile(rf"{start}\d{{1,9}}(-\d{{1,9}})*")
        folders = [p for p in self.path.iterdir() if p.is_dir() and name.fullmatch(p.name)]
        ordered = sorted(folders, key=lambda p: [int(n) for n in p.name.split("-")[1:]])
        return tuple(PassRecord(path, self.version) for path in ordered)

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
    version: int = FORMAT_VERSION

    @cached_property
    def facts(self) -> ModelFacts | None:
        """model.json; None when loading failed."""
        return read_header_if_there(self.path / "model.json", ModelFacts, self.version)

    @cached_property
    def launches(self) -> tuple[LaunchRecord, ...]:
        """Launches in order."""
        if not self.path.is_dir():
            return ()
        folders = [p for p in self.path.iterdir() if p.is_dir() and re.fullmatch(r"launch-\d{1,9}", p.name)]
        ordered = sorted(folders, key=lambda p: int(p.name.rpartition("-")[2]))
        return tuple(LaunchRecord(path, self.version) for path in ordered)


@dataclass(frozen=True)
class Record:
    """A run folder, opened for reading."""

    path: Path
    experiment: ExperimentHeader
    workload: WorkloadHeader
    status: str  # done | failed | interrupted | started
    version: int = FORMAT_VERSION  # that its files were written in

    @property
    def run(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def environment(self) -> EnvironmentHeader:
        """What machine this was."""
        return self.experiment.environment

    @property
    def slo(self) -> Slo:
        """The workload's service level objectives."""
        return Slo(**(self.workload.slo or {}))

    def schedule(self, model: str) -> ScheduleHeader:
        """What a model was sent; nothing is known of it where the run did not come so far."""
        return self.experiment.schedules.get(model) or ScheduleHeader()

    @cached_property
    def lockstep(self) -> tuple[LanePass, ...]:
        """Models stepped in turn: every measurement of every launch."""
        return lane_passes(self.path / "lockstep", self.version)

    @cached_property
    def ladder(self) -> tuple[LanePass, ...]:
        """The sparsity ladder: every measurement of every launch."""
        return lane_passes(self.path / "ladder", self.version)

    @cached_property
    def models(self) -> tuple[ModelRecord, ...]:
        """Models in the workload's order."""
        return tuple(
            ModelRecord(self.path / model.folder, model.name, model.status, model.error, self.version)
            for model in self.experiment.models
        )


def open_record(path: Path) -> Record:
    """Open a run folder.

    Raises:
        RecordError: no such folder, no or damaged experiment.json, a newer format, or a run that ended lacks a file.
    """
    if not path.is_dir():
        raise RecordError(f"{path}: no such run folder; `moeprof run` prints the folder it writes")
    file = path / "experiment.json"
    if not file.exists():
        raise RecordError(f"{path}: not a moeprof run (no experiment.json)")
    value = read_json(file)
    version = check_version(file, value)
    experiment = header_of(ExperimentHeader, upgraded(file.name, value, version), file)
    workload = header_of(WorkloadHeader, experiment.workload, file, "workload")
    check_whole(path, experiment)
    return Record(path, experiment, workload, _status(path, experiment.status), version)


def _status(path: Path, status: str) -> str:
    if status != "started":
        return status
    return "started" if beats(path) else "interrupted"


def beats(path: Path) -> bool:
    """Whether a process writes into this record now, by its heartbeat.

    A beat far ahead of the clock (which was set back, or is another machine's) is as stale as an old one.
    """
    try:
        return abs(time.time() - float(read_text(path / "heartbeat", MOST_BEAT_BYTES))) < HEARTBEAT_STALE_S
    except (UnreadableError, ValueError):
        return False
