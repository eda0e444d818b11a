"""experiment.json and the heartbeat: written when the run starts, kept alive, closed with its status."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from moeprof.core.record import FORMAT_VERSION, write_json

BEAT_EVERY_S = 1.0


class Header:
    """The record's header. A thread beats once a second, so a killed run is known by its silence."""

    def __init__(self, folder: Path, content: dict[str, Any], models: list[str]) -> None:
        self._folder = folder
        self._models: dict[str, dict[str, Any]] = {
            name: {"name": name, "folder": name, "status": "started", "error": None} for name in models
        }
        self._content = {
            "format_version": FORMAT_VERSION,
            "status": "started",
            "run": folder.name,
            "started_at": _now(),
            **content,
        }
        self._write()
        self.beat()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def beat(self) -> None:
        """Write the time; a reader that came in the middle of it would take an empty file for silence."""
        temporary = self._folder / "heartbeat.tmp"
        temporary.write_text(f"{time.time():.1f}\n", encoding="ascii")
        temporary.replace(self._folder / "heartbeat")

    def model_failed(
        self, name: str, error: str, details: str | None, exit_code: int, reason: str | None = None
    ) -> None:
        """Mark a model; the traceback goes beside its record. ``exit_code`` 2 means that its input was bad."""
        self._models[name] |= {"status": "failed", "error": error, "exit_code": exit_code, "reason": reason}
        if details:
            (self._folder / name).mkdir(exist_ok=True)
            (self._folder / name / "failure.txt").write_text(details, encoding="utf-8")
        self._write()

    def put(self, key: str, value: Any) -> None:
        """Say something about the run as a whole."""
        self._content[key] = value
        self._write()

    def note(self, text: str) -> None:
        """Add a sentence that readers should know, once."""
        notes = self._content.setdefault("notes", [])
        if text not in notes:
            notes.append(text)
        self._write()

    def finish(self, status: str, failed: set[str]) -> None:
        """Close the record."""
        self._done.set()
        self._thread.join()
        for name, model in self._models.items():
            if name not in failed:
                model["status"] = "interrupted" if status == "interrupted" else "done"
        self._content |= {"status": status, "finished_at": _now()}
        self._write()

    def _run(self) -> None:
        while not self._done.wait(BEAT_EVERY_S):
            self.beat()

    def _write(self) -> None:
        write_json(self._folder / "experiment.json", self._content | {"models": list(self._models.values())})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
