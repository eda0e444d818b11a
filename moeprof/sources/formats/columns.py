"""Text columns of JSON traces: prompts, chat messages, answers, checked row by row.

CSV files as text columns, with the line of every row. pyarrow parses; only errors are looked for slowly.

From text and JSON values to checked columns: times in any unit as seconds, whole non-negative token counts.

Every check works on the whole column at once; only when it fails is the first offending row looked for, so that a
million good rows cost nothing and a bad one is named.

The last step of every reader: drop what cannot be replayed, sort, count, and say so in Notes.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moeprof.core.errors import TraceError
from moeprof.core.trace import NO_SESSION, FloatArray, IntArray, Note, Trace
from moeprof.core.workload.traffic import TimestampUnit as Unit
from moeprof.sources.formats.file import BROKEN_CSV, SourceFile
from moeprof.sources.formats.units import PER_SECOND, inferred_unit

if TYPE_CHECKING:
    import pyarrow as pa

    from moeprof.sources.formats.parquet import Columns

MAX_TOKENS = 2**31 - 1
MAX_SECONDS = 1e12  # about 30,000 years: beyond it a double no longer resolves a tenth of a millisecond
SHOWN_CHARS = 40
ZONE_PATTERN = r"(Z|[+-]\d\d:?\d\d)$"
MESSAGE_KEYS = frozenset({"role", "content"})
NAMED_UNUSED = 20
# What the names of keys that matter to a replay are made of; these stand first in the note about unused ones.
TELLING = re.compile(
    r"time|date|start|end|arriv|delay|token|len|input|output|prompt|complet|text|messag|content|session|conv|chat|"
    r"thread|user|turn|parent|hash|prefix|block|cache|image|audio|video|tool|function|error|status|fail|code",
    re.IGNORECASE,
)

RowOf = Callable[[int], int]
ANY_ROW: RowOf = int  # where only the file as a whole can still be refused


def checked_seconds(file: SourceFile, name: str, values: FloatArray, row_of: RowOf) -> FloatArray:
    """Times that are finite and of a size that a clock has.

    Raises:
        TraceError: the first row that is not.
    """
    with np.errstate(invalid="ignore"):
        bad = ~(np.abs(values) <= MAX_SECONDS)
    if bad.any():
        i = int(np.argmax(bad))
        raise file.error(row_of(i), f"{name} is {values[i]:g}; a finite time in seconds is expected")
    return values


def checked_tokens(file: SourceFile, name: str, values: FloatArray, row_of: RowOf) -> IntArray:
    """Token counts: finite, whole, 0 or more.

    Raises:
        TraceError: the first row that is not.
    """
    with np.errstate(invalid="ignore"):
        bad = ~((values >= 0) & (values <= MAX_TOKENS) & (np.floor(values) == values))
    if bad.any():
        i = int(np.argmax(bad))
        raise file.error(row_of(i), f"{name} is {values[i]:.15g}; a whole number from 0 to {MAX_TOKENS} is expected")
    return values.astype(np.int64)


def text_to_floats(file: SourceFile, name: str, column: pa.ChunkedArray, row_of: RowOf) -> FloatArray:
    """A CSV column as float64 (NaN and infinities pass here; the checks above catch them).

    Where cells stand between semicolons, a comma is the decimal sign, as spreadsheets of many countries write it.

    Raises:
        TraceError: the first cell that is no number.
    """
    import pyarrow as pa

    if pa.types.is_floating(column.type):
        return as_numpy(column)
    import pyarrow.compute as pc

    trimmed = pc.utf8_trim_whitespace(column.cast(pa.string()))
    if file.delimiter == ";":
        trimmed = pc.replace_substring_regex(trimmed, r"^([+-]?\d+),(\d+)$", r"\1.\2")

    def cast(part: pa.ChunkedArray) -> pa.ChunkedArray:
        return part.cast(pa.float64())

    try:
        return as_numpy(cast(trimmed))
    except pa.ArrowInvalid as error:
        i = first_failure(trimmed, cast)
        found = shown(trimmed[i].as_py())
        raise file.error(row_of(i), f"{name} is {found}; a number is expected") from error


def first_failure(column: pa.ChunkedArray, cast: Callable[[pa.ChunkedArray], Any]) -> int:
    """Index of the first cell whose cast fails, by halving."""
    import pyarrow as pa

    low, high = 0, len(column)  # invariant: everything before low casts, something before high does not
    while high - low > 1:
        middle = (low + high) // 2
        try:
            cast(column.slice(low, middle - low))
            low = middle
        except pa.ArrowInvalid:
            high = middle
    return low


def values_to_floats(file: SourceFile, name: str, values: Sequence[Any], row_of: RowOf) -> FloatArray:
    """A column of JSON values as float64; text and booleans are no numbers.

    Raises:
        TraceError: the first value that is no number, or is missing.
    """
    if not set(map(type, values)) <= {int, float}:
        i = next(i for i, value in enumerate(values) if type(value) not in (int, float))
        if values[i] is None:
            raise file.error(row_of(i), f"{name} is missing")
        raise file.error(row_of(i), f"{name} is {shown(values[i])}; a number is expected")
    try:
        return np.array(values, dtype=np.float64)
    except OverflowError as error:
        i = next(i for i, value in enumerate(values) if isinstance(value, int) and value.bit_length() > 1000)
        raise file.error(row_of(i), f"{name} is a number of more than 300 digits") from error


def times(file: SourceFile, name: str, values: Any, row_of: RowOf, *, unit: Unit | None) -> FloatArray:
    """A column of times as seconds, from any origin.

    Args:
        file: for messages, the user's word, and notes.
        name: of the column.
        values: JSON values, or a CSV column.
        row_of: row number of a position.
        unit: the format's own; None: the format has none, so the file must prove one.

    Raises:
        TraceError: the first row that is no time, or stamps whose unit is anyone's guess.
    """
    said = file.how.timestamp_unit
    if isinstance(values, np.ndarray):
        return seconds_of(file, name, values, row_of, unit=unit)
    if _is_moment(values):
        file.found["timestamp_unit"] = "iso"
        return _since_first(as_numpy(values.cast("timestamp[ns]").cast("int64")))
    column = _text_column(file, name, values, row_of, needed=said == "iso")
    if column is not None and (said == "iso" or (said is None and not _is_number(column[0].as_py()))):
        file.found["timestamp_unit"] = "iso"
        return iso_seconds(file, name, column, row_of)
    stamps = (
        values_to_floats(file, name, values, row_of) if column is None else text_to_floats(file, name, column, row_of)
    )
    return seconds_of(file, name, stamps, row_of, unit=unit)


def seconds_of(file: SourceFile, name: str, stamps: FloatArray, row_of: RowOf, *, unit: Unit | None) -> FloatArray:
    """Numbers in the user's unit, else in the one that the file proves, else in the format's, as seconds.

    Raises:
        TraceError: the first one that is no time, or stamps whose unit is anyone's guess.
    """
    said = file.how.timestamp_unit
    if not np.isfinite(stamps).all():
        i = int(np.argmin(np.isfinite(stamps)))
        raise file.error(row_of(i), f"{name} is {stamps[i]:g}; a finite time is expected")
    found = said or inferred_unit(file, name, stamps, None if unit == "iso" else unit)
    file.found["timestamp_unit"] = found
    checked_seconds(file, name, stamps / PER_SECOND[found], row_of)
    seconds: FloatArray = (stamps - stamps.min()) / PER_SECOND[found]  # in this order: clocks since 1970 are large
    return seconds


def _is_moment(values: Any) -> bool:
    import pyarrow as pa

    return isinstance(values, pa.ChunkedArray) and pa.types.is_timestamp(values.type)


def _since_first(nanoseconds: IntArray) -> FloatArray:
    seconds: FloatArray = (nanoseconds - nanoseconds.min()) / 1e9
    return seconds


def _text_column(file: SourceFile, name: str, values: Any, row_of: RowOf, *, needed: bool) -> pa.ChunkedArray | None:
    """The column as text, when it is one or its first value is text."""
    import pyarrow as pa

    if isinstance(values, pa.ChunkedArray):
        return values
    if not needed and not isinstance(values[0], str):
        return None
    for i, value in enumerate(values):
        if not isinstance(value, str):
            if value is None:
                raise file.error(row_of(i), f"{name} is missing")
            raise file.error(row_of(i), f"{name} is {shown(value)}; a time like 2024-05-10T00:00:00.5Z is expected")
        checked_text(file, row_of(i), name, value)
    return pa.chunked_array([pa.array(values, type=pa.string())])


def _is_number(found: float | str | None) -> bool:
    try:
        float(str(found).replace(",", "."))
    except ValueError:
        return False
    return True


def iso_seconds(file: SourceFile, name: str, column: pa.ChunkedArray, row_of: RowOf) -> FloatArray:
    """ISO 8601 time stamps as seconds from the earliest; all with a zone, or all without.

    Arrow reads up to nine digits exactly, as integer nanoseconds, so differences are exact before they become seconds.

    Raises:
        TraceError: the first row that is no time stamp, or has a zone where others have none.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    text = pc.utf8_trim_whitespace(column)
    has_zone = bool(pc.match_substring_regex(text.slice(0, 1), ZONE_PATTERN)[0].as_py())
    kind = pa.timestamp("ns", "UTC") if has_zone else pa.timestamp("ns")

    def cast(part: pa.ChunkedArray) -> pa.ChunkedArray:
        return part.cast(kind)

    try:
        nanoseconds = as_numpy(cast(text).cast(pa.int64()))
    except pa.ArrowInvalid as error:
        row = first_failure(text, cast)
        expected = "2024-05-10 00:00:00.009930+00:00" if has_zone else "2023-11-16 18:17:03.9799600"
        found = shown(text[row].as_py())
        raise file.error(
            row_of(row), f"{name} is {found}; a time like {expected} is expected (as in the first row)"
        ) from error
    return _since_first(nanoseconds)


