"""Trace readers, one file per format, and their table: each turns its rows into a Trace, and notes what it drops.

This file is the index of the trace formats. A reader is a module with ``matches(file) -> bool`` (a look at the header
or the keys of the first row) and ``read(file) -> Trace``; it is imported only when it is asked.
"""

from __future__ import annotations

import importlib
from difflib import get_close_matches
from pathlib import Path
from typing import Protocol, cast

from moeprof.core.errors import TraceError
from moeprof.core.trace import Trace
from moeprof.sources.formats.file import SourceFile, open_source

# Order matters for sniffing: the formats with the most telling keys come first, the widest one last.
READERS = {
    "azure": "moeprof.sources.formats.azure",
    "burstgpt": "moeprof.sources.formats.burstgpt",
    "vidur": "moeprof.sources.formats.vidur",
    "bailian": "moeprof.sources.formats.bailian",
    "mooncake": "moeprof.sources.formats.mooncake",
    "sharegpt": "moeprof.sources.formats.sharegpt",
    "recording": "moeprof.sources.formats.recording",
    "jsonl": "moeprof.sources.formats.jsonl",
}


class Reader(Protocol):
    """What a reader module offers."""

    def matches(self, file: SourceFile) -> bool:
        """True when the header or the first row looks like this format."""

    def read(self, file: SourceFile) -> Trace:
        """The whole file as a trace.

        Raises:
            TraceError: with the file and row, what was found and what is allowed.
        """


def reader(name: str) -> Reader:
    """The reader module of a format.

    Raises:
        TraceError: no such format; the message lists the names and the nearest one.
    """
    if name not in READERS:
        near = get_close_matches(name, READERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise TraceError(f"unknown trace format {name!r}{hint} (known: {', '.join(READERS)})")
    return cast(Reader, importlib.import_module(READERS[name]))


def sniff(file: SourceFile) -> str:
    """The name of the format that the content looks like.

    Raises:
        TraceError: it looks like none of them.
    """
    for name in READERS:
        if reader(name).matches(file):
            return name
    found = f"columns {', '.join(file.header[:8])}" if file.header else f"keys {', '.join(sorted(file.keys)[:8])}"
    raise TraceError(
        f"{file.path}: not a known trace (found {found[:160]}); name its format, one of {', '.join(READERS)}, "
        "or convert it to moeprof's JSONL with the keys arrival_s, input_tokens, output_tokens"
    )


def read_trace(path: Path | str, format: str | None = None) -> Trace:
    """Read a recorded trace; the format is sniffed from the content unless named.

    Raises:
        TraceError: unreadable, empty, of no known format, or a row that cannot be understood (file and row named).
    """
    known = None if format is None else reader(format)  # a misspelt name is reported before the file is opened
    file = open_source(Path(path))
    return (known or reader(sniff(file))).read(file)


def write_trace(trace: Trace, path: Path, *, force: bool = False) -> None:
    """Write a trace as moeprof's own JSONL (see jsonl.py for the keys).

    Raises:
        TraceError: the file is already there (without ``force``), or cannot be written.
    """
    from moeprof.sources.formats import jsonl

    jsonl.write(trace, path, force=force)
