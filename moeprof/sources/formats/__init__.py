"""Trace readers, one file per format, and their table: each turns its rows into a Trace, and notes what it drops.

This file is the index of the trace formats. A reader is a module with ``matches(file) -> bool`` (a look at the header
or the keys of the first row) and ``read(file) -> Trace``; it is imported only when it is asked.
"""

from __future__ import annotations

import gc
import importlib
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Protocol, cast

from moeprof.core.errors import TraceError
from moeprof.core.trace import Note, Trace
from moeprof.core.workload.traffic import TraceSource
from moeprof.sources.formats.file import Reading, SourceFile, list_rows, open_source

# Order matters for sniffing: the formats with the most telling keys come first, the widest one last.
READERS = {
    "recording": "moeprof.sources.formats.recording",
    "azure": "moeprof.sources.formats.azure",
    "burstgpt": "moeprof.sources.formats.burstgpt",
    "vidur": "moeprof.sources.formats.vidur",
    "splitwise": "moeprof.sources.formats.splitwise",
    "litellm": "moeprof.sources.formats.litellm",
    "langfuse": "moeprof.sources.formats.langfuse",
    "sagemaker": "moeprof.sources.formats.sagemaker",
    "otel": "moeprof.sources.formats.otel",
    "evalscope": "moeprof.sources.formats.evalscope",
    "weka": "moeprof.sources.formats.weka",
    "bailian": "moeprof.sources.formats.bailian",
    "guidellm": "moeprof.sources.formats.guidellm",
    "sglang": "moeprof.sources.formats.sglang",
    "vllm": "moeprof.sources.formats.vllm",
    "aiperf": "moeprof.sources.formats.aiperf",
    "mooncake": "moeprof.sources.formats.mooncake",
    "sharegpt": "moeprof.sources.formats.sharegpt",
    "openai": "moeprof.sources.formats.openai",
    "jsonl": "moeprof.sources.formats.jsonl",
}
# What the names of columns look like, for the hint about a file of no known format.
LIKELY = {
    "arrival": r"arriv|start|time|created|_at$|^(at|ts|when)$",
    "input": r"(prompt|input|context|request).*(tok|len|size)|tok\w*_(in|prompt)|^(in|input)$",
    "output": r"(complet|output|respon|generat|answer).*(tok|len|size)|tok\w*_(out|gen)|^(out|output)$",
}
# A key that tells that a JSON or CSV file, which no reader knows, is something else.
OTHER_THINGS = {
    "logical_count": "an SGLang expert dump: routing",
    "physical_count": "an SGLang expert dump: routing",
    "gating_probs": "a list of routed experts: routing",
    "expert_ids": "a list of routed experts: routing",
    "expert_id": "a list of routed experts: routing",
    "expert": "a list of routed experts: routing",
    "experts": "a list of routed experts: routing",
    "topk_ids": "a list of routed experts: routing",
    "nbformat": "a notebook",
    "added_tokens": "a model's tokenizer",
    "architectures": "a model's config (`moeprof params` reads it)",
    "weight_map": "an index of a model's weights",
    "traceEvents": "a timeline of a profiler",
}


class UnknownFormatError(TraceError):
    """A file that no reader knows.

    Attributes:
        columns: role to the column or key whose name looks like it.
    """

    def __init__(self, text: str, columns: dict[str, str]) -> None:
        super().__init__(text)
        self.columns = columns


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
    names = list(file.header or sorted(file.keys))
    for key, what in OTHER_THINGS.items():
        if key in names:
            raise TraceError(f"{file.path}: this is {what}, not a trace of requests (found {key})")
    kind = _kind(file)
    columns = _likely_columns(names)
    options = (
        f"--column {shlex.quote(f'{role}={name}')}" for role, name in (dict.fromkeys(LIKELY, "NAME") | columns).items()
    )
    raise UnknownFormatError(
        f"{file.path}: not a known trace ({kind}); name its format, one of {', '.join(READERS)}, or "
        f"say which columns it has, as in {' '.join(options)} (traffic.trace.columns)",
        columns,
    )


