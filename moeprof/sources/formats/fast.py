"""JSON lines read by pyarrow, piece by piece, where every row has plain numbers, texts and lists of whole numbers.

Half a second for 100,000 rows instead of two, and ten million rows are never in memory as text. Where anything is
unusual (a value of another kind, a hole, a number that does not fit), nothing is said here: the careful way reads the
file again and names the row.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from moeprof.core.trace import FloatArray
from moeprof.sources.formats.columns import MAX_SECONDS, MAX_TOKENS, as_numpy, release
from moeprof.sources.formats.file import SourceFile

if TYPE_CHECKING:
    import pyarrow as pa


def json_columns(
    file: SourceFile, *, numbers: Sequence[str], texts: Sequence[str] = (), lists: Sequence[str] = ()
) -> dict[str, Any] | None:
    """Columns by key, of those keys that the first row has; None where the careful way has to read.

    Args:
        file: its other keys that hold something are counted in ``seen``.
        numbers: keys whose values become float64 arrays.
        texts: keys whose values become tuples of text, whole numbers among them.
        lists: keys whose values become tuples of tuples of whole numbers.
    """
    import pyarrow as pa

    if file.rows is not None or not file.stored.head.lstrip().startswith(b"{"):
        return None
    kinds = {name: pa.float64() for name in numbers} | {name: pa.list_(pa.int64()) for name in lists}
    schema = pa.schema([(name, kind) for name, kind in kinds.items() if name in file.keys])
    wanted = [*schema.names, *(name for name in texts if name in file.keys)]
    parts: dict[str, list[Any]] = {name: [] for name in wanted}
    known: dict[str, str] = {}
    try:
        for piece in file.stored.pieces():
            if not piece.strip():
                continue
            table = _table(piece, schema)
            for name in wanted:
                parts[name].append(_values(table.column(name), known))
            for name in table.column_names:
                if name not in wanted and (held := _num_held(table.column(name))):
                    file.seen[name] += held
    except (pa.ArrowException, KeyError):
        file.seen.clear()
        return None
    release()
    return {name: _joined(parts.pop(name)) for name in wanted}


def are_tokens(column: FloatArray) -> bool:
    """True for whole numbers that a length can be."""
    return bool(((column >= 0) & (column <= MAX_TOKENS) & (column == np.floor(column))).all())


def are_times(column: FloatArray) -> bool:
    """True for numbers that a clock can show, in whatever unit."""
    return bool((np.abs(column) <= MAX_SECONDS * 1e9).all())


def _table(piece: bytes, schema: pa.Schema) -> pa.Table:
    import pyarrow as pa
    import pyarrow.json as pa_json

    return pa_json.read_json(
        pa.BufferReader(piece),
        read_options=pa_json.ReadOptions(block_size=2**22),
        parse_options=pa_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="infer"),
    )


def _values(column: pa.ChunkedArray, known: dict[str, str]) -> Any:
    """Values of a piece.

    Raises:
        pyarrow.ArrowInvalid: a hole, or values of another kind.
    """
    import pyarrow as pa

    if column.null_count:
        raise pa.ArrowInvalid("holes")
    if pa.types.is_floating(column.type):
        return as_numpy(column)
    if pa.types.is_list(column.type):
        return _tuples(column.combine_chunks())
    if pa.types.is_integer(column.type):
        column = column.cast(pa.string())
    if not pa.types.is_string(column.type):
        raise pa.ArrowInvalid("no text")
    names: list[str] = []
    for chunk in column.chunks:
        encoded = chunk.dictionary_encode()
        once = np.array([known.setdefault(text, text) for text in encoded.dictionary.to_pylist()], dtype=object)
        names += once[as_numpy(encoded.indices)].tolist()
    return names


def _tuples(array: Any) -> list[tuple[int, ...]]:
    import pyarrow as pa

    if array.values.null_count:
        raise pa.ArrowInvalid("holes")
    ids, ends = array.values.to_pylist(), array.offsets.to_pylist()
    return [tuple(ids[start:end]) for start, end in pairwise(ends)]


def _joined(parts: list[Any]) -> Any:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return tuple(value for part in parts for value in part)


def _num_held(column: pa.ChunkedArray) -> int:
    """Rows that have something under a key: neither null nor false, nor an empty text or list."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_null(kind):
        return 0
    if pa.types.is_boolean(kind):
        held = pc.sum(column)
    elif pa.types.is_string(kind):
        held = pc.sum(pc.greater(pc.binary_length(column), 0))
    elif pa.types.is_list(kind):
        held = pc.sum(pc.greater(pc.list_value_length(column), 0))
    else:
        return int(len(column) - column.null_count)
    return int(held.as_py() or 0)
