"""moeprof's own JSON lines, and the two common shapes near it.

Keys of a row (one kind of prompt per file):

    arrival_s          seconds; without it the requests have no times
    input_tokens, output_tokens
    prompt | messages  text, or [{"role", "content"}] with content parts, tool calls and ``tools`` as in OpenAI's bodies
                       (chat.py); the tokenizer counts them, a length beside them is what the recorded model counted
    output             the true continuation
    request_class, session, prefix_blocks, prefix_block_tokens
    delay_s            from the end of the answer to the session's previous request
    id, after          a name, and that of an earlier request whose answer this one waits for, where that is another
    stated             "added": texts, messages and lengths of later turns are what they add; else they are whole
    context            the id of the row whose prompt and answer they are added to, null: none; else that of ``after``

vLLM's custom form (``prompt``, ``output_tokens``) is this form. AIPerf's is read as well: ``text``, ``output_length``,
``input_length``, ``timestamp`` and ``delay`` in milliseconds (see units.py), ``session_id``, ``hash_ids``; a turn
without a time stands ``delay`` after its session's previous one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moeprof.core.errors import TraceError
from moeprof.core.trace import NO_SESSION, IntArray, Trace
from moeprof.core.turns import NONE, added_lengths, roots, waits_by_session, whole_lengths
from moeprof.sources.formats.chat import ChatReader
from moeprof.sources.formats.columns import (
    MAX_SECONDS,
    RowOf,
    assemble,
    checked_seconds,
    checked_text,
    checked_tokens,
    lines_of,
    shown,
    values_to_floats,
)
from moeprof.sources.formats.fast import are_tokens, json_columns
from moeprof.sources.formats.file import SourceFile
from moeprof.sources.formats.mooncake import block_ids, checked_blocks, rows_of, turn_times
from moeprof.sources.formats.turns import OWN_BLOCK_TOKENS, whole_blocks

ALIASES = {"text": "prompt", "output_length": "output_tokens", "input_length": "input_tokens", "session_id": "session"}
TEXT_KEYS = ("prompt", "messages")
NUMBER_KEYS = ("arrival_s", "input_tokens", "output_tokens")
FAST_TEXT_KEYS = ("request_class", "session")
TURN_KEYS = ("delay_s", "id", "after", "stated", "context")
# Keys of rows that hold more than one kind of prompt, block or time.
CAREFUL_KEYS = frozenset({
    *ALIASES, *TEXT_KEYS, *TURN_KEYS, "output", "delay", "timestamp", "hash_ids", "prefix_blocks", "prefix_block_tokens"
})  # fmt: skip
DEFAULT_BLOCK_TOKENS = 512


def matches(file: SourceFile) -> bool:
    """True when the first row has a prompt, messages or both lengths."""
    keys = {ALIASES.get(key, key) for key in file.keys}
    return bool(keys & set(TEXT_KEYS)) or keys >= {"input_tokens", "output_tokens"}


def read(file: SourceFile) -> Trace:
    """Read moeprof's JSONL.

    Raises:
        TraceError: the first row that cannot be understood.
    """
    fast = None if file.keys & CAREFUL_KEYS else _read_fast(file)
    if fast is not None:
        return assemble("jsonl", file, **fast)
    numbers, rows = rows_of(file)
    rows = [_renamed(row) if ALIASES.keys() & row.keys() else row for row in rows]
    return assemble("jsonl", file, **columns(file, rows, lines_of(numbers)))


def _renamed(row: dict[str, Any]) -> dict[str, Any]:
    return {ALIASES.get(key, key): value for key, value in row.items()}


def _read_fast(file: SourceFile) -> dict[str, Any] | None:
    """Files of lengths by pyarrow; None when anything is unusual: then the careful way decides and names the row."""
    if file.how.timestamp_unit not in (None, "s") or not {"input_tokens", "output_tokens"} <= file.keys:
        return None
    found = json_columns(file, numbers=NUMBER_KEYS, texts=FAST_TEXT_KEYS)
    if found is None or file.seen.keys() & (CAREFUL_KEYS | {*NUMBER_KEYS, *FAST_TEXT_KEYS}):
        file.seen.clear()
        return None
    _say_used(file, None)
    file.use("arrival_s")
    if not are_tokens(found["input_tokens"]) or not are_tokens(found["output_tokens"]):
        return None
    if "arrival_s" in found and not (np.abs(found["arrival_s"]) <= MAX_SECONDS).all():
        return None
    for name in ("input_tokens", "output_tokens"):
        found[name] = found[name].astype(np.int64)
    return {"arrival_s": None} | found


def columns(file: SourceFile, rows: Sequence[dict[str, Any]], row_of: RowOf) -> dict[str, Any]:
    """The columns of a Trace, as arguments of ``assemble``.

    Raises:
        TraceError: the first row that cannot be understood.
    """
    kind = next((key for key in TEXT_KEYS if key in rows[0]), None)
    _say_used(file, kind)
    found: dict[str, Any] = {
        **_arrivals(file, rows, row_of),
        "input_tokens": _lengths(file, rows, row_of, "input_tokens", needed=kind is None),
        "output_tokens": _lengths(file, rows, row_of, "output_tokens", needed=kind is None),
    }
    if kind == "prompt":
        found["prompt_text"] = tuple(
            checked_text(file, row_of(i), "prompt", r.get("prompt")) for i, r in enumerate(rows)
        )
        # An empty prompt has length 0, unless a length is stated in its place: assemble drops and counts it.
        empty = np.array([not text for text in found["prompt_text"]])
        found["input_tokens"] = np.where(empty & (found["input_tokens"] < 0), 0, found["input_tokens"])
    if kind == "messages":
        chat = ChatReader(file=file)
        found["messages"] = tuple(
            chat.messages(row_of(i), row.get("messages"), tools=row.get("tools")) for i, row in enumerate(rows)
        )
        found["notes"] = chat.notes()
    if kind is not None and any("output" in row for row in rows):
        found["output_text"] = tuple(
            checked_text(file, row_of(i), "output", row["output"]) or None if "output" in row else None
            for i, row in enumerate(rows)
        )
    if kind is None and any("hash_ids" in row for row in rows):
        file.use("hash_ids")
        found |= checked_blocks(file, "hash_ids", rows, row_of, found["input_tokens"], DEFAULT_BLOCK_TOKENS)
    found |= _tags(file, rows, row_of)
    return _turns(file, rows, row_of, found)


def _turns(file: SourceFile, rows: Sequence[dict[str, Any]], row_of: RowOf, found: dict[str, Any]) -> dict[str, Any]:
    """The columns with who waits for whom, and with whole prompts where rows state what turns add."""
    if any("after" in row for row in rows):
        found["after"] = _rows_named(file, rows, row_of, "after")
        if "session" not in found:
            found["session"] = tuple(str(root) if multiple else NO_SESSION for root, multiple in _trees(found["after"]))
    for i, row in enumerate(rows):
        if row.get("stated", "whole") not in ("whole", "added"):
            raise file.error(row_of(i), f"stated is {shown(row['stated'])}; whole or added is allowed")
    if not any(row.get("stated") == "added" for row in rows):
        return found
    after = found.get("after", waits_by_session(found.get("session", (NO_SESSION,) * len(rows))))
    found["stated"] = "added"
    if any("context" in row for row in rows):
        found["context"] = after = _rows_named(file, rows, row_of, "context", otherwise=after)
    if "prompt_text" not in found and "messages" not in found:
        inputs = whole_lengths(found["input_tokens"], found["output_tokens"], after)
        size = found.get("prefix_block_tokens", OWN_BLOCK_TOKENS)
        first = found.get("prefix_blocks", ((),) * len(rows))
        found |= {"input_tokens": inputs, "prefix_blocks": whole_blocks(first, inputs, after, size)}
        found["prefix_block_tokens"] = size
    return found


def _rows_named(
    file: SourceFile, rows: Sequence[dict[str, Any]], row_of: RowOf, key: str, otherwise: IntArray | None = None
) -> IntArray:
    """The row that each names by its id, -1: none; rows without the key have that of ``otherwise``."""
    row_named: dict[str, int] = {}
    found = np.full(len(rows), NONE, dtype=np.int64) if otherwise is None else otherwise.copy()
    for i, row in enumerate(rows):
        if key in row:
            wanted = row[key]
            if wanted is not None and str(wanted) not in row_named:
                raise file.error(row_of(i), f"{key} is {shown(wanted)}; no row above has this id")
            found[i] = NONE if wanted is None else row_named[str(wanted)]
        row_named[str(row.get("id", i))] = i
    return found


def _trees(after: IntArray) -> Iterator[tuple[int, bool]]:
    """The first turn of each row's conversation, and whether that has others."""
    root = roots(after)
    return zip(root.tolist(), (np.bincount(root, minlength=len(root))[root] > 1).tolist(), strict=True)