def _kind(file: SourceFile) -> str:
    """What an unknown file is, and the names that stand in it."""
    names = ["".join(char if char.isprintable() else "?" for char in name) for name in file.header or sorted(file.keys)]
    is_prose = len(names) == 1 and bool(file.header) and not names[0].isidentifier()
    if file.table is not None:
        kind = "a parquet file; "
    elif file.single and b"\n" in file.data.strip():
        kind = "one JSON object, not lines; "
    elif not names:
        kind = "JSON objects without keys"
    elif is_prose:
        kind = "text without columns; "
    else:
        kind = ""
    what = "first line" if is_prose else "columns" if file.header else "keys"
    return kind + (f"found {what} {', '.join(names[:12])}"[:240] if names else "")


def _likely_columns(names: list[str]) -> dict[str, str]:
    """Role to the first name that looks like it."""
    found = {
        role: next((name for name in names if re.search(pattern, name, re.IGNORECASE)), None)
        for role, pattern in LIKELY.items()
    }
    return {role: name for role, name in found.items() if name is not None}


def read_trace(path: Path | str, format: str | None = None, how: Reading | None = None) -> Trace:
    """Read a recorded trace; the format is sniffed from the content unless named, or its columns are.

    Raises:
        TraceError: unreadable, empty, of no known format, or a row that cannot be understood (file and row named).
    """
    return _read(Path(path), format, how or Reading())[0]


def _read(path: Path, format: str | None, how: Reading) -> tuple[Trace, SourceFile]:
    if how.columns and format is not None:
        raise TraceError(f"{path}: give the format ({format}) or the columns, one of them")
    known = None if format is None else reader(format)  # a misspelt name is reported before the file is opened
    file = open_source(path, how)
    notes: tuple[Note, ...] = ()
    if how.columns:
        named = importlib.import_module("moeprof.sources.formats.named")
        read = named.read
        file, notes = named.unwrapped(file)
    else:
        file, notes = (file, notes) if known else _rows_inside(file)
        read = (known or reader(sniff(file))).read
    if how.skip_bad_rows:
        read = partial(importlib.import_module("moeprof.sources.formats.skipping").read_good_rows, read)
    return _without_collections(read, file).with_notes(*notes), file


def _without_collections(read: Callable[[SourceFile], Trace], file: SourceFile) -> Trace:
    """Read a file while Python does not look for garbage: of a million new rows none is, and looking takes a third."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        return read(file)
    finally:
        if was_on:
            gc.enable()


def _rows_inside(file: SourceFile) -> tuple[SourceFile, tuple[Note, ...]]:
    """Of one JSON object that no reader knows, the rows of the list in it that one knows: ``{"data": [...]}``.

    Raises:
        TraceError: its one list is empty, or an item of the list is no object.
    """
    if not file.single or not file.rows:
        return file, ()
    try:
        sniff(file)
    except UnknownFormatError:
        pass
    else:
        return file, ()
    lists = {key: items for key, items in file.rows[0][1].items() if isinstance(items, list)}
    if len(lists) == 1 and not next(iter(lists.values())):
        raise file.error(None, f"the list {next(iter(lists))} is empty; a trace has at least one request")
    for key, items in lists.items():
        if items and isinstance(items[0], dict):
            inner, notes = list_rows(file, key)
            try:
                sniff(inner)
            except UnknownFormatError:
                continue
            return inner, notes
    return file, ()


def read_source(source: TraceSource) -> Trace:
    """Read what a workload's ``traffic.trace`` names, before any transform.

    Raises:
        TraceError: as :func:`read_trace`.
    """
    return read_told(source)[0]


def read_told(source: TraceSource) -> tuple[Trace, TraceSource]:
    """The same, and the source with what the content told: format, unit of times, tokens of a prefix id.

    Raises:
        TraceError: as :func:`read_trace`.
    """
    how = Reading(
        timestamp_unit=source.timestamp_unit,
        block_tokens=source.block_tokens,
        columns=source.columns,
        skip_bad_rows=source.skip_bad_rows,
    )
    trace, file = _read(Path(source.path), source.format, how)
    told = replace(
        source,
        format=None if source.columns else trace.source,
        timestamp_unit=source.timestamp_unit or file.found.get("timestamp_unit"),
        block_tokens=source.block_tokens or file.found.get("block_tokens"),
    )
    return trace, told


def write_trace(trace: Trace, path: Path, *, force: bool = False) -> None:
    """Write a trace as moeprof's own JSONL (see jsonl.py for the keys).

    Raises:
        TraceError: the file is already there (without ``force``), or cannot be written.
    """
    from moeprof.sources.formats import jsonl

    jsonl.write(trace, path, force=force)