def shown(value: object) -> str:
    """A found value as it stands in a message: quoted, cut, control characters escaped."""
    if isinstance(value, str) and not value:
        return "empty"
    text = ascii(value) if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "..."


def lines_of(numbers: Sequence[int]) -> RowOf:
    """Row lookup from a list of line numbers."""
    return lambda i: int(numbers[i])


def round_half_up(values: npt.NDArray[Any]) -> IntArray:
    """``max(1, floor(x + 0.5))``: the rounding of scaled and drawn lengths. NumPy's own rounds half to even."""
    rounded: IntArray = np.maximum(1, np.floor(values + 0.5)).astype(np.int64)
    return rounded


def checked_text(file: SourceFile, row: int, key: str, value: Any) -> str:
    """A string that can be written as UTF-8.

    Raises:
        TraceError: it is missing, no string, or holds half a surrogate pair (which no tokenizer takes).
    """
    if value is None:
        raise file.error(row, f"{key} is missing")
    if not isinstance(value, str):
        raise file.error(row, f"{key} is {shown(value)}; text is expected")
    if any("\ud800" <= char <= "\udfff" for char in value) if not value.isascii() else False:
        raise file.error(row, f"{key} holds half a surrogate pair, which is no text")
    return value


def checked_messages(file: SourceFile, row: int, value: Any) -> tuple[tuple[str, str], ...]:
    """Chat messages in the OpenAI form, ``[{"role", "content"}]``, as (role, content) pairs.

    Raises:
        TraceError: no list of such objects, or an empty one.
    """
    if not isinstance(value, list) or not value or not all(isinstance(message, dict) for message in value):
        raise file.error(row, f'messages is {shown(value)}; a list of {{"role", "content"}} objects is expected')
    for message in value:
        if len(message) > len(MESSAGE_KEYS & message.keys()):
            file.seen.update(f"messages.{key}" for key in message.keys() - MESSAGE_KEYS if message[key])
    return tuple(
        (
            checked_text(file, row, "messages.role", message.get("role")),
            checked_text(file, row, "messages.content", message.get("content")),
        )
        for message in value
    )


