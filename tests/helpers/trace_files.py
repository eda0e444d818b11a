"""Small trace files and what their reading said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moeprof.core.errors import TraceError
from moeprof.core.trace import Trace
from moeprof.sources.formats import read_trace
from moeprof.sources.formats.file import Reading


def write_rows(folder: Path, rows: list[dict[str, Any]], name: str = "trace.jsonl") -> Path:
    """JSON lines."""
    return write_text(folder, "\n".join(map(json.dumps, rows)), name)


def write_text(folder: Path, text: str, name: str = "trace.csv") -> Path:
    """A file of this text, line ends as they are."""
    path = folder / name
    path.write_bytes(text.encode())
    return path


def read(path: Path, format: str | None = None, **how: Any) -> Trace:
    """The trace, with what the user says about the file."""
    return read_trace(path, format, Reading(**how))


def refusal(path: Path, format: str | None = None, **how: Any) -> str:
    """The one line with which the file is refused, without its path."""
    with pytest.raises(TraceError) as caught:
        read(path, format, **how)
    text = str(caught.value)
    assert "\n" not in text
    return text.removeprefix(str(path))


def counts(trace: Trace) -> dict[str, int]:
    """Note code -> requests concerned."""
    return {note.code: note.count for note in trace.notes}


def said(trace: Trace, code: str) -> str:
    """The text of the one note with this code."""
    (note,) = (note for note in trace.notes if note.code == code)
    return note.text
