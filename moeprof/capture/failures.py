"""What a failed model leaves in the record: its reason code, its marked pass, and who is not tried any more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moeprof.capture.header import Header
from moeprof.capture.meters import device_is_lost, reported_xids
from moeprof.capture.telemetry import Meter
from moeprof.capture.workers import WorkerFailedError
from moeprof.core.errors import RecordError
from moeprof.core.record import read_json, write_json

Tell = Callable[[str, str, dict[str, Any]], None]
ENDED = ("done", "cut")  # passes that count


@dataclass(slots=True)
class Failures:
    """The models that failed, and whether the device is still there.

    Attributes:
        header: of the record.
        meters: asked whether the device still answers.
        tell: hears of every failure.
        names: the failed models.
        lost_with: the model in whose process the device was lost, or None.
    """

    header: Header
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
        self.header.model_failed(name, text, error.details, error.exit_code, reason)
        self.tell(name, "failed", {"error": text})

    def leave_out(self, unfinished: Iterable[str]) -> None:
        """The device is lost: models that still had passes to run are failed too, and nothing is tried on it."""
        for name in unfinished:
            if name not in self.names:
                text = f"model {name}: not tried further: the device was lost while {self.lost_with} ran"
                self.names.add(name)
                self.header.model_failed(name, text, None, 1, "device_lost")
                self.tell(name, "failed", {"error": text})


def mark_pass(folder: Path, reason: str | None, error: str) -> None:
    """Say in pass.json that the pass failed; one that had not begun, or had ended, is left alone."""
    file = folder / "pass.json"
    try:
        info = read_json(file) if file.exists() else None
    except RecordError:
        info = {"traffic": "open"}  # killed while writing it
    if info is not None and info.get("status") not in ENDED:
        write_json(file, info | {"status": "failed", "reason": reason, "error": error})


def has_ended(folder: Path) -> bool:
    """Whether a pass ran to its end, or to where it was meant to be cut."""
    try:
        return (folder / "pass.json").exists() and read_json(folder / "pass.json").get("status") in ENDED
    except RecordError:
        return False
