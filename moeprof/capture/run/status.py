"""experiment.json: written when the run starts, closed with its status.

What a failed model leaves in the record: its reason code, its marked pass, and who is not tried any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from msgspec import structs

from moeprof.capture.devices.meters import Meter, device_is_lost, reported_xids
from moeprof.capture.worker.process import WorkerFailedError
from moeprof.core.errors import RecordError, StorageError, storage_sentence
from moeprof.core.files import write_text
from moeprof.core.record.experiment import ExperimentHeader
from moeprof.core.record.headers import read_header_if_there, write_header
from moeprof.core.record.owner import take
from moeprof.core.record.passes import PassEnd, PassHeader
from moeprof.core.record.whole import list_files


@contextmanager
def writing(folder: Path, then: str) -> Iterator[None]:
    """Inside, a record that takes nothing more ends the run in one line, with what was measured kept.

    Args:
        folder: of the record.
        then: what can be done with it once there is room.

    Raises:
        StorageError: no space, read-only, or a limit.
    """
    try:
        yield
    except (OSError, StorageError) as error:
        why = str(error) if isinstance(error, StorageError) else storage_sentence(error)
        if why is None:
            raise
        is_kept = any((folder / name).exists() for name in ("experiment.json", "ab.json"))
        kept = f"what was measured is kept; once that is mended: {then}" if is_kept else "nothing was measured"
        raise StorageError(f"{folder}: {why}; {kept}") from error


class RunStatus:
    """experiment.json of a run under way, which this process owns (see core/record/owner.py)."""

    def __init__(self, folder: Path, experiment: ExperimentHeader) -> None:
        self._folder, self._experiment = folder, experiment
        self._owner = take(folder)
        self._owner.has_begun = True
        self._write()

    def model_failed(
        self, name: str, error: str, details: str | None, exit_code: int, reason: str | None = None
    ) -> None:
        """Mark a model; the traceback goes beside its record. ``exit_code`` 2 means that its input was bad."""
        self._change(name, status="failed", error=error, exit_code=exit_code, reason=reason)
        if details:
            (self._folder / name).mkdir(exist_ok=True)
            write_text(self._folder / name / "failure.txt", details)
        self._write()

    def put(self, **known: Any) -> None:
        """Say something about the run as a whole: fields of the header."""
        self._experiment = structs.replace(self._experiment, **known)
        self._write()

    def note(self, text: str) -> None:
        """Add a sentence that readers should know, once."""
        self.put(notes=tuple(dict.fromkeys((*self._experiment.notes, text))))

    def finish(self, status: str, failed: set[str]) -> None:
        """Close the record: its workers have ended, so what they wrote can be listed."""
        for model in self._experiment.models:
            if model.name not in failed:
                self._change(model.name, status="interrupted" if status == "interrupted" else "done")
        files = None if status == "interrupted" else list_files(self._folder)
        self.put(status=status, finished_at=now_utc(), files=files)

    def _change(self, name: str, **known: Any) -> None:
        models = self._experiment.models
        changed = tuple(structs.replace(model, **known) if model.name == name else model for model in models)
        self._experiment = structs.replace(self._experiment, models=changed)

    def close(self) -> None:
        """Nothing more is written."""
        self._owner.release()

    def _write(self) -> None:
        self._owner.check()
        write_header(self._folder / "experiment.json", self._experiment)


def now_utc() -> str:
    """As records tell times."""
    return datetime.now(UTC).isoformat(timespec="seconds")


Tell = Callable[[str, str, dict[str, Any]], None]
ENDED = ("done", "cut")  # passes that count


@dataclass(slots=True)
class Failures:
    """The models that failed, and whether the device is still there.

    Attributes:
        run_status: of the record.
        meters: say whether the device still answers.
        tell: hears of every failure.
        names: the failed models.
        lost_with: the model in whose process the device was lost, or None.
    """

    run_status: RunStatus
    meters: Sequence[Meter]
    tell: Tell
    names: set[str] = field(default_factory=set)
    lost_with: str | None = None

    def add(self, name: str, error: WorkerFailedError, pass_folder: Path | None = None) -> None:
        """Mark a model, and the pass that it failed in."""
        reason, text, xids = error.reason, str(error), reported_xids(self.meters)
        if xids:
            text += f"; the driver reported Xid {', '.join(map(str, xids))}"
        if reason != "device_lost" and device_is_lost(self.meters):
            reason, text = "device_lost", f"{text}; the device was lost, `nvidia-smi` and the kernel's log say more"
        if reason == "device_lost":
            self.lost_with = name
        if pass_folder is not None:
            mark_pass(pass_folder, reason, text)
        self.names.add(name)
        self.run_status.model_failed(name, text, error.details, error.exit_code, reason)
        self.tell(name, "failed", {"error": text})

    def leave_out(self, unfinished: Iterable[str]) -> None:
        """The device is lost: models that still had passes to run are failed too, and nothing is tried on it."""
        for name in unfinished:
            if name not in self.names:
                text = f"model {name}: not tried further: the device was lost while {self.lost_with} ran"
                self.names.add(name)
                self.run_status.model_failed(name, text, None, 1, "device_lost")
                self.tell(name, "failed", {"error": text})


def mark_pass(folder: Path, reason: str | None, error: str) -> None:
    """Say in pass.json that the pass failed; one that had not begun, or had ended, is left alone."""
    file = folder / "pass.json"
    try:
        info = read_header_if_there(file, PassHeader)
    except RecordError:
        info = PassHeader()  # killed while writing it
    if info is not None and info.status not in ENDED:
        write_header(file, structs.replace(info, status="failed", reason=reason, error=error))


def has_ended(folder: Path) -> bool:
    """Whether a pass ran to its end, or to where it was meant to be cut."""
    try:
        return (read_header_if_there(folder / "pass.json", PassEnd) or PassEnd()).status in ENDED
    except RecordError:
        return False
