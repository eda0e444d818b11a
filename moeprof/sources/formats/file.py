"""A trace file, opened: its rows, and enough of its head to tell the format. CSV, JSON or parquet, packed or not.

``SourceFile`` also keeps what the user said about the file (``how``) and what a reader has to say about it: which keys
it used, which stood there, and notes; ``assemble`` turns these into the notes of the trace.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeprof.core.errors import TraceError
from moeprof.core.files import UnreadableError, read_parquet
from moeprof.core.trace import Note
from moeprof.core.workload.traffic import TimestampUnit
from moeprof.sources.formats.packing import PARQUET_MAGIC, as_text, read_packed

if TYPE_CHECKING:
    import pyarrow as pa

DELIMITERS = ",;\t"
PARTS = "part-*.jsonl*"  # of what `moeprof trace record` writes into a folder
TYPE_NAMES = {"list": "a list", "str": "text", "int": "a number", "float": "a number", "bool": "true or false"}


class RowError(TraceError):
    """A row that does not fit.

    Attributes:
        row: its line, or its item number.
        reason: what is wrong with it, without file and row.
    """

    def __init__(self, path: Path, row: int, reason: str) -> None:
        super().__init__(f"{path}:{row}: {reason}")
        self.row = row
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the user says about a file.

    Attributes:
        timestamp_unit: of its times; None: as the format has it, or as the file proves.
        block_tokens: prompt tokens that one prefix id stands for; None: as the format has it, or as the file proves.
        columns: role (arrival, input, ...) to the name of a column or key; empty: the format knows them.
        skip_bad_rows: rows that do not fit are counted and left out, instead of refused.
    """

    timestamp_unit: TimestampUnit | None = None
    block_tokens: int | None = None
    columns: dict[str, str] = field(default_factory=dict, hash=False)
    skip_bad_rows: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """What a reader gets.

    Attributes:
        path: for messages.
        data: the content, unpacked, known to be UTF-8, without a byte order mark; empty for parquet.
        header: the CSV or parquet column names, empty for JSON.
        keys: the keys of the first JSON object, or the parquet column names; empty for CSV.
        delimiter: of CSV cells.
        single: True for one JSON object that is the whole file.
        how: what the user said.
        table: the columns of a parquet file, or of a CSV file of which some rows were left out; else None.
        rows: (number, object) of a JSON file of which some rows were left out, or of a single object; else None.
        numbers: line of each row of ``table``; None: rows count from 1.
        seen: how many rows have a value under a key; filled while JSON rows are read.
        used: the keys and columns that the reader takes.
        notes: what the shared checks have to say.
    """

    path: Path
    data: bytes = b""
    header: tuple[str, ...] = ()
    keys: frozenset[str] = frozenset()
    delimiter: str = ","
    single: bool = False
    how: Reading = Reading()
    table: pa.Table | None = None
    rows: Sequence[tuple[int, dict[str, Any]]] | None = None
    numbers: Sequence[int] | None = None
    seen: Counter[str] = field(default_factory=Counter)
    used: set[str] = field(default_factory=set)
    notes: list[Note] = field(default_factory=list)

    @property
    def is_json(self) -> bool:
        """True for JSON lines, a JSON array or one JSON object."""
        return self.data.lstrip()[:1] in (b"{", b"[")

    @property
    def has_objects(self) -> bool:
        """True when the rows can be read as objects (parquet rows can)."""
        return self.is_json or self.table is not None

    def error(self, row: int | None, text: str) -> TraceError:
        """An error that names the file and the row (1-based line, or item of a JSON array)."""
        return TraceError(f"{self.path}: {text}") if row is None else RowError(self.path, row, text)

    def use(self, *names: str) -> None:
        """Say that these keys are used; once a reader has said so, all others that hold a value are named in a note."""
        self.used.update(names)

    def note(self, code: str, count: int, text: str) -> None:
        """Say something about the file, once."""
        self.notes.append(Note(code=code, count=count, text=text))

    def part(self, **changes: Any) -> SourceFile:
        """The same file with other rows, of which nothing has been said yet."""
        return replace(self, seen=Counter(), used=set(), notes=[], **changes)


def read_bytes(path: Path) -> bytes:
    """The content of a text file, unpacked.

    Raises:
        TraceError: missing, a folder of something else, unreadable, damaged, no text, or empty.
    """
    data = _content(path)
    if data.startswith(PARQUET_MAGIC):
        raise TraceError(f"{path}: this is a parquet file; text is expected here")
    return as_text(path, data)


def _content(path: Path) -> bytes:
    """Of a file; of a recording's folder, that of its parts in turn."""
    parts = sorted(path.glob(PARTS)) if path.is_dir() else []
    return b"\n".join(map(read_packed, parts)) if parts else read_packed(path)


def open_source(path: Path, how: Reading | None = None) -> SourceFile:
    """Open a trace file and look at its head.

    Raises:
        TraceError: as :func:`read_bytes`, or the first row is broken JSON.
    """
    how = how or Reading()
    data = _content(path)
    if data.startswith(PARQUET_MAGIC):
        return _open_parquet(path, data, how)
    file = SourceFile(path=path, data=as_text(path, data), how=how)
    if not file.is_json:
        first = next(line for line in file.data.splitlines() if line.strip()).decode("utf-8")
        delimiter = max(DELIMITERS, key=first.count)
        return replace(file, header=tuple(_cells(file, first, delimiter)), delimiter=delimiter)
    if file.data.lstrip().startswith(b"{"):
        rows = _objects_over_lines(file)
        if rows:
            return replace(file, keys=frozenset(rows[0][1]), rows=rows, single=len(rows) == 1)
    return replace(file, keys=frozenset(_first_object(file)))


