"""Mooncake: JSON lines with ``timestamp`` (ms), ``input_length``, ``output_length`` and chained ``hash_ids``.

One id stands for 512 prompt tokens; the same id means the same text, and because the ids are chained it also means the
same text before it. ``len(hash_ids) = ceil(input_length / 512)``. Others write the same keys with seconds or with
blocks of another size, without times, or with ``session_id`` and a ``delay`` instead of later turns' times: see
units.py, and :func:`turn_times`.
Source: https://github.com/kvcache-ai/Mooncake
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moeprof.core.trace import NO_SESSION, IntArray, Trace
from moeprof.core.turns import NONE
from moeprof.core.workload.traffic import TimestampUnit
from moeprof.sources.formats.columns import (
    ANY_ROW,
    RowOf,
    assemble,
    checked_tokens,
    lines_of,
    seconds_of,
    shown,
    times,
    values_to_floats,
)
from moeprof.sources.formats.fast import are_times, are_tokens, json_columns
from moeprof.sources.formats.file import SourceFile, json_rows
from moeprof.sources.formats.units import tokens_per_block

BLOCK_TOKENS = 512
LENGTHS = frozenset({"input_length", "output_length"})
KEYS = LENGTHS | {"timestamp"}
OTHER_KEYS = frozenset({"chat_id", "text", "prompt", "messages"})


def matches(file: SourceFile) -> bool:
    """True when lengths stand there under Mooncake's names, with times or block ids, and no chat ids or text."""
    return file.keys >= LENGTHS and bool(file.keys & {"timestamp", "hash_ids"}) and not file.keys & OTHER_KEYS


def read(file: SourceFile) -> Trace:
    """Read a Mooncake trace; without ``hash_ids`` the prompts share nothing.

    Raises:
        TraceError: see columns.py; or hash_ids that are no list of whole numbers.
    """
    fast = None if file.keys & {"session_id", "delay"} else fast_columns(file, BLOCK_TOKENS, unit="ms")
    if fast is not None:
        return assemble("mooncake", file, **fast)
    numbers, rows = rows_of(file)
    row_of = lines_of(numbers)
    return assemble(
        "mooncake",
        file,
        **turn_times(file, rows, row_of, session="session_id"),
        **sessions(file, rows, "session_id"),
        **lengths_and_blocks(file, rows, row_of, BLOCK_TOKENS),
    )


def fast_columns(file: SourceFile, block_tokens: int, *, unit: TimestampUnit) -> dict[str, Any] | None:
    """Times, lengths and ids of a file whose rows are all alike; None where the careful way has to read.

    Raises:
        TraceError: the unit or the size of a block is not to be told.
    """
    if file.how.timestamp_unit == "iso" or not file.keys >= LENGTHS:
        return None
    found = json_columns(file, numbers=(*LENGTHS, "timestamp"), lists=("hash_ids",))
    if found is None or file.seen.keys() & {"session_id", "delay", "timestamp", "hash_ids"}:
        file.seen.clear()
        return None
    if not all(are_tokens(found[name]) for name in LENGTHS) or not are_times(found.get("timestamp", np.zeros(1))):
        return None
    file.use(*LENGTHS, "timestamp", "hash_ids")
    columns: dict[str, Any] = {"arrival_s": None, "input_tokens": found["input_length"].astype(np.int64)}
    columns["output_tokens"] = found["output_length"].astype(np.int64)
    if "timestamp" in found:
        columns["arrival_s"] = seconds_of(file, "timestamp", found["timestamp"], ANY_ROW, unit=unit)
    if "hash_ids" in found:
        columns |= fitted_blocks(file, "hash_ids", found["hash_ids"], columns["input_tokens"], block_tokens)
    return columns


def sessions(file: SourceFile, rows: Sequence[dict[str, Any]], key: str) -> dict[str, Any]:
    """The session column, as an argument of ``assemble``; nothing when no row names one."""
    file.use(key)
    if not any(row.get(key) is not None for row in rows):
        return {}
    return {"session": tuple(NO_SESSION if row.get(key) is None else str(row[key]) for row in rows)}


