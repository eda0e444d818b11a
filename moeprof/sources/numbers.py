"""From text and JSON values to checked columns: finite seconds, whole non-negative token counts.

Every check works on the whole column at once; only when it fails is the first offending row looked for, so that a
million good rows cost nothing and a bad one is named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moeprof.core.trace import FloatArray, IntArray
from moeprof.sources.file import SourceFile

if TYPE_CHECKING:
    import pyarrow as pa

MAX_TOKENS = 2**31 - 1
MAX_SECONDS = 1e12  # about 30,000 years: beyond it a double no longer resolves a tenth of a millisecond
SHOWN_CHARS = 40

RowOf = Callable[[int], int]


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

    Raises:
        TraceError: the first cell that is no number.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    trimmed = pc.utf8_trim_whitespace(column)

    def cast(part: pa.ChunkedArray) -> pa.ChunkedArray:
        return part.cast(pa.float64())

    try:
        return np.asarray(cast(trimmed), dtype=np.float64)
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


def shown(value: object) -> str:
    """A found value as it stands in a message: quoted, cut, control characters escaped."""
    text = ascii(value)
    if value == "":
        return "empty"
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "..."


def lines_of(numbers: Sequence[int]) -> RowOf:
    """Row lookup from a list of line numbers."""
    return lambda i: int(numbers[i])


def round_half_up(values: npt.NDArray[Any]) -> IntArray:
    """``max(1, floor(x + 0.5))``: the rounding of scaled and drawn lengths. NumPy's own rounds half to even."""
    rounded: IntArray = np.maximum(1, np.floor(values + 0.5)).astype(np.int64)
    return rounded