def _cells(file: SourceFile, line: str, delimiter: str) -> list[str]:
    try:
        return [cell.strip().strip('"') for cell in next(csv.reader([line], delimiter=delimiter))]
    except csv.Error as error:
        raise file.error(1, f"broken CSV header ({error})") from error


def _objects_over_lines(file: SourceFile) -> tuple[tuple[int, dict[str, Any]], ...]:
    """The objects, with the lines they begin in, of a file that is one object, or objects over several lines each.

    Nothing for JSON lines, broken or not: the first line is whole, or the second begins an object of its own.

    Raises:
        TraceError: broken JSON.
    """
    first, _, rest = file.data.strip().partition(b"\n")
    if rest.lstrip().startswith(b"{") or (rest.strip() and _is_json(first)):
        return ()
    text = file.data.decode("utf-8")
    rows: list[tuple[int, dict[str, Any]]] = []
    end = 0
    while end < len(text):
        begin = end + len(text[end:]) - len(text[end:].lstrip())
        if begin == len(text):
            break
        line = text.count("\n", 0, begin) + 1
        try:
            value, end = json.JSONDecoder().raw_decode(text, begin)
        except (ValueError, RecursionError) as error:
            line = error.lineno if isinstance(error, json.JSONDecodeError) else line
            raise file.error(line, _broken(error)) from error
        rows.append((line, _checked_object(file, line, value)))
    return tuple(rows)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _open_parquet(path: Path, data: bytes, how: Reading) -> SourceFile:
    import pyarrow as pa

    try:
        table = read_parquet(path, data)
        # Times become text, so that times of CSV, JSON and parquet are read in one way.
        for i, kind in enumerate(table.schema.types):
            if pa.types.is_temporal(kind):
                table = table.set_column(i, table.schema.names[i], table.column(i).cast(pa.string()))
    except (UnreadableError, pa.ArrowException) as error:
        why = f" ({error.why})" if isinstance(error, UnreadableError) and error.__cause__ is None else ""
        raise TraceError(f"{path}: damaged parquet file; its columns cannot be read{why}") from error
    if not len(table):
        raise TraceError(f"{path}: a parquet file without rows; a trace has at least one request")
    names = tuple(table.schema.names)
    return SourceFile(path=path, header=names, keys=frozenset(names), how=how, table=table)


def json_rows(file: SourceFile, bad: list[RowError] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file with their line number (JSON lines) or item number from 1 (JSON array, parquet).

    Args:
        file: what is read.
        bad: takes the errors of broken rows, which are then left out; None: the first is raised.

    Raises:
        TraceError: broken JSON, or a row that is no object; the row is named.
    """
    for number, row in _items(file, bad):
        file.seen.update([key for key, value in row.items() if value or value == 0])
        yield number, row


def first_row(file: SourceFile) -> dict[str, Any]:
    """The first object, for a look at more than its keys; nothing counts as read.

    Raises:
        TraceError: as :func:`json_rows`.
    """
    if file.rows:
        return file.rows[0][1]
    if file.table is not None:
        return _checked_object(file, 1, file.table.slice(0, 1).to_pylist()[0])
    return _first_object(file)


def _items(file: SourceFile, bad: list[RowError] | None) -> Iterator[tuple[int, dict[str, Any]]]:
    if file.rows is not None:
        yield from file.rows
    elif file.table is not None:
        numbers = file.numbers or range(1, len(file.table) + 1)
        yield from zip(numbers, file.table.to_pylist(), strict=True)
    else:
        for number, value in _values(file):
            try:
                value = _parse(file, number, value.decode("utf-8")) if isinstance(value, bytes) else value
                yield number, _checked_object(file, number, value)
            except RowError as error:
                if bad is None:
                    raise
                bad.append(error)


def _values(file: SourceFile) -> Iterator[tuple[int, Any]]:
    """Items of a JSON array, or lines still to be parsed."""
    if file.data.lstrip()[:1] == b"[":
        yield from enumerate(_parse(file, None, file.data.decode("utf-8")), start=1)
    else:
        yield from ((n, line) for n, line in enumerate(file.data.split(b"\n"), start=1) if line.strip())


def _first_object(file: SourceFile) -> dict[str, Any]:
    text = file.data.decode("utf-8").strip()
    if not text.startswith("["):
        number, line = next(_values(file))
        return _checked_object(file, number, _parse(file, number, line.decode("utf-8")))
    inner = text[1:].lstrip()
    if inner in ("", "]"):
        raise file.error(None, "an empty JSON list; a trace has at least one request")
    try:
        first, _ = json.JSONDecoder().raw_decode(inner)
    except (ValueError, RecursionError) as error:
        raise file.error(1, _broken(error)) from error
    return _checked_object(file, 1, first)


def _parse(file: SourceFile, row: int | None, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise file.error(row, _broken(error)) from error


def _broken(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        where = f"character {error.colno}" if error.lineno == 1 else f"line {error.lineno}, character {error.colno}"
        return f"broken JSON at {where} ({error.msg})"
    if isinstance(error, RecursionError):
        return "broken JSON (nested too deeply)"
    return "broken JSON (a number of more than 4,300 digits)"


def _checked_object(file: SourceFile, row: int, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        found = TYPE_NAMES.get(type(value).__name__, "null")
        raise file.error(row, f"a JSON object is expected, found {found}")
    return value
