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

import msgspec

from moeprof.core.errors import TraceError
from moeprof.core.trace import Note
from moeprof.core.workload.traffic import TimestampUnit
from moeprof.sources.formats.stored import Stored

if TYPE_CHECKING:
    from moeprof.sources.formats.parquet import Columns

DELIMITERS = ",;\t"
BROKEN_CSV = "broken CSV; look for quotes that do not close, or a cell of more than 4 MiB"
PARTS = "part-*.jsonl*"  # of what `moeprof trace record` writes into a folder
MAX_COLUMNS = 10_000
MAX_HEADER_CHARS = 2**20
MAX_SHOWN_PATH = 120
csv.field_size_limit(2**31 - 1)  # a prompt in a cell may be long; Python's own limit is 128 KiB
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
        stored: the bytes, unpacked, known to be UTF-8, without a byte order mark, or parquet.
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
        found: what the file proved that the user had not said: ``timestamp_unit`` and ``block_tokens``.
    """

    path: Path
    stored: Stored
    header: tuple[str, ...] = ()
    keys: frozenset[str] = frozenset()
    delimiter: str = ","
    single: bool = False
    how: Reading = Reading()
    table: Columns | None = None
    rows: Sequence[tuple[int, dict[str, Any]]] | None = None
    numbers: Sequence[int] | None = None
    seen: Counter[str] = field(default_factory=Counter)
    used: set[str] = field(default_factory=set)
    notes: list[Note] = field(default_factory=list)
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def data(self) -> bytes:
        """All of a text file; the whole of a large one is read for this."""
        return self.stored.whole()

    @property
    def is_json(self) -> bool:
        """True for JSON lines, a JSON array or one JSON object."""
        return not self.stored.is_parquet and self.stored.head.lstrip()[:1] in (b"{", b"[")

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
    stored = _stored(path)
    if stored.is_parquet:
        raise TraceError(f"{path}: this is a parquet file; text is expected here")
    return stored.whole()


def _stored(path: Path) -> Stored:
    """A file; of a recording's folder, its parts in turn."""
    try:
        parts = sorted(path.glob(PARTS)) if path.is_dir() else []
    except OSError as error:
        raise TraceError(f"{str(path)[:MAX_SHOWN_PATH]}: cannot be read ({error.strerror or error})") from error
    if not parts:
        return Stored.open(path)
    return Stored(path, b"\n".join(Stored.open(part).whole() for part in parts), is_whole=True)


def open_source(path: Path, how: Reading | None = None) -> SourceFile:
    """Open a trace file and look at its head.

    Raises:
        TraceError: as :func:`read_bytes`, or the first row is broken JSON.
    """
    how = how or Reading()
    stored = _stored(path)
    if stored.is_parquet:
        from moeprof.sources.formats.parquet import Columns

        table = Columns.open(path, stored.head if stored.is_whole else None)
        return SourceFile(
            path=path, stored=stored, header=table.names, keys=frozenset(table.names), how=how, table=table
        )
    file = SourceFile(path=path, stored=stored, how=how)
    if not file.is_json:
        first = next(line for line in stored.head.splitlines() if line.strip()).decode("utf-8")
        if len(first) > MAX_HEADER_CHARS:
            raise file.error(1, f"a first line of {len(first):,} characters; no trace begins like that")
        delimiter = max(DELIMITERS, key=first.count)
        if (number := first.count(delimiter) + 1) > MAX_COLUMNS:
            raise file.error(1, f"a line of {number:,} columns; a trace has at most {MAX_COLUMNS:,}")
        return replace(file, header=tuple(_cells(file, first, delimiter)), delimiter=delimiter)
    if stored.head.lstrip().startswith(b"{"):
        rows = _objects_over_lines(file)
        if rows:
            return replace(file, keys=frozenset(rows[0][1]), rows=rows, single=len(rows) == 1)
    return replace(file, keys=frozenset(_first_object(file)))


def _cells(file: SourceFile, line: str, delimiter: str) -> list[str]:
    try:
        return [cell.strip().strip('"') for cell in next(csv.reader([line], delimiter=delimiter))]
    except csv.Error as error:
        raise file.error(1, BROKEN_CSV) from error


def _objects_over_lines(file: SourceFile) -> tuple[tuple[int, dict[str, Any]], ...]:
    """The objects, with the lines they begin in, of a file that is one object, or objects over several lines each.

    Nothing for JSON lines, broken or not: the first line is whole, or the second begins an object of its own.

    Raises:
        TraceError: broken JSON.
    """
    first, _, rest = file.stored.head.strip().partition(b"\n")
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
        return file.table.first()
    return _first_object(file)


def _items(file: SourceFile, bad: list[RowError] | None) -> Iterator[tuple[int, dict[str, Any]]]:
    if file.rows is not None:
        yield from file.rows
    elif file.table is not None:
        numbers = file.numbers or range(1, len(file.table) + 1)
        yield from zip(numbers, file.table.rows(), strict=True)
    else:
        for number, value in _values(file):
            try:
                value = _parse(file, number, value) if isinstance(value, bytes) else value
                yield number, _checked_object(file, number, value)
            except RowError as error:
                if bad is None:
                    raise
                bad.append(error)


def _values(file: SourceFile) -> Iterator[tuple[int, Any]]:
    """Items of a JSON array, or lines still to be parsed."""
    if file.data.lstrip()[:1] == b"[":
        yield from enumerate(_parse(file, None, file.data), start=1)
    else:
        yield from ((n, line) for n, line in enumerate(file.data.split(b"\n"), start=1) if line.strip())


def _first_object(file: SourceFile) -> dict[str, Any]:
    if not file.stored.head.lstrip().startswith(b"["):
        lines = enumerate(file.stored.head.split(b"\n"), start=1)
        number, line = next((number, line) for number, line in lines if line.strip())
        return _checked_object(file, number, _parse(file, number, line))
    text = file.data.decode("utf-8").strip()
    inner = text[1:].lstrip()
    if inner in ("", "]"):
        raise file.error(None, "an empty JSON list; a trace has at least one request")
    try:
        first, _ = json.JSONDecoder().raw_decode(inner)
    except (ValueError, RecursionError) as error:
        raise file.error(1, _broken(error)) from error
    return _checked_object(file, 1, first)


def _parse(file: SourceFile, row: int | None, text: bytes) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        pass  # stricter than Python's (NaN, lone surrogates), and less clear about what is wrong
    try:
        return json.loads(text.decode("utf-8"))  # of bytes, Python would guess the encoding
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


def list_rows(file: SourceFile, key: str) -> tuple[SourceFile, tuple[Note, ...]]:
    """The objects of a list of the one JSON object that a file is, as its rows; what stands beside the list is told.

    Raises:
        TraceError: an item that is no object.
    """
    assert file.rows is not None
    whole = file.rows[0][1]
    items = whole[key]
    for i, item in enumerate(items, start=1):
        if not isinstance(item, dict):
            found = json.dumps(item)[:40]
            raise file.error(i, f"item {i} of {key} is {found}; an object is expected")
    text = f"the rows are the objects of the list {key} of one JSON object"
    notes = [Note(code="rows_of_list", count=len(items), text=text)]
    if others := [name for name, value in whole.items() if name != key and (value or value == 0)]:
        text = f"keys beside the list {key} that are not used: {', '.join(others)}"
        notes.append(Note(code="beside_the_list", count=len(items), text=text))
    rows = tuple(enumerate(items, start=1))
    return file.part(rows=rows, keys=frozenset(items[0]), single=False), tuple(notes)
