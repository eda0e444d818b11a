"""splitwise-sim's traces: ``arrival_timestamp,prompt_size,token_size``, beside ``application_id`` and ``batch_size``.

Times are seconds. ``prompt_size`` and ``token_size`` are tokens of one request; a row of ``batch_size`` above 1 is that
many requests sent together.
Source: https://github.com/Mutinifni/splitwise-sim (generate_trace, traces/test_trace.csv)
"""

from __future__ import annotations

import numpy as np

from moeprof.core.trace import Note, Trace
from moeprof.sources.formats.columns import assemble, read_table
from moeprof.sources.formats.file import SourceFile

COLUMNS = ("arrival_timestamp", "prompt_size", "token_size")
MAX_BATCH = 100_000


def matches(file: SourceFile) -> bool:
    """True when time and sizes stand there."""
    return set(COLUMNS) <= set(file.header)


def read(file: SourceFile) -> Trace:
    """Read a splitwise-sim trace; ``application_id`` becomes the request class where there is more than one.

    Raises:
        TraceError: see columns.py.
    """
    table = read_table(file, COLUMNS, optional=("application_id", "batch_size"))
    arrival_s, inputs, outputs = (
        table.seconds("arrival_timestamp"),
        table.tokens("prompt_size"),
        table.tokens("token_size"),
    )
    names = table.texts("application_id") if table.has("application_id") else ()
    rows = np.arange(len(inputs))
    notes: tuple[Note, ...] = ()
    if table.has("batch_size"):
        sizes = table.tokens("batch_size")
        if (sizes > MAX_BATCH).any():
            row = int(np.argmax(sizes > MAX_BATCH))
            raise file.error(table.line_of(row), f"batch_size is {sizes[row]}; at most {MAX_BATCH} is allowed")
        rows = np.repeat(rows, np.maximum(sizes, 1))
        if (sizes > 1).any():
            text = "rows stand for several requests sent together (batch_size)"
            notes = (Note(code="batches", count=int((sizes > 1).sum()), text=text),)
    return assemble(
        "splitwise",
        file,
        arrival_s=arrival_s[rows],
        input_tokens=inputs[rows],
        output_tokens=outputs[rows],
        notes=notes,
        request_class=tuple(names[i] for i in rows) if len(set(names)) > 1 else None,
    )