def plain_text(messages: tuple[tuple[str, str], ...]) -> str:
    """Messages without any template."""
    return "\n\n".join(content for _, content in messages)


BLOCK_BYTES = 2**22  # no cell may be longer
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")
MOMENT = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d")
BLANK_LINE = re.compile(rb"^[ \t]+\r?$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The columns of a CSV or parquet file that a reader asked for: numbers and times where all cells are, else text.

    A column is given away when it is read: of ten million rows each is 80 MB.
    """

    file: SourceFile
    names: tuple[str, ...]
    columns: dict[str, pa.ChunkedArray]

    def has(self, name: str) -> bool:
        """True when the file has this (optional) column."""
        return name in self.names

    def line_of(self, row: int) -> int:
        """Line in the file (from 1) of a data row (from 0); blank lines are skipped by the parser, not by people."""
        if self.file.table is not None:
            return row + 1 if self.file.numbers is None else self.file.numbers[row]
        if self.file.stored.has_quotes:  # a quoted cell may hold line ends
            cells = csv.reader(io.StringIO(self.file.data.decode("utf-8"), newline=""), delimiter=self.file.delimiter)
            lines = [start for start, _ in numbered(cells)]
            return lines[row + 1] if row + 1 < len(lines) else lines[-1]
        seen = -2  # the header is row -1
        for number, line in enumerate(self.file.data.splitlines(), start=1):
            if line.strip():
                seen += 1
                if seen == row:
                    return number
        raise AssertionError(f"row {row} of {self.file.path} has no line")

    def seconds(self, name: str, unit: Unit = "s") -> FloatArray:
        """A column of times that the format has in ``unit``; see units.py.

        Raises:
            TraceError: the first bad row, or a unit that is not to be told.
        """
        said = self.file.how.timestamp_unit
        column = self.taken(name)
        if said is not None and (said == "iso") != _is_moment(column):
            column = self._as_text(name)
        seconds = times(self.file, name, column, self.line_of, unit=unit)
        del column
        release()
        return seconds

    def tokens(self, name: str) -> IntArray:
        """A column of token counts.

        Raises:
            TraceError: the first bad row.
        """
        values = text_to_floats(self.file, name, self.taken(name), self.line_of)
        release()
        return checked_tokens(self.file, name, values, self.line_of)

    def texts(self, name: str) -> tuple[str, ...]:
        """A column as it stands. Equal cells are one object, which matters where there are millions."""
        import pyarrow as pa

        column = self.taken(name)
        column = column if pa.types.is_string(column.type) else self._as_text(name)
        known: dict[str, str] = {}
        texts: list[str] = []
        for chunk in column.chunks:
            part = chunk.dictionary_encode()
            names = np.array([known.setdefault(text, text) for text in part.dictionary.to_pylist()], dtype=object)
            texts += names[as_numpy(part.indices)].tolist()
        return tuple(texts)

    def taken(self, name: str) -> pa.ChunkedArray:
        """A column as it was read, or as text if it was given away before."""
        column = self.columns.pop(name, None)
        return self._as_text(name) if column is None else column

    def _as_text(self, name: str) -> pa.ChunkedArray:
        return _text_columns(self.file, [name])[name]


def as_numpy(column: Any) -> npt.NDArray[Any]:
    """Numbers of an Arrow column; pyarrow's own way imports pandas, which takes longer than the numbers."""
    chunks = getattr(column, "chunks", [column])
    if column.null_count:
        return np.asarray(column)
    parts = [np.from_dlpack(chunk) for chunk in chunks if len(chunk)]
    return np.concatenate(parts) if parts else np.zeros(0)


def release() -> None:
    """Give memory that Arrow has freed back to the machine; Arrow keeps it otherwise."""
    import pyarrow as pa

    pa.default_memory_pool().release_unused()


def numbered(cells: Any) -> Iterator[tuple[int, list[str]]]:
    """The rows of a ``csv.reader`` with the line each starts in; lines of spaces alone are no rows."""
    start = 1
    for row in cells:
        if any(cell.strip() for cell in row) or len(row) > 1:
            yield start, row
        start = cells.line_num + 1


def read_table(file: SourceFile, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> Table:
    """Read the named columns of a CSV or parquet file.

    Raises:
        TraceError: a column is missing, a row has too few or too many cells, or there is no row.
    """
    if file.is_json:
        raise file.error(None, f"this is JSON; a CSV file with the columns {', '.join(required)} is expected")
    _check_header(file, required)
    wanted = [*required, *(name for name in optional if name in file.header)]
    file.use(*wanted)
    columns = typed_columns(file, wanted) or _text_columns(file, wanted)
    if not len(columns[wanted[0]]):
        raise file.error(None, "no rows after the header; a trace has at least one request")
    return Table(file=file, names=tuple(columns), columns=columns)


def _text_columns(file: SourceFile, wanted: list[str]) -> dict[str, pa.ChunkedArray]:
    return _csv_columns(file, wanted) if file.table is None else _table_columns(file, file.table, wanted)


def _table_columns(file: SourceFile, table: Columns, wanted: list[str]) -> dict[str, pa.ChunkedArray]:
    """Columns of a table as text, as if they had stood in a CSV file."""
    import pyarrow as pa
    import pyarrow.compute as pc

    columns: dict[str, pa.ChunkedArray] = {}
    for name, column in zip(wanted, table.select(wanted).columns, strict=True):
        try:
            columns[name] = pc.fill_null(column.cast(pa.string()), "")
        except pa.ArrowException as error:
            kind = (
                "lists" if pa.types.is_list(column.type) else "objects" if pa.types.is_struct(column.type) else "bytes"
            )
            raise file.error(None, f"column {name} holds {kind}; numbers or text are expected") from error
    return columns


def typed_columns(file: SourceFile, wanted: Sequence[str]) -> dict[str, pa.ChunkedArray] | None:
    """The columns as numbers and times where their first row looks so; None where a later one does not.

    Then they are read as text, which is slower and names the row. Nothing but these columns is ever in memory.
    """
    import pyarrow as pa

    try:
        if file.table is not None:
            return {name: _typed(file.table.typed(name)) for name in wanted}
        return _typed_csv(file, wanted)
    except pa.ArrowException:
        return None


def _typed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of parquet as float64, times or text.

    Raises:
        pyarrow.ArrowException: it has holes, or is of another kind.
    """
    import pyarrow as pa

    if column.null_count:
        raise pa.ArrowInvalid("holes")
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return column.cast(pa.float64(), safe=False)
    if pa.types.is_timestamp(column.type):
        return column.cast(pa.timestamp("ns", column.type.tz))
    return column.cast(pa.string())


def _typed_csv(file: SourceFile, wanted: Sequence[str]) -> dict[str, pa.ChunkedArray] | None:
    import pyarrow.csv as pa_csv

    lines = file.stored.head.splitlines()
    if len(lines) < 2 or not lines[0].strip() or not lines[1].strip():
        return None
    cells = next(csv.reader([lines[1].decode("utf-8", "replace")], delimiter=file.delimiter), [])
    if len(cells) != len(file.header):
        return None
    first = dict(zip(file.header, cells, strict=True))
    kinds = {name: _kind(first[name]) for name in wanted}
    table = pa_csv.read_csv(
        file.stored.for_arrow(),
        read_options=pa_csv.ReadOptions(column_names=list(file.header), skip_rows=1, block_size=BLOCK_BYTES),
        parse_options=pa_csv.ParseOptions(delimiter=file.delimiter, newlines_in_values=file.stored.has_quotes),
        convert_options=pa_csv.ConvertOptions(
            column_types=kinds, include_columns=list(wanted), strings_can_be_null=False, null_values=[]
        ),
    )
    if not len(table):
        return None
    return {name: table[name] for name in wanted}


def _kind(cell: str) -> pa.DataType:
    """The type of a column whose first cell this is."""
    import pyarrow as pa

    text = cell.strip()
    if NUMBER.match(text):
        return pa.float64()
    if MOMENT.match(text):
        return pa.timestamp("ns", "UTC" if re.search(ZONE_PATTERN, text) else None)
    return pa.string()


def _csv_columns(file: SourceFile, wanted: list[str]) -> dict[str, pa.ChunkedArray]:
    import pyarrow as pa
    import pyarrow.csv as pa_csv

    data = _without_blank_lines(file.data)
    if len(data.splitlines()) < 2:
        return {name: pa.chunked_array([], type=pa.string()) for name in wanted}
    try:
        table = pa_csv.read_csv(
            io.BytesIO(data),
            read_options=pa_csv.ReadOptions(column_names=list(file.header), skip_rows=1, block_size=BLOCK_BYTES),
            parse_options=pa_csv.ParseOptions(delimiter=file.delimiter, newlines_in_values=file.stored.has_quotes),
            convert_options=pa_csv.ConvertOptions(
                column_types={name: pa.string() for name in wanted}, include_columns=wanted, strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        raise _shape_error(file) from error
    return {name: table[name] for name in wanted}


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
            raise file.error(None, f"no column {name!r}{hint}; found {', '.join(file.header)[:160]}")
        if file.header.count(name) > 1:
            raise file.error(None, f"column {name!r} stands there twice")


def _shape_error(file: SourceFile) -> TraceError:
    """The first row whose number of cells differs from the header's."""
    expected = len(file.header)
    try:
        for number, line in enumerate(file.data.splitlines(), start=1):
            cells = next(csv.reader([line.decode("utf-8")], delimiter=file.delimiter)) if line.strip() else []
            if cells and len(cells) != expected:
                return file.error(number, f"{len(cells)} cells in this row, {expected} are expected")
    except csv.Error:
        pass
    return file.error(None, BROKEN_CSV)


MIN_REQUESTS_PER_STAMP = 1.5  # a grid is only worth a warning when requests share its stamps
FINEST_GRID_S = 1e-9
GRID_TOLERANCE = 0.01  # Mooncake's stamps stand up to 3 ms beside its 3 s grid
GRID_SHARE = 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Time stamps that were rounded when recorded.

    Attributes:
        step_s: distance of the grid lines.
        num_stamps: distinct stamps.
    """

    step_s: float
    num_stamps: int


def detect_grid(arrival_s: FloatArray) -> Grid | None:
    """The grid that sorted time stamps stand on, or None.

    A grid needs shared stamps (1.5 requests per stamp) and 99 % of the stamps within 1 % of a multiple of the step. No
    clock that records requests is finer than a nanosecond, so closer stamps are no grid.
    """
    stamps = np.unique(arrival_s)
    if len(stamps) < 3 or len(arrival_s) < MIN_REQUESTS_PER_STAMP * len(stamps):
        return None
    gaps = np.diff(stamps)
    if gaps.min() < FINEST_GRID_S:
        return None
    step_s = float(np.median(gaps / np.maximum(1, np.round(gaps / gaps.min()))))
    span_s = float(stamps[-1] - stamps[0])
    step_s = span_s / max(1, round(span_s / step_s))  # an error in the step would add up over a long trace
    multiples = (stamps - stamps[0]) / step_s
    near = np.abs(multiples - np.round(multiples)) <= GRID_TOLERANCE
    return Grid(step_s=step_s, num_stamps=len(stamps)) if near.mean() >= GRID_SHARE else None


def not_before_predecessor(
    arrival_s: FloatArray, session: tuple[str, ...], after: IntArray | None = None
) -> FloatArray:
    """Arrivals where no request stands before the one that it waits for: a running maximum.

    That is the one above it in the file in its session, or where the file says so row ``after``.
    """
    if after is not None:
        result = arrival_s.copy()
        for i in np.flatnonzero(after >= 0).tolist():
            result[i] = max(result[i], result[after[i]])
        return result
    codes, groups = session_codes(session)
    order = np.argsort(codes, kind="stable")
    codes, values = codes[order], arrival_s[order]
    is_later = (codes[1:] == codes[:-1]) & (groups != NO_SESSION)[codes[1:]]
    backwards = np.flatnonzero(is_later & (np.diff(values) < 0))
    if not len(backwards):
        return arrival_s
    starts = np.concatenate([np.flatnonzero(np.concatenate([[True], ~is_later])), [len(values)]])
    for group in np.unique(np.searchsorted(starts, backwards, side="right")):
        part = slice(starts[group - 1], starts[group])
        values[part] = np.maximum.accumulate(values[part])
    result = np.empty_like(values)
    result[order] = values
    return result


def session_codes(session: tuple[str, ...]) -> tuple[IntArray, npt.NDArray[Any]]:
    """A number for each request's session, and the sessions' names by that number."""
    known: dict[str, int] = {}
    codes = np.fromiter((known.setdefault(name, len(known)) for name in session), dtype=np.int64, count=len(session))
    return codes, np.array(list(known), dtype=object)


def assemble(
    source: str,
    file: SourceFile,
    *,
    arrival_s: FloatArray | None,
    input_tokens: IntArray,
    output_tokens: IntArray,
    keep: npt.NDArray[np.bool_] | None = None,
    notes: tuple[Note, ...] = (),
    **columns: Any,
) -> Trace:
    """A trace from checked columns in file order.

    Args:
        source: the format's name.
        file: for messages.
        arrival_s: times in seconds from any origin, or None when the format has none.
        input_tokens: prompt lengths, -1 where only text is known.
        output_tokens: asked output lengths, -1 where only text is known.
        keep: rows to keep; the reader has already said in a Note why others go.
        notes: the reader's own notes.
        columns: the optional columns of Trace.

    Raises:
        TraceError: nothing is left to replay.
    """
    number = len(input_tokens)
    said = list(notes)
    keep = np.ones(number, dtype=np.bool_) if keep is None else keep
    for code, column, what in (
        ("dropped_no_input", input_tokens, "with an empty prompt"),
        ("dropped_no_output", output_tokens, "that asked for no output"),
    ):
        empty = keep & (column == 0)
        if empty.any():
            said.append(Note(code=code, count=int(empty.sum()), text=f"requests {what} were dropped"))
            keep = keep & ~empty
    if not keep.any():
        raise file.error(None, f"none of its {number} rows is a request that can be replayed")
    said += [*file.notes, *_unused_words(file, arrival_s, columns), *unused_keys(file, number)]
    if arrival_s is None:
        said.append(
            Note(code="no_times", count=int(keep.sum()), text="the file has no times: all requests are due at 0")
        )
        arrival_s = np.zeros(number, dtype=np.float64)
    trace = Trace(source=source, arrival_s=arrival_s, input_tokens=input_tokens, output_tokens=output_tokens, **columns)
    if not keep.all():
        trace = trace.select(keep)
    return _in_order(trace).with_notes(*said)


def _unused_words(file: SourceFile, arrival_s: FloatArray | None, columns: dict[str, Any]) -> Iterator[Note]:
    if file.how.timestamp_unit is not None and arrival_s is None:
        yield Note(code="timestamp_unit", count=0, text="timestamp_unit was given, but no times are read here")
    if file.how.block_tokens is not None and columns.get("prefix_block_tokens") != file.how.block_tokens:
        yield Note(code="block_tokens", count=0, text="block_tokens was given, but the file has no ids to apply it to")


def unused_keys(file: SourceFile, num_rows: int) -> tuple[Note, ...]:
    """A note that names every key or column that holds something and that the reader has not used.

    A reader says what it uses by ``file.use`` (``read_table`` does so itself); one that says nothing gets no note.
    """
    if not file.used:
        return ()
    by_object = file.has_objects and bool(file.seen)
    held = file.seen if by_object else dict.fromkeys([*filter(None, file.header), *file.seen])
    unused = [name for name in held if name not in file.used]
    if not unused:
        return ()
    unused.sort(key=lambda name: TELLING.search(name) is None)  # stable: otherwise in the file's order
    more = f" and {len(unused) - NAMED_UNUSED} more" if len(unused) > NAMED_UNUSED else ""
    count = num_rows if not by_object else max(file.seen[name] for name in unused)
    named = ", ".join(unused[:NAMED_UNUSED])
    what = "columns" if file.header else "keys"
    return (Note(code="unused_keys", count=count, text=f"{what} of the file that are not used: {named}{more}"),)


def _in_order(trace: Trace) -> Trace:
    notes: list[Note] = []
    arrival_s = trace.arrival_s
    if trace.session is not None:
        ordered = not_before_predecessor(arrival_s, trace.session, trace.after)
        moved = int((ordered != arrival_s).sum())
        if moved:
            text = "requests stood before their session's previous one and were moved to its time"
            notes.append(Note(code="session_order", count=moved, text=text))
        arrival_s = ordered
    arrival_s = arrival_s - arrival_s.min()
    trace = replace(trace, arrival_s=arrival_s)
    backwards = int((np.diff(arrival_s) < 0).sum())
    if backwards:
        trace = trace.select(np.argsort(arrival_s, kind="stable"))
        notes.append(
            Note(code="sorted", count=backwards, text="times went backwards; the requests were sorted by time")
        )
    grid = detect_grid(trace.arrival_s)
    if grid is not None:
        notes.append(
            Note(
                code="grid_detected",
                count=len(trace),
                text=f"{len(trace)} requests share {grid.num_stamps} time stamps on a {grid.step_s:.4g} s grid: they "
                "arrive in bursts that were not there; `jitter` spreads them inside their cell",
            )
        )
    return trace.with_notes(*notes)
