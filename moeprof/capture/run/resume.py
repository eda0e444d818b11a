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
from pathlib import Path
from typing import Any

from msgspec import structs

from moeprof.capture.run.status import now_utc
from moeprof.core.errors import InputError, RecordError
from moeprof.core.record.experiment import ExperimentHeader, Resumption
from moeprof.core.record.headers import read_header_if_there, to_json
from moeprof.core.record.launch import LaunchHeader
from moeprof.core.record.layout import open_record
from moeprof.core.record.owner import take
from moeprof.core.record.passes import PassEnd
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
    experiment: ExperimentHeader
    process: int

    def is_finished(self, pass_folder: Path) -> bool:
        """Whether a pass need not be run again: done, or cut by the sweep's own bound."""
        try:
            end = read_header_if_there(pass_folder / "pass.json", PassEnd) or PassEnd()
        except RecordError:
            return False  # the kill came while it was written: it is set aside with its pass
        return end.status == "done" or end.cut_by == OWN_BOUND

    def launch(self, launch_folder: Path) -> LaunchHeader:
        """launch.json as the last process left it; empty when it never wrote one."""
        return read_header_if_there(launch_folder / "launch.json", LaunchHeader) or LaunchHeader()

    def is_missing(self, launch_folder: Path, names: Iterable[str]) -> bool:
        """Whether any of these passes has to be run, those aside that a saturated rate left out."""
        stopped = self.launch(launch_folder).sweep_stopped
        rows = () if stopped is None else stopped.rows
        skipped = tuple(f"sweep-{index}-" for row in rows for index in row.skipped)
        return any(not name.startswith(skipped) and not self.is_finished(launch_folder / name) for name in names)

    def set_aside(self) -> list[str]:
        """Rename unfinished passes to ``interrupted-<process>.<pass>``; what they became, relative to the record."""
        moved = []
        for folder in sorted(self.folder.glob("*/launch-*/*")):
            if folder.is_dir() and re.fullmatch(PASS_FOLDER, folder.name) and not self.is_finished(folder):
                target = folder.with_name(f"interrupted-{self.process}.{folder.name}")
                folder.rename(target)
                moved.append(target.relative_to(self.folder).as_posix())
        return moved

    def begin(self, experiment: ExperimentHeader) -> ExperimentHeader:
        """Set unfinished passes aside; the header with what the record keeps of the run's beginning."""
        old, set_aside = self.experiment, tuple(self.set_aside())
        return structs.replace(
            experiment,
            started_at=old.started_at or experiment.started_at,
            workload_text=experiment.workload_text if old.workload_text is None else old.workload_text,
            content_kept=experiment.content_kept if old.content_kept is None else old.content_kept,
            notes=old.notes,
            resumed=(*old.resumed, Resumption(at=now_utc(), process=self.process, set_aside=set_aside)),
        )

    @property
    def is_done(self) -> bool:
        """The run came to its end: there is nothing to go on with."""
        return self.experiment.status == "done"

    def as_settled(self, workload: Workload) -> Workload:
        """The workload with rounds and KV space of the record where it names none: memory may be another by now."""
        if workload.rounds is None:
            workload = replace(workload, rounds=self.experiment.workload.get("rounds"))
        recorded = (self.experiment.workload.get("engine") or {}).get("kv_tokens")
        if not workload.engine.in_worker or recorded is None or ours(workload.engine).kv_tokens is not None:
            return workload
        return replace(workload, engine=replace(ours(workload.engine), kv_tokens=recorded))

    def check_same(self, experiment: ExperimentHeader) -> None:
        """The run that would go on is the one that was interrupted.

        Args:
            experiment: what experiment.json would say: workload, schedules, environment.

        Raises:
            InputError: another workload, other requests, or another machine; the message names the first difference.
        """
        for key, what in (("workload", "the workload"), ("schedules", "the requests"), ("environment", "the machine")):
            old, new = (_compared(key, to_json(header).get(key, {})) for header in (self.experiment, experiment))
            difference = first_difference(old, new)
            if difference is not None:
                raise InputError(
                    f"--resume {self.folder}: {what} differs from the record's in {key}{difference}; resume with the "
                    "same, or start a new run without --resume"
                )


def open_interrupted(folder: Path) -> Resume:
    """Open a run that did not end, and become its owner.

    Raises:
        InputError: it is still running, or cannot be written.
        RecordError: no such run, or a damaged one.
    """
    open_record(folder)
    link = next((path for path in sorted(folder.rglob("*")) if path.is_symlink()), None)
    if link is not None:
        raise RecordError(f"--resume {link}: is a link, which no run makes and through which none writes; remove it")
    try:
        take(folder)
    except (OSError, InputError) as error:
        raise InputError(f"--resume {error}") from error
    record = open_record(folder)  # as its last owner left it
    process = 1 + len(record.experiment.resumed)
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
