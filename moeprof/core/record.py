"""The record: a run is a folder on disk. This file is its contract and its reader.

    <run>/
      experiment.json      format_version, status, run, started_at, workload, environment, schedules, models, notes
      heartbeat            unix seconds, rewritten about once a second while the run lives
      schedule.parquet     what was sent (one file per tokenizer: schedule-<hash8>.parquet for others)
      <model>/model.json   ModelFacts: parameters by group, shapes, bytes (see core/modelfacts.py)
      <model>/launch-<l>/launch.json        engine facts, device, peaks, warm-up, calibration, overhead, self-check, memory
      <model>/launch-<l>/<pass>/pass.json   traffic, started_unix_s, duration_s, status, refused, invariants
      <model>/launch-<l>/<pass>/{requests,steps,telemetry}.parquet  routing.npz
      summary.json summary.csv report.md report.html

``<pass>`` is ``round-<n>`` (the workload's own traffic) or ``capacity-<n>`` (same requests, offline). While a pass runs
its tables are Arrow streams (``requests.arrows``) flushed about once a second; the end of the pass turns them into
parquet. Readers take either, so a killed run loses at most the last seconds. All times are seconds from the start of
the pass; all missing values are null, never 0.

requests: one row per request of the schedule that was sent, refused or failed
steps:    one row per engine step
telemetry: one row per sample (about 5 per second)
routing.npz: counts_WPCLE int64 (windows, phases [prefill, decode], classes, MoE layers, experts), real_tokens_WPC int64,
    window_start_s W, window_first_step W, distinct_SL int16 and max_load_SL int32 (per step, both phases together),
    step_counts_SPLE uint16 (only the first S_kept steps, up to a cap stated in step_counts_cap_bytes; absent if over),
    layer_names, class_names, top_k_L, dropped_PL int64 (picks that were not executed), identity_PL int64.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moeprof.core.errors import RecordError

if TYPE_CHECKING:
    import pandas as pd

FORMAT_VERSION = 1
HEARTBEAT_STALE_S = 10.0
PHASES = ("prefill", "decode")

# name -> arrow type; the order is the order on disk.
REQUEST_COLUMNS = {
    "request": "int64",  # row in the schedule
    "request_id": "string",
    "request_class": "string",
    "arrival_s": "double",  # when the schedule wanted it
    "sent_s": "double",  # when it was handed to the engine
    "send_slack_s": "double",  # sent - max(arrival, end of the step running at arrival): the replayer's own lag
    "first_scheduled_s": "double",  # start of the first step it was in
    "first_token_s": "double",
    "last_token_s": "double",
    "input_tokens": "int64",
    "cached_tokens": "int64",  # prompt tokens taken from the prefix cache
    "recomputed_tokens": "int64",  # tokens computed again after a preemption
    "num_preemptions": "int64",
    "output_tokens": "int64",  # got
    "asked_output_tokens": "int64",  # asked
    "agreed_tokens": "int64",  # forced ids that the model itself would have chosen; null if not forced
    "num_characters": "int64",  # prompt + asked output text; null if unknown
    "status": "string",  # done | refused | failed | unfinished
    "error": "string",
    "token_times_s": "list<double>",  # one per output token
}
STEP_COLUMNS = {
    "step": "int64",
    "start_s": "double",
    "end_s": "double",
    "device_s": "double",
    "cpu_s": "double",  # processor time of the process during the step
    "phase": "string",  # prefill | decode | mixed
    "prefill_tokens": "int64",
    "decode_tokens": "int64",
    "context_tokens": "int64",  # keys attended to, summed over sequences (past + query)
    "prefill_context_tokens": "int64",  # the prefill sequences' part of it
    "attention_pairs": "int64",  # sum over sequences of query-key pairs under the causal mask
    "num_requests": "int64",
    "num_prefill_requests": "int64",
    "new_tokens": "int64",  # output tokens that came out
    "num_waiting": "int64",  # sent but not yet in a batch
    "kv_tokens_used": "int64",
    "instrumented": "bool",  # False in blocks with hooks off (overhead measurement only)
}
TELEMETRY_COLUMNS = {
    "t_s": "double",
    "power_w": "double",
    "energy_counter_j": "double",  # device's running total (NVML)
    "cpu_energy_counter_j": "double",  # RAPL running total, unwrapped
    "temperature_c": "double",
    "sm_clock_mhz": "double",
    "memory_clock_mhz": "double",
    "device_utilisation_ratio": "double",
    "device_memory_used_bytes": "int64",
    "allocated_bytes": "int64",  # torch allocator
    "reserved_bytes": "int64",
    "throttle_reasons": "int64",  # NVML bit mask
    "num_other_processes": "int64",
    "host_rss_bytes": "int64",
    "load_average_1min": "double",
}
TABLES = {"requests": REQUEST_COLUMNS, "steps": STEP_COLUMNS, "telemetry": TELEMETRY_COLUMNS}


@dataclass(frozen=True, kw_only=True)
class Routing:
    """Routing counts of one pass. Legend: W windows, P phases, C classes, L MoE layers, E experts, S steps.

    Attributes:
        counts_WPCLE: executed (token, expert) assignments of real tokens.
        real_tokens_WPC: real tokens processed.
        window_start_s: start of each window.
        window_first_step: first step of each window.
        distinct_SL: experts with at least one token, per step and layer.
        max_load_SL: tokens of the busiest expert, per step and layer.
        step_counts_SPLE: counts of the first steps, up to the cap; None when not kept.
        layer_names: module path per MoE layer.
        class_names: request classes, index = C.
        top_k_L: picks per token and layer.
        dropped_PL: assignments routed but not executed (capacity drops, zero-weight picks).
        identity_PL: picks of zero-computation (identity) experts, counted apart.
    """

    counts_WPCLE: npt.NDArray[np.int64]
    real_tokens_WPC: npt.NDArray[np.int64]
    window_start_s: npt.NDArray[np.float64]
    window_first_step: npt.NDArray[np.int64]
    distinct_SL: npt.NDArray[np.int16]
    max_load_SL: npt.NDArray[np.int32]
    step_counts_SPLE: npt.NDArray[np.uint16] | None
    layer_names: tuple[str, ...]
    class_names: tuple[str, ...]
    top_k_L: npt.NDArray[np.int64]
    dropped_PL: npt.NDArray[np.int64]
    identity_PL: npt.NDArray[np.int64]

    @property
    def num_experts(self) -> int:
        """E."""
        return int(self.counts_WPCLE.shape[-1])

    def save(self, path: Path) -> None:
        """Write as npz."""
        arrays: dict[str, Any] = {
            name: getattr(self, name)
            for name in (
                "counts_WPCLE real_tokens_WPC window_start_s window_first_step distinct_SL max_load_SL top_k_L "
                "dropped_PL identity_PL"
            ).split()
        }
        if self.step_counts_SPLE is not None:
            arrays["step_counts_SPLE"] = self.step_counts_SPLE
        arrays["layer_names"] = np.array(self.layer_names, dtype=np.str_)
        arrays["class_names"] = np.array(self.class_names, dtype=np.str_)
        np.savez_compressed(path, **arrays)

    @staticmethod
    def load(path: Path) -> Routing:
        """Read what :meth:`save` wrote.

        Raises:
            RecordError: the file is damaged.
        """
        import zipfile

        try:
            with np.load(path, allow_pickle=False) as data:
                arrays = {name: data[name] for name in data.files}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise RecordError(
                f"{path}: damaged routing counts ({error}); the rest of the record may be fine"
            ) from error
        layer_names = tuple(str(x) for x in arrays.pop("layer_names"))
        class_names = tuple(str(x) for x in arrays.pop("class_names"))
        step_counts = arrays.pop("step_counts_SPLE", None)
        return Routing(layer_names=layer_names, class_names=class_names, step_counts_SPLE=step_counts, **arrays)


@dataclass(frozen=True)
class PassRecord:
    """One pass over the schedule by one model in one launch. Tables load when first asked for."""

    path: Path

    @property
    def name(self) -> str:
        """``round-0``, ``capacity-2``..."""
        return self.path.name

    @property
    def is_capacity(self) -> bool:
        """True for the offline pass that headline dollars come from."""
        return self.name.startswith("capacity-")

    @cached_property
    def info(self) -> dict[str, Any]:
        """pass.json; empty when the pass was killed before it could be written."""
        path = self.path / "pass.json"
        return read_json(path) if path.exists() else {}

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
        return Routing.load(path) if path.exists() else None


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
        path = self.path / "launch.json"
        return read_json(path) if path.exists() else {}

    @cached_property
    def passes(self) -> tuple[PassRecord, ...]:
        """Passes in order: rounds, then capacity passes."""
        folders = [p for p in self.path.iterdir() if p.is_dir() and p.name.startswith(("round-", "capacity-"))]
        order = sorted(folders, key=lambda p: (p.name.startswith("capacity"), int(p.name.rpartition("-")[2])))
        return tuple(PassRecord(p) for p in order)

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
        """model.json (see core/modelfacts.py); empty when loading failed."""
        path = self.path / "model.json"
        return read_json(path) if path.exists() else {}

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
    missing = [key for key in ("format_version", "workload", "environment", "models") if key not in experiment]
    if missing:
        raise RecordError(f"{file}: damaged, without {', '.join(missing)}")
    version = experiment["format_version"]
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise RecordError(
            f"{file}: format {version}, this moeprof reads up to {FORMAT_VERSION}; upgrade moeprof to read it"
        )
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


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a record.

    Raises:
        RecordError: unreadable, no JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RecordError(f"{path}: damaged ({error})") from error
    if not isinstance(value, dict):
        raise RecordError(f"{path}: damaged (a JSON object was expected)")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write JSON so that a reader never sees half a file."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def arrow_schema(table: str) -> Any:
    """The pyarrow schema of a record table."""
    import pyarrow as pa

    types = {
        "int64": pa.int64(),
        "double": pa.float64(),
        "string": pa.string(),
        "bool": pa.bool_(),
        "list<double>": pa.list_(pa.float64()),
    }
    return pa.schema([(name, types[kind]) for name, kind in TABLES[table].items()])


def read_table(folder: Path, table: str) -> pd.DataFrame:
    """Read a table of a pass: parquet if the pass ended, else the flushed part of the stream, else empty.

    Integer columns with nulls come back as pandas ``Int64``, so that null is never 0.

    Raises:
        RecordError: the file is damaged beyond a cut-off tail.
    """
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    parquet, stream = folder / f"{table}.parquet", folder / f"{table}.arrows"
    try:
        if parquet.exists():
            data = pq.read_table(parquet)
        elif stream.exists():
            data = pa.Table.from_batches(_readable_batches(stream), schema=arrow_schema(table))
        else:
            data = arrow_schema(table).empty_table()
    except (OSError, pa.ArrowException) as error:
        raise RecordError(f"{folder / table}: damaged table ({error})") from error
    types = {pa.int64(): pd.Int64Dtype()}
    return data.to_pandas(types_mapper=types.get)


def _readable_batches(stream: Path) -> Iterator[Any]:
    """Batches of an Arrow stream up to where the writer was killed."""
    import pyarrow as pa

    with stream.open("rb") as file:
        try:
            reader = pa.ipc.open_stream(file)
        except pa.ArrowInvalid:
            return
        while True:
            try:
                yield reader.read_next_batch()
            except (StopIteration, pa.ArrowException, OSError):
                return
