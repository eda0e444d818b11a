"""Azure LLM inference traces: ``TIMESTAMP,ContextTokens,GeneratedTokens``.

The 2023 files have seven fractional digits and no zone; the 2024 files may end in ``+00:00``. Arrow reads up to nine
digits exactly, as integer nanoseconds, so differences are exact before they become seconds.
Source: https://github.com/Azure/AzurePublicDataset
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moeprof.core.trace import FloatArray, Trace
from moeprof.sources.formats.columns import Table, assemble, first_failure, read_table, shown
from moeprof.sources.formats.file import SourceFile

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
ZONE_PATTERN = r"(Z|[+-]\d\d:?\d\d)$"


def matches(file: SourceFile) -> bool:
    """True when the three columns are there."""
    return set(COLUMNS) <= set(file.header)


def read(file: SourceFile) -> Trace:
    """Read an Azure trace.

    Raises:
        TraceError: see columns.py; or a time stamp that is none.
    """
    table = read_table(file, COLUMNS)
    return assemble(
        "azure",
        file,
        arrival_s=timestamps(table, "TIMESTAMP"),
        input_tokens=table.tokens("ContextTokens"),
        output_tokens=table.tokens("GeneratedTokens"),
    )


def timestamps(table: Table, name: str) -> FloatArray:
    """ISO 8601 time stamps as seconds from the earliest; all with a zone, or all without.

    Raises:
        TraceError: the first row that is no time stamp, or has a zone where others have none.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    text = pc.utf8_trim_whitespace(table.columns[name])
    has_zone = bool(pc.match_substring_regex(text.slice(0, 1), ZONE_PATTERN)[0].as_py())
    kind = pa.timestamp("ns", "UTC") if has_zone else pa.timestamp("ns")

    def cast(part: pa.ChunkedArray) -> pa.ChunkedArray:
        return part.cast(kind)

    try:
        nanoseconds = np.asarray(cast(text).cast(pa.int64()), dtype=np.int64)
    except pa.ArrowInvalid as error:
        row = first_failure(text, cast)
        expected = "2024-05-10 00:00:00.009930+00:00" if has_zone else "2023-11-16 18:17:03.9799600"
        found = shown(text[row].as_py())
        raise table.file.error(
            table.line_of(row), f"{name} is {found}; a time like {expected} is expected (as in the first row)"
        ) from error
    seconds: FloatArray = (nanoseconds - nanoseconds.min()) / 1e9
    return seconds
