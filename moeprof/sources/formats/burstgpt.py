"""BurstGPT: ``Timestamp`` in seconds, ``Request tokens``, ``Response tokens``, and optional columns, read by name.

A response of 0 tokens is a request that failed: it is counted and not replayed.
Source: https://github.com/HPMLL/BurstGPT
"""

from __future__ import annotations

from moeprof.core.trace import Note, Trace
from moeprof.sources.formats.columns import assemble, read_table
from moeprof.sources.formats.file import SourceFile

COLUMNS = ("Timestamp", "Request tokens", "Response tokens")


def matches(file: SourceFile) -> bool:
    """True when the three columns are there."""
    return set(COLUMNS) <= set(file.header)


def read(file: SourceFile) -> Trace:
    """Read a BurstGPT trace; ``Log Type`` becomes the request class, ``Session ID`` the session.

    Raises:
        TraceError: see columns.py.
    """
    table = read_table(file, COLUMNS, optional=("Session ID", "Log Type"))
    file.use("Total tokens")  # their sum
    output_tokens = table.tokens("Response tokens")
    failed = output_tokens == 0
    notes: tuple[Note, ...] = ()
    if failed.any():
        notes = (
            Note(
                code="dropped_failed",
                count=int(failed.sum()),
                text="requests with 0 response tokens had failed and are not replayed",
            ),
        )
    return assemble(
        "burstgpt",
        file,
        arrival_s=table.seconds("Timestamp"),
        input_tokens=table.tokens("Request tokens"),
        output_tokens=output_tokens,
        keep=~failed,
        notes=notes,
        session=table.texts("Session ID") if table.has("Session ID") else None,
        request_class=table.texts("Log Type") if table.has("Log Type") else None,
    )
