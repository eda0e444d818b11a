"""vidur's processed traces: ``arrived_at,num_prefill_tokens,num_decode_tokens``; some files have no times.

Source: https://github.com/microsoft/vidur
"""

from __future__ import annotations

from moeprof.core.trace import Trace
from moeprof.sources.formats.columns import assemble, read_table
from moeprof.sources.formats.file import SourceFile

COLUMNS = ("num_prefill_tokens", "num_decode_tokens")


def matches(file: SourceFile) -> bool:
    """True when both length columns are there."""
    return set(COLUMNS) <= set(file.header)


def read(file: SourceFile) -> Trace:
    """Read a vidur trace.

    Raises:
        TraceError: see columns.py.
    """
    table = read_table(file, COLUMNS, optional=("arrived_at",))
    file.use("num_total_tokens", "pd_ratio")  # sum and ratio of the two lengths
    return assemble(
        "vidur",
        file,
        arrival_s=table.seconds("arrived_at") if table.has("arrived_at") else None,
        input_tokens=table.tokens("num_prefill_tokens"),
        output_tokens=table.tokens("num_decode_tokens"),
    )
