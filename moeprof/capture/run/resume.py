"""Going on with an interrupted run: what is finished is kept, what is not is set aside and measured again.

Resumed passes land in the folder of their launch, but they come from another process: pass.json says which
(``process``: 0 for the run's own, 1 for the first resumption...), launch.json and experiment.json say ``resumed``, and
the report says so as a reason to doubt, because memory layout and machine state differ between processes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from moeprof.core.errors import InputError, RecordError
from moeprof.core.jsonfile import read_json
from moeprof.core.record.layout import HEARTBEAT_STALE_S, open_record
from moeprof.core.workload.engine import ours
from moeprof.core.workload.studies import Sweep
from moeprof.core.workload.workload import Workload

MAY_DIFFER = ("max_minutes", "watchdog_s", "label")  # bounds and notes, not what is measured
MACHINE = ("device", "device_name", "cpu", "threads", "packages")
PASS_FOLDER = r"(round|capacity|sweep)-[\d-]+|c\d+"
OWN_BOUND = "sweep.max_seconds"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """An interrupted run.

    Attributes:
        folder: the record.
        experiment: its experiment.json.
        process: number of the process that goes on with it, from 1.
    """

    folder: Path
    experiment: dict[str, Any]
    process: int

    def finished(self, pass_folder: Path) -> dict[str, Any] | None:
        """pass.json of a pass that need not be run again: done, or cut by the sweep's own bound; else None."""
        file = pass_folder / "pass.json"
        try:
            info = read_json(file) if file.exists() else {}
        except RecordError:
            return None  # the kill came while it was written: it is set aside with its pass
        ended = info.get("status") == "done" or info.get("cut_by") == OWN_BOUND
        return info if ended else None

    def launch(self, launch_folder: Path) -> dict[str, Any]:
        """launch.json as the last process left it; empty when it never wrote one."""
        file = launch_folder / "launch.json"
        return read_json(file) if file.exists() else {}

    def is_missing(self, launch_folder: Path, names: Iterable[str]) -> bool:
        """Whether any of these passes has to be run, those aside that a saturated rate left out."""
        rows = (self.launch(launch_folder).get("sweep_stopped") or {}).get("rows", [])
        skipped = tuple(f"sweep-{index}-" for row in rows for index in row["skipped"])
        return any(not name.startswith(skipped) and self.finished(launch_folder / name) is None for name in names)

    def set_aside(self) -> list[str]:
        """Rename unfinished passes to ``interrupted-<process>.<pass>``; what they became, relative to the record."""
        moved = []
        for folder in sorted(self.folder.glob("*/launch-*/*")):
            if folder.is_dir() and re.fullmatch(PASS_FOLDER, folder.name) and self.finished(folder) is None:
                target = folder.with_name(f"interrupted-{self.process}.{folder.name}")
                folder.rename(target)
                moved.append(target.relative_to(self.folder).as_posix())
        return moved

    def begin(self) -> dict[str, Any]:
        """Set unfinished passes aside; what experiment.json keeps of the run's beginning, and what it adds."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        resumed = {"at": now, "process": self.process, "set_aside": self.set_aside()}
        kept = {
            key: self.experiment[key]
            for key in ("started_at", "workload_text", "content_kept", "notes")
            if key in self.experiment
        }
        return kept | {"resumed": [*(self.experiment.get("resumed") or []), resumed]}

    def with_kv_tokens(self, workload: Workload) -> Workload:
        """The workload with the KV space of the record where it names none: free memory may be another by now."""
        recorded = (self.experiment["workload"].get("engine") or {}).get("kv_tokens")
        if not workload.engine.in_worker or recorded is None or ours(workload.engine).kv_tokens is not None:
            return workload
        return replace(workload, engine=replace(ours(workload.engine), kv_tokens=recorded))

    def check_same(self, content: dict[str, Any]) -> None:
        """The run that would go on is the one that was interrupted.

        Args:
            content: what experiment.json would say: workload, schedules, environment.

        Raises:
            InputError: another workload, other requests, or another machine; the message names the first difference.
        """
        for key, what in (("workload", "the workload"), ("schedules", "the requests"), ("environment", "the machine")):
            old, new = (_compared(key, value[key]) for value in (self.experiment, content))
            difference = first_difference(old, new)
            if difference is not None:
                raise InputError(
                    f"--resume {self.folder}: {what} differs from the record's in {key}{difference}; resume with the "
                    "same, or start a new run without --resume"
                )


def open_interrupted(folder: Path) -> Resume:
    """Open a run that did not end.

    Raises:
        InputError: it is still running.
        RecordError: no such run, or a damaged one.
    """
    record = open_record(folder)
    if record.status == "started":
        raise InputError(
            f"--resume {folder}: is still running (or died within the last {HEARTBEAT_STALE_S:g} s); wait until it ends"
        )
    process = 1 + len(record.experiment.get("resumed") or [])
    return Resume(folder=folder, experiment=record.experiment, process=process)


def first_difference(old: Any, new: Any) -> str | None:
    """Where two JSON values first differ, as ``.key[0]: old there, new here``; None when they are equal."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            if (found := first_difference(old.get(key), new.get(key))) is not None:
                return f".{key}{found}"
        return None
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        places = ((place, first_difference(*pair)) for place, pair in pairs)
        return next((f"[{place}]{found}" for place, found in places if found is not None), None)
    return None if old == new else f": {_shown(old)} there, {_shown(new)} here"


def sweep_pass_names(sweep: Sweep | None) -> list[str]:
    """Every pass of a sweep, those included that saturation may leave out."""
    if sweep is None:
        return []
    return [f"sweep-{index}-{number}" for index in range(len(sweep.points)) for number in range(sweep.rounds)]


def _compared(key: str, value: dict[str, Any]) -> Any:
    """The part that has to be equal, as JSON types."""
    if key == "workload":
        value = {name: item for name, item in value.items() if name not in MAY_DIFFER}
    elif key == "environment":
        value = {name: value.get(name) for name in MACHINE}
    else:
        value = {
            model: {"sha256": one.get("sha256"), "sweep": [point["sha256"] for point in one.get("sweep") or []]}
            for model, one in value.items()
        }
    return json.loads(json.dumps(value))


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
