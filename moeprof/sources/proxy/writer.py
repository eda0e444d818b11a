"""Writes a recording, one line with one system call for each request: a kill loses no line and leaves no half one."""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from moeprof.core.errors import TraceError
from moeprof.sources.formats.file import PARTS

FILE_SUFFIX = ".jsonl"
OWNER_ONLY = 0o600


class RecordingWriter:
    """A recording on disk: one file, or a folder of parts of a stated size.

    Attributes:
        rows: lines written.
        lost: lines that could not be written (a full disk); the traffic goes on without them.
        problem: the system's word for the first of them.
    """

    def __init__(self, output: Path, header: dict[str, Any], *, part_bytes: int) -> None:
        """Begin a recording.

        Raises:
            TraceError: there is one already, or it cannot be written.
        """
        self.output = output
        self.rows = self.lost = 0
        self.problem: str | None = None
        self._header = header
        self._limit = None if output.suffix == FILE_SUFFIX else part_bytes
        self._part = self._size = 0
        try:
            if self._limit is not None:
                output.mkdir(parents=True, exist_ok=True)
                if next(output.glob(PARTS), None) is not None:
                    raise TraceError(f"{output}: holds a recording already; each needs a folder of its own")
            self._file = self._open()
        except FileExistsError as error:
            raise TraceError(f"{output}: already there; a recording never overwrites one") from error
        except OSError as error:
            raise TraceError(f"{output}: cannot be written ({error.strerror or error})") from error

    def _open(self) -> int:
        """The next part with its header."""
        self._part += 1
        path = self.output if self._limit is None else self.output / f"part-{self._part:04d}{FILE_SUFFIX}"
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, OWNER_ONLY)
        line = _line(self._header | {"part": self._part})
        os.write(file, line)
        self._size = len(line)
        return file

    def write(self, row: dict[str, Any]) -> None:
        """Add a row; where the system refuses, it is counted as lost."""
        line = _line(row)
        try:
            if self._limit is not None and self._size + len(line) > self._limit:
                following = self._open()
                os.close(self._file)
                self._file = following
            written = os.write(self._file, line)
            if written < len(line):
                os.ftruncate(self._file, self._size)
                raise OSError(None, "no space for a whole line")
        except OSError as error:
            self.lost += 1
            self.problem = self.problem or error.strerror or str(error)
            return
        self._size += written
        self.rows += 1

    def close(self) -> None:
        """Nothing is written any more."""
        os.close(self._file)


def default_output() -> Path:
    """A new folder, named by the time."""
    stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S")
    return Path("recordings") / re.sub(r"[^\w-]", "", stamp)


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, separators=(", ", ": ")).encode() + b"\n"
