"""``skip_bad_rows``: the rows of a file that a reader takes; the others are counted and the first one is named.

Readers check whole columns and name the first bad row. Halves of the file are read until each bad row is found: with b
bad rows of n that is about n log b rows read, and no reader knows of it. Each part is read behind the first row that
fits alone, since readers take the kind of a column from the first row.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from moeprof.core.errors import TraceError
from moeprof.core.trace import Note, Trace
from moeprof.sources.formats.columns import numbered
from moeprof.sources.formats.file import RowError, SourceFile, json_rows

if TYPE_CHECKING:
    from moeprof.sources.formats.parquet import Columns

FEW_ROWS = 16
MAX_TRIES = 100


def read_good_rows(read: Callable[[SourceFile], Trace], file: SourceFile) -> Trace:
    """Read a file without the rows that do not fit.

    Raises:
        TraceError: the file as a whole cannot be read, or no row fits.
    """
    try:
        return read(file)
    except RowError as error:
        refused = error  # the careful way finds it again, and all others
    loaded, bad = _loaded(file.part())
    rows = list(range(_num_rows(loaded)))
    first = next((i for i in rows[:MAX_TRIES] if _fits_alone(read, loaded, i)), None)
    if first is None:
        tried = min(len(rows), MAX_TRIES) + len(bad)
        raise file.error(None, f"none of its first {tried} rows fits; row {refused.row}: {refused.reason}")
    others = rows[:first] + rows[first + 1 :]
    good = sorted([first, *_sifted(read, loaded, [first], others, bad)])
    while True:
        try:
            return read(_selected(loaded, good)).with_notes(_skipped(bad))
        except RowError as error:  # it fits, but not beside its neighbours
            others = [i for i in good if _number(loaded, i) != error.row]
            if not others or len(others) == len(good):
                raise
            bad.append(error)
            good = others


def _skipped(bad: list[RowError]) -> Note:
    first = min(bad, key=lambda error: error.row)
    text = f"rows that do not fit were skipped; the first is row {first.row}: {first.reason}"
    return Note(code="skipped_bad_rows", count=len(bad), text=text)


def _sifted(
    read: Callable[[SourceFile], Trace], file: SourceFile, first: list[int], rows: list[int], bad: list[RowError]
) -> list[int]:
    """The positions of the rows that fit behind the first; errors of the others go to ``bad``."""
    while rows:
        error = _row_error(read, file, first + rows)
        if error is None:
            return rows
        wrong = [i for i in rows if _number(file, i) == error.row]
        if not wrong:
            raise error  # the first row: none fits alone
        if len(rows) > FEW_ROWS:
            middle = len(rows) // 2
            halves = rows[:middle], rows[middle:]
            return [i for half in halves for i in _sifted(read, file, first, half, bad)]
        bad.append(error)
        rows = [i for i in rows if i not in wrong]
    return []


def _fits_alone(read: Callable[[SourceFile], Trace], file: SourceFile, row: int) -> bool:
    try:
        read(_selected(file, [row]))
    except TraceError:
        return False
    return True


def _row_error(read: Callable[[SourceFile], Trace], file: SourceFile, rows: list[int]) -> RowError | None:
    """What is wrong with one of these rows; errors that name no row are for the whole file to raise."""
    try:
        read(_selected(file, rows))
    except RowError as error:
        return error
    except TraceError:
        return None
    return None


def _num_rows(file: SourceFile) -> int:
    return len(file.rows) if file.rows is not None else len(_table(file))


def _table(file: SourceFile) -> Columns:
    assert file.table is not None
    return file.table


def _number(file: SourceFile, row: int) -> int:
    if file.rows is not None:
        return file.rows[row][0]
    assert file.numbers is not None
    return file.numbers[row]


def _selected(file: SourceFile, rows: Sequence[int]) -> SourceFile:
    if file.rows is not None:
        return file.part(rows=tuple(file.rows[i] for i in rows))
    assert file.numbers is not None
    return file.part(table=_table(file).take(rows), numbers=tuple(file.numbers[i] for i in rows))


def _loaded(file: SourceFile) -> tuple[SourceFile, list[RowError]]:
    """The file with its rows in memory, and the rows that cannot even be taken apart."""
    bad: list[RowError] = []
    if file.table is not None:
        return file.part(numbers=tuple(range(1, len(file.table) + 1))), bad
    if not file.is_json:
        return _loaded_csv(file)
    return file.part(rows=tuple(json_rows(file, bad))), bad


def _loaded_csv(file: SourceFile) -> tuple[SourceFile, list[RowError]]:
    import pyarrow as pa

    from moeprof.sources.formats.parquet import Columns

    bad: list[RowError] = []
    rows: list[list[str]] = []
    numbers: list[int] = []
    cells = csv.reader(io.StringIO(file.data.decode("utf-8"), newline=""), delimiter=file.delimiter)
    lines = numbered(cells)
    next(lines)
    for number, row in lines:
        if len(row) == len(file.header):
            rows.append(row)
            numbers.append(number)
        else:
            reason = f"{len(row)} cells in this row, {len(file.header)} are expected"
            bad.append(RowError(file.path, number, reason))
    columns = [pa.array([row[i] for row in rows], type=pa.string()) for i in range(len(file.header))]
    table = Columns(pa.table(columns, names=list(file.header)))
    return file.part(table=table, numbers=tuple(numbers)), bad
