"""Mooncake: JSON lines with ``timestamp`` (ms), ``input_length``, ``output_length`` and chained ``hash_ids``.

One id stands for 512 prompt tokens; the same id means the same text, and because the ids are chained it also means the
same text before it. ``len(hash_ids) = ceil(input_length / 512)``.
Source: https://github.com/kvcache-ai/Mooncake
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moeprof.core.trace import Note, Trace
from moeprof.sources.formats.columns import (
    RowOf,
    assemble,
    checked_seconds,
    checked_tokens,
    lines_of,
    shown,
    values_to_floats,
)
from moeprof.sources.formats.file import SourceFile, json_rows

BLOCK_TOKENS = 512
KEYS = frozenset({"timestamp", "input_length", "output_length"})


def matches(file: SourceFile) -> bool:
    """True when times and lengths stand there under Mooncake's names and no chat ids beside them."""
    return file.keys >= KEYS and "chat_id" not in file.keys


def read(file: SourceFile) -> Trace:
    """Read a Mooncake trace; without ``hash_ids`` the prompts share nothing.

    Raises:
        TraceError: see columns.py; or hash_ids that are no list of whole numbers.
    """
    numbers, rows = rows_of(file)
    row_of = lines_of(numbers)
    timestamp_ms = values_to_floats(file, "timestamp", [r.get("timestamp") for r in rows], row_of)
    return assemble(
        "mooncake",
        file,
        arrival_s=checked_seconds(file, "timestamp / 1000", timestamp_ms / 1000, row_of),
        **lengths_and_blocks(file, rows, row_of, BLOCK_TOKENS),
    )


def rows_of(file: SourceFile) -> tuple[list[int], list[dict[str, Any]]]:
    """Row numbers and objects of a JSON file.

    Raises:
        TraceError: it is no JSON, or a row is broken.
    """
    if not file.is_json:
        raise file.error(None, "JSON lines are expected, one object for each request")
    pairs = list(json_rows(file))
    return [number for number, _ in pairs], [row for _, row in pairs]


def lengths_and_blocks(
    file: SourceFile, rows: Sequence[dict[str, Any]], row_of: RowOf, block_tokens: int
) -> dict[str, Any]:
    """The columns that Mooncake and Bailian share, as arguments of ``assemble``.

    Raises:
        TraceError: the first bad row.
    """
    input_tokens, output_tokens = (
        checked_tokens(file, key, values_to_floats(file, key, [r.get(key) for r in rows], row_of), row_of)
        for key in ("input_length", "output_length")
    )
    columns: dict[str, Any] = {"input_tokens": input_tokens, "output_tokens": output_tokens}
    if not any("hash_ids" in row for row in rows):
        return columns
    blocks = tuple(block_ids(file, "hash_ids", row.get("hash_ids", []), row_of(i)) for i, row in enumerate(rows))
    expected = -(-input_tokens // block_tokens)
    odd = int((np.array([len(b) for b in blocks]) != expected).sum())
    if odd:
        text = f"requests whose number of hash_ids is not ceil(input_length / {block_tokens}); surplus ids are ignored"
        columns["notes"] = (Note(code="prefix_blocks_mismatch", count=odd, text=text),)
    return columns | {"prefix_blocks": blocks, "prefix_block_tokens": block_tokens}


def block_ids(file: SourceFile, key: str, value: Any, row: int) -> tuple[int, ...]:
    """Prefix block ids of one request.

    Raises:
        TraceError: no list of whole numbers that fit 64 bits.
    """
    if not isinstance(value, list) or not set(map(type, value)) <= {int}:
        raise file.error(row, f"{key} is {shown(value)}; a list of whole numbers is expected")
    if value and not -(2**63) <= min(value) <= max(value) < 2**63:
        raise file.error(row, f"{key} holds a number that does not fit 64 bits")
    return tuple(value)
