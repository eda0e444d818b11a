"""CSV files as text columns, with the line of every row. pyarrow parses; only errors are looked for slowly."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

from moeprof.core.errors import TraceError
from moeprof.core.trace import FloatArray, IntArray
from moeprof.sources.file import SourceFile
from moeprof.sources.numbers import checked_seconds, checked_tokens, text_to_floats

if TYPE_CHECKING:
    import pyarrow as pa

BLANK_LINE = re.compile(rb"^[ \t]+\r?$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The columns of a CSV file that a reader asked for, as text."""

    file: SourceFile
    columns: dict[str, pa.ChunkedArray]

    def has(self, name: str) -> bool:
        """True when the file has this (optional) column."""
        return name in self.columns

    def line_of(self, row: int) -> int:
        """Line in the file (from 1) of a data row (from 0); blank lines are skipped by the parser, not by people."""
        seen = -2  # the header is row -1
        for number, line in enumerate(self.file.data.splitlines(), start=1):
            if line.strip():
                seen += 1
                if seen == row:
                    return number
        raise AssertionError(f"row {row} of {self.file.path} has no line")

    def seconds(self, name: str) -> FloatArray:
        """A column of times.

        Raises:
            TraceError: the first bad row.
        """
        return checked_seconds(
            self.file, name, text_to_floats(self.file, name, self.columns[name], self.line_of), self.line_of
        )

    def tokens(self, name: str) -> IntArray:
        """A column of token counts.

        Raises:
            TraceError: the first bad row.
        """
        return checked_tokens(
            self.file, name, text_to_floats(self.file, name, self.columns[name], self.line_of), self.line_of
        )

    def texts(self, name: str) -> tuple[str, ...]:
        """A column as it stands."""
        return tuple(self.columns[name].to_pylist())


def read_table(file: SourceFile, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> Table:
    """Read the named columns of a CSV file.

    Raises:
        TraceError: a column is missing, a row has too few or too many cells, or there is no row.
    """
    import pyarrow as pa
    import pyarrow.csv as pa_csv

    if file.is_json:
        raise file.error(None, f"this is JSON; a CSV file with the columns {', '.join(required)} is expected")
    _check_header(file, required)
    wanted = [*required, *(name for name in optional if name in file.header)]
    try:
        table = pa_csv.read_csv(
            io.BytesIO(_without_blank_lines(file.data)),
            read_options=pa_csv.ReadOptions(column_names=list(file.header), skip_rows=1),
            convert_options=pa_csv.ConvertOptions(
                column_types={name: pa.string() for name in wanted}, include_columns=wanted, strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        raise _shape_error(file, error) from error
    if not len(table):
        raise file.error(None, "no rows after the header; a trace has at least one request")
    return Table(file=file, columns={name: table[name] for name in wanted})


def _without_blank_lines(data: bytes) -> bytes:
    # pyarrow skips empty lines; lines of spaces alone would read as a row with one cell.
    data = data.lstrip()
    if BLANK_LINE.search(data) is None:
        return data
    return b"\n".join(line for line in data.splitlines() if line.strip())


def _check_header(file: SourceFile, required: tuple[str, ...]) -> None:
    for name in required:
        if name not in file.header:
            near = get_close_matches(name, file.header, n=1)
            hint = f" (nearest: {near[0]!r})" if near else ""
            raise file.error(1, f"no column {name!r}{hint}; found {', '.join(file.header)[:160]}")
        if file.header.count(name) > 1:
            raise file.error(1, f"column {name!r} stands there twice")


def _shape_error(file: SourceFile, error: Exception) -> TraceError:
    """The first row whose number of cells differs from the header's."""
    expected = len(file.header)
    try:
        for number, line in enumerate(file.data.splitlines(), start=1):
            cells = next(csv.reader([line.decode("utf-8")])) if line.strip() else []
            if cells and len(cells) != expected:
                return file.error(number, f"{len(cells)} cells in this row, {expected} are expected")
    except csv.Error as csv_error:
        return file.error(None, f"broken CSV ({csv_error})")
    return file.error(None, f"broken CSV ({str(error).splitlines()[0][:160]})")