def turn_times(file: SourceFile, rows: Sequence[dict[str, Any]], row_of: RowOf, *, session: str) -> dict[str, Any]:
    """``arrival_s`` and ``delay_s``, as arguments of ``assemble``, from ``timestamp`` and ``delay``.

    Both are milliseconds unless the file or the user says otherwise. A row without a time whose session was seen before
    stands its delay after its session's previous turn. Arrivals are None when no row has either.

    Raises:
        TraceError: the first row that has no time, or none that is one.
    """
    file.use("timestamp", "delay")
    if not any(row.get("timestamp") is not None or "delay" in row for row in rows):
        return {"arrival_s": None}
    last: dict[str, int] = {}
    stamps: list[Any] = []
    before = np.full(len(rows), NONE, dtype=np.int64)
    for i, row in enumerate(rows):
        name = str(row.get(session, i))
        stamp = row.get("timestamp")
        if stamp is None and "delay" in row:
            delay = row["delay"]
            if type(delay) not in (int, float):
                raise file.error(row_of(i), f"delay is {shown(delay)}; a number is expected")
            stamp = stamps[last[name]] + delay if name in last else delay
            before[i] = last.get(name, NONE)
        stamps.append(stamp)
        if type(stamp) in (int, float):
            last[name] = i
    arrival_s = times(file, "timestamp", stamps, row_of, unit="ms")
    if (before == NONE).all():
        return {"arrival_s": arrival_s}
    return {"arrival_s": arrival_s, "delay_s": np.where(before == NONE, np.nan, arrival_s - arrival_s[before])}


def rows_of(file: SourceFile) -> tuple[list[int], list[dict[str, Any]]]:
    """Row numbers and objects of a JSON file.

    Raises:
        TraceError: it is no JSON, or a row is broken.
    """
    if not file.has_objects:
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
    file.use(*LENGTHS, "hash_ids")
    input_tokens, output_tokens = (
        checked_tokens(file, key, values_to_floats(file, key, [r.get(key) for r in rows], row_of), row_of)
        for key in ("input_length", "output_length")
    )
    columns: dict[str, Any] = {"input_tokens": input_tokens, "output_tokens": output_tokens}
    if not any("hash_ids" in row for row in rows):
        return columns
    return columns | checked_blocks(file, "hash_ids", rows, row_of, input_tokens, block_tokens)


def checked_blocks(
    file: SourceFile,
    key: str,
    rows: Sequence[dict[str, Any]],
    row_of: RowOf,
    input_tokens: IntArray,
    block_tokens: int,
) -> dict[str, Any]:
    """Prefix blocks and their size, as arguments of ``assemble``; rows whose ids do not fit their length are counted.

    Raises:
        TraceError: the first row without a list of whole numbers, or a size that cannot be so.
    """
    blocks = tuple(block_ids(file, key, row.get(key) or [], row_of(i)) for i, row in enumerate(rows))
    return fitted_blocks(file, key, blocks, input_tokens, block_tokens)


def fitted_blocks(
    file: SourceFile, key: str, blocks: tuple[tuple[int, ...], ...], input_tokens: IntArray, block_tokens: int
) -> dict[str, Any]:
    """As :func:`checked_blocks`, from ids that are whole numbers.

    Raises:
        TraceError: a size that cannot be so.
    """
    num_ids = np.array([len(ids) for ids in blocks], dtype=np.int64)
    size = tokens_per_block(file, key, input_tokens, num_ids, default=block_tokens)
    odd = int((num_ids != -(-input_tokens // size)).sum())
    if odd:
        text = f"requests whose number of {key} is not ceil(input length / {size}); surplus ids are ignored"
        file.note("prefix_blocks_mismatch", odd, text)
    return {"prefix_blocks": blocks, "prefix_block_tokens": size}


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
