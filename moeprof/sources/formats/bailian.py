"""Bailian (Qwen) traces: Mooncake's family with chats, times in seconds and 16-token blocks.

Keys: ``chat_id, parent_chat_id, timestamp (s), input_length, output_length, type, turn, hash_ids``.
Source: https://github.com/alibaba-edu/qwen-bailian-usagetraces-anon
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moeprof.core.trace import IntArray, Trace
from moeprof.core.turns import NONE
from moeprof.sources.formats.columns import assemble, lines_of, times
from moeprof.sources.formats.file import SourceFile
from moeprof.sources.formats.mooncake import KEYS, lengths_and_blocks, rows_of

BLOCK_TOKENS = 16


def matches(file: SourceFile) -> bool:
    """True when Mooncake's keys stand beside chat ids."""
    return file.keys >= KEYS | {"chat_id"}


def read(file: SourceFile) -> Trace:
    """Read a Bailian trace; ``type`` becomes the request class, the first chat of a thread its session.

    A chat waits for its parent, and several may have the same one. Lengths are of whole prompts.

    Raises:
        TraceError: see columns.py and mooncake.py.
    """
    numbers, rows = rows_of(file)
    row_of = lines_of(numbers)
    file.use("chat_id", "parent_chat_id", "timestamp", "type", "turn")
    sessions, after = _threads(rows)
    return assemble(
        "bailian",
        file,
        arrival_s=times(file, "timestamp", [r.get("timestamp") for r in rows], row_of, unit="s"),
        session=sessions,
        after=after,
        request_class=tuple(str(row.get("type", "all")) for row in rows),
        **lengths_and_blocks(file, rows, row_of, BLOCK_TOKENS),
    )


def _threads(rows: Sequence[dict[str, Any]]) -> tuple[tuple[str, ...], IntArray]:
    """The first chat of each row's thread, and the row of its parent.

    A parent stands before its child; one from before the trace is no parent.
    """
    root: dict[str, str] = {}
    row_of: dict[str, int] = {}
    after = np.full(len(rows), NONE, dtype=np.int64)
    for i, row in enumerate(rows):
        chat, parent = str(row.get("chat_id")), str(row.get("parent_chat_id"))
        after[i] = row_of.get(parent, NONE)
        root[chat], row_of[chat] = root.get(parent, chat), i
    return tuple(root[str(row.get("chat_id"))] for row in rows), after