def _say_used(file: SourceFile, kind: str | None) -> None:
    """The keys that this kind of prompt needs; a length stated beside a text is the recorded model's."""
    used = {*FAST_TEXT_KEYS, "output_tokens", "prefix_blocks", "prefix_block_tokens", *TURN_KEYS}
    used |= {"input_tokens"} if kind is None else {"input_tokens", kind, "output"}
    used |= {"tools"} if kind == "messages" else set()
    file.use(*used, *(key for key, name in ALIASES.items() if name in used))


def _tags(file: SourceFile, rows: Sequence[dict[str, Any]], row_of: RowOf) -> dict[str, Any]:
    tags: dict[str, Any] = {}
    for key, default in (("request_class", "all"), ("session", NO_SESSION)):
        if any(key in row for row in rows):
            tags[key] = tuple(
                checked_text(
                    file, row_of(i), key, str(row[key]) if type(row.get(key)) is int else row.get(key, default)
                )
                for i, row in enumerate(rows)
            )
    if any("delay_s" in row for row in rows):
        values = [math.nan if row.get("delay_s") is None else row["delay_s"] for row in rows]
        tags["delay_s"] = values_to_floats(file, "delay_s", values, row_of)
        if not (np.isnan(tags["delay_s"]) | ((tags["delay_s"] >= 0) & (tags["delay_s"] <= MAX_SECONDS))).all():
            raise file.error(None, "delay_s must be seconds, at least 0")
    if any("prefix_blocks" in row for row in rows):
        tags["prefix_blocks"] = tuple(
            block_ids(file, "prefix_blocks", row.get("prefix_blocks", []), row_of(i)) for i, row in enumerate(rows)
        )
        sizes = [row.get("prefix_block_tokens", file.how.block_tokens or DEFAULT_BLOCK_TOKENS) for row in rows]
        if type(sizes[0]) is not int or sizes[0] < 1 or any(size != sizes[0] for size in sizes):
            raise file.error(None, "prefix_block_tokens must be one whole number of at least 1, the same in every row")
        tags["prefix_block_tokens"] = sizes[0]
    return tags


