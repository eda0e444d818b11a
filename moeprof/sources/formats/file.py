"""A trace file, opened: its text, and enough of its head to tell the format. Plain or gzip, UTF-8, CSV or JSON."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeprof.core.errors import TraceError

GZIP_MAGIC = b"\x1f\x8b"
PARTS = "part-*.jsonl*"  # of what `moeprof trace record` writes into a folder
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """What a reader gets.

    Attributes:
        path: for messages.
        data: the content, unpacked, known to be UTF-8, without a byte order mark.
        header: the CSV column names, empty for JSON.
        keys: the keys of the first JSON object, empty for CSV.
    """

    path: Path
    data: bytes
    header: tuple[str, ...] = ()
    keys: frozenset[str] = frozenset()

    @property
    def is_json(self) -> bool:
        """True for JSON lines or a JSON array."""
        return self.data.lstrip()[:1] in (b"{", b"[")

    def error(self, row: int | None, text: str) -> TraceError:
        """A TraceError that names the file and the row (1-based line, or item of a JSON array)."""
        return TraceError(f"{self.path}: {text}" if row is None else f"{self.path}:{row}: {text}")


def read_bytes(path: Path) -> bytes:
    """The content of a text file, unpacked if it is gzip; of a recording's folder, that of its parts in turn.

    Raises:
        TraceError: missing, a folder of something else, unreadable, damaged gzip, not UTF-8, or empty.
    """
    parts = sorted(path.glob(PARTS)) if path.is_dir() else []
    if parts:
        return b"\n".join(read_bytes(part) for part in parts)
    try:
        data = path.read_bytes()
        if data.startswith(GZIP_MAGIC):
            data = gzip.decompress(data)
    except FileNotFoundError as error:
        raise TraceError(f"{path}: no such file") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TraceError(f"{path}: damaged gzip file ({error})") from error
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error.strerror or error})") from error
    data = data.removeprefix(BYTE_ORDER_MARK)
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise TraceError(
            f"{path}:{line}: not UTF-8 text (byte 0x{data[error.start]:02x}); save the file as UTF-8"
        ) from error
    if not data.strip():
        raise TraceError(f"{path}: empty; a trace has at least one request")
    return data


def open_source(path: Path) -> SourceFile:
    """Open a trace file and look at its head.

    Raises:
        TraceError: as :func:`read_bytes`, or the first row is broken JSON.
    """
    file = SourceFile(path=path, data=read_bytes(path))
    if not file.is_json:
        first = next(line for line in file.data.splitlines() if line.strip())
        names = tuple(name.strip().strip('"') for name in first.decode("utf-8").split(","))
        return SourceFile(path=path, data=file.data, header=names)
    _, first_object = next(json_rows(file, only_first=True))
    return SourceFile(path=path, data=file.data, keys=frozenset(first_object))


def json_rows(file: SourceFile, *, only_first: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON objects of a file with their line number (JSON lines) or item number from 1 (JSON array).

    Raises:
        TraceError: broken JSON, or a row that is no object; the row is named.
    """
    if file.data.lstrip()[:1] == b"[":
        yield from _array_items(file, only_first=only_first)
        return
    for number, line in enumerate(file.data.split(b"\n"), start=1):
        if line.strip():
            value = _parse(file, number, line.decode("utf-8"))
            yield number, _checked_object(file, number, value)


def _array_items(file: SourceFile, *, only_first: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    text = file.data.decode("utf-8").strip()
    if only_first:
        try:
            first, _ = json.JSONDecoder().raw_decode(text[1:].lstrip())
        except (ValueError, RecursionError) as error:
            raise file.error(1, f"broken JSON, or an empty array ({error})") from error
        yield 1, _checked_object(file, 1, first)
        return
    items = _parse(file, None, text)
    for number, value in enumerate(items, start=1):
        yield number, _checked_object(file, number, value)


def _parse(file: SourceFile, row: int | None, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise file.error(row, f"broken JSON ({error})") from error


def _checked_object(file: SourceFile, row: int, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise file.error(row, f"a JSON object is expected, found {type(value).__name__}")
    return value