def _lengths(file: SourceFile, rows: Sequence[dict[str, Any]], row_of: RowOf, key: str, *, needed: bool) -> IntArray:
    values = [row.get(key) for row in rows]
    known = [i for i, value in enumerate(values) if value is not None]
    if needed or len(known) == len(values):
        return checked_tokens(file, key, values_to_floats(file, key, values, row_of), row_of)
    lengths = np.full(len(rows), -1, dtype=np.int64)
    if known:
        row_of_known: RowOf = lambda i: row_of(known[i])  # noqa: E731
        found = values_to_floats(file, key, [values[i] for i in known], row_of_known)
        lengths[known] = checked_tokens(file, key, found, row_of_known)
    return lengths


def _arrivals(file: SourceFile, rows: Sequence[dict[str, Any]], row_of: RowOf) -> dict[str, Any]:
    if "arrival_s" not in rows[0]:
        return turn_times(file, rows, row_of, session="session")
    file.use("arrival_s")
    if file.how.timestamp_unit not in (None, "s"):
        raise file.error(None, "arrival_s is in seconds; timestamp_unit belongs to files with other times")
    values = values_to_floats(file, "arrival_s", [row.get("arrival_s") for row in rows], row_of)
    return {"arrival_s": checked_seconds(file, "arrival_s", values, row_of)}


def write(trace: Trace, path: Path, *, force: bool = False) -> None:
    """Write a trace; arrivals keep every digit, so that reading it again gives the same numbers.

    Raises:
        TraceError: the file is already there (without ``force``), or cannot be written.
    """
    if path.exists() and not force:
        raise TraceError(f"{path}: already there; --force overwrites it")
    try:
        with path.open("w", encoding="utf-8", newline="\n") as out:
            out.writelines(line + "\n" for line in lines(trace))
    except OSError as error:
        raise TraceError(f"{path}: cannot be written ({error.strerror or error})") from error


def lines(trace: Trace) -> Iterator[str]:
    """The rows of a trace as JSON texts, without line ends."""
    has_times = bool((trace.arrival_s > 0).any())
    context_of, inputs = trace.context_of, trace.input_tokens
    if (inputs >= 0).all():
        inputs = added_lengths(inputs, trace.output_tokens, context_of)
    for i in range(len(trace)):
        row: dict[str, Any] = {"arrival_s": float(trace.arrival_s[i])} if has_times else {}
        for key, column in (("input_tokens", inputs), ("output_tokens", trace.output_tokens)):
            if column[i] >= 0:
                row[key] = int(column[i])
        if trace.prompt_text is not None:
            row["prompt"] = trace.prompt_text[i]
        if trace.messages is not None:
            row["messages"] = [{"role": role, "content": content} for role, content in trace.messages[i]]
        if trace.output_text is not None and trace.output_text[i] is not None:
            row["output"] = trace.output_text[i]
        if trace.request_class is not None:
            row["request_class"] = trace.request_class[i]
        if trace.session is not None and trace.session[i] != NO_SESSION:
            row["session"] = trace.session[i]
        if trace.delay_s is not None and not math.isnan(trace.delay_s[i]):
            row["delay_s"] = float(trace.delay_s[i])
        if trace.after is not None:
            row |= {"id": i} | ({} if trace.after[i] == NONE else {"after": int(trace.after[i])})
        if trace.stated == "added":
            row["stated"] = "added"
            if trace.context is not None and trace.context[i] != trace.waits[i]:
                row["context"] = None if trace.context[i] == NONE else int(trace.context[i])
        if trace.prefix_blocks is not None:
            if context_of[i] == NONE:
                row["prefix_blocks"] = list(trace.prefix_blocks[i])
            row["prefix_block_tokens"] = trace.prefix_block_tokens
        yield json.dumps(row, ensure_ascii=False)
