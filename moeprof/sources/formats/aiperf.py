"""AIPerf's input files (single turns, conversations, Mooncake's form with its additions) and its profile_export.jsonl.

Inputs, times in milliseconds::

    {"text" | "texts", "image", "timestamp" | "delay", "output_length"}       single turn
    {"session_id", "turns": [{"text", "delay"}]}                              conversation
    {"input_length" | "text_input" | "messages", "output_length", "hash_ids", "timestamp" | "delay", "session_id"}

Rows of one ``session_id`` are the turns of a conversation. Lengths and texts of later turns are additions to the
context, and ``delay`` counts from the end of the previous answer; but where the ids of later turns begin as the
previous turn's do, lengths are whole prompts. ``messages`` are whole prompts. An answer without ``output_length`` gets
its length from ``lengths.output``.

Conversations whose turns start others are read by aiperf_tree.py.

``profile_export.jsonl`` is what AIPerf measured: lengths and start of every request. Failed, cancelled and warm-up
requests are counted and not replayed.
Sources: https://github.com/ai-dynamo/aiperf (the models of its dataset loader, docs/benchmark-modes/trace-replay.md,
docs/reference/conversation-context-mode.md, docs/tutorials/working-with-profile-exports.md)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moeprof.core.trace import NO_SESSION, FloatArray, IntArray, Note, Trace
from moeprof.core.turns import NONE, waits_by_session, whole_lengths
from moeprof.sources.formats import aiperf_tree
from moeprof.sources.formats import turns as conversations
from moeprof.sources.formats.calls import NS_PER_S, Call, count_of, inner, instant_ns, name_of, trace_of
from moeprof.sources.formats.chat import MEDIUM_OF, ChatReader, Messages, split_answer
from moeprof.sources.formats.columns import assemble, checked_seconds, lines_of, shown, values_to_floats
from moeprof.sources.formats.file import SourceFile, first_row, json_rows
from moeprof.sources.formats.mooncake import block_ids
from moeprof.sources.formats.units import PER_SECOND, inferred_unit, tokens_per_block

BLOCK_TOKENS = 512
EXPORT_KEYS = {"metadata", "metrics"}
TELLING = {"text_input", "turns", "texts", "orchestrator"}
TEXT_KEYS = ("text_input", "text", "texts")
MEDIA_KEYS = ("image", "images", "audio", "audios", "video", "videos")
OWN_KEYS = {"arrival_s", "input_tokens", "output_tokens", "prompt", "chat_id"}
UNKNOWN = -1


def matches(file: SourceFile) -> bool:
    """True for exports, and for inputs with keys that Mooncake's and moeprof's own rows do not have."""
    keys = file.keys
    if keys >= EXPORT_KEYS or keys & TELLING:
        return True
    if keys & OWN_KEYS:
        return False
    more = keys & {"session_id", "delay"}
    if "input_length" in keys:
        return bool(more) or "output_length" not in keys
    return "text" in keys or ("messages" in keys and bool(more or keys & {"timestamp", "output_length"}))


def read(file: SourceFile) -> Trace:
    """Read an input file or an export.

    Raises:
        TraceError: see columns.py and chat.py; or rows with text beside rows of lengths alone.
    """
    if file.keys >= EXPORT_KEYS:
        return _export(file)
    if aiperf_tree.is_tree(first_row(file)):
        return aiperf_tree.read(file)
    file.use("turns", *TEXT_KEYS, *MEDIA_KEYS, "messages", "tools", "input_length", "output_length", "hash_ids")
    file.use("timestamp", "delay", "session_id", "role", "type")
    chat = ChatReader(file=file)
    rows = [turn for number, row in json_rows(file) for turn in _turns(chat, number, row)]
    if not rows:
        raise file.error(None, "none of its conversations has a turn")
    after = waits_by_session([turn.session for turn in rows])
    row_of = lines_of([turn.line for turn in rows])
    stamps = np.array([np.nan if turn.time is None else turn.time for turn in rows])
    per_second = _units_per_s(file, stamps[~np.isnan(stamps)])
    times_s = stamps / per_second
    delays_s = np.array([np.nan if turn.delay is None else turn.delay for turn in rows]) / per_second
    arrival_s = conversations.turn_times(file, times_s, delays_s, after, row_of)
    columns = _texts(file, rows, after) if any(turn.has_text for turn in rows) else _lengths(file, rows, after)
    delayed = np.where(after != NONE, delays_s, np.nan)
    if not np.isnan(delayed).all():
        columns["delay_s"] = delayed
    if any(turn.session != NO_SESSION for turn in rows):
        columns["session"] = tuple(turn.session for turn in rows)
    return assemble(
        "aiperf",
        file,
        arrival_s=None if arrival_s is None else checked_seconds(file, "timestamp", arrival_s, row_of),
        notes=(*columns.pop("notes"), *chat.notes()),
        **columns,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turn:
    """One turn as the file has it; None for what it does not state."""

    line: int
    session: str
    text: str | None
    messages: Messages | None
    answer: str | None
    length: int | None
    output: int | None
    ids: tuple[int, ...]
    time: float | None
    delay: float | None

    @property
    def has_text(self) -> bool:
        return self.text is not None or self.messages is not None


def _turns(chat: ChatReader, number: int, row: Mapping[str, Any]) -> list[_Turn]:
    session = name_of(row.get("session_id"))
    if "turns" not in row:
        return [_turn(chat, number, row, session)]
    inside = row["turns"]
    if not isinstance(inside, list) or not all(isinstance(turn, dict) for turn in inside):
        raise chat.file.error(number, f"turns is {shown(inside)}; a list of objects is expected")
    return [_turn(chat, number, turn, session or str(number)) for turn in inside]


def _turn(chat: ChatReader, number: int, row: Mapping[str, Any], session: str) -> _Turn:
    file = chat.file
    for key in MEDIA_KEYS:
        if row.get(key):
            chat.left_out(number, MEDIUM_OF[key], len(row[key]) if isinstance(row[key], list) else 1)
    name = next((name for name in TEXT_KEYS if row.get(name) is not None), None)
    text = None if name is None else _text(chat, number, name, row[name])
    messages, answer = None, None
    if text is None and "messages" in row:
        messages, answer = split_answer(chat.messages(number, row["messages"], tools=row.get("tools")))
    length = count_of(file, number, "input_length", row.get("input_length"))
    if text is None and messages is None and length is None:
        if not any(row.get(key) for key in MEDIA_KEYS):
            raise file.error(number, "neither a text nor input_length is there")
        text = ""  # nothing but media: dropped and counted as an empty prompt
    return _Turn(
        line=number,
        session=session,
        text=text,
        messages=messages,
        answer=answer,
        length=length,
        output=count_of(file, number, "output_length", row.get("output_length")),
        ids=block_ids(file, "hash_ids", row.get("hash_ids") or [], number),
        time=_stamp(file, number, row, "timestamp"),
        delay=_stamp(file, number, row, "delay"),
    )


def _text(chat: ChatReader, number: int, key: str, value: Any) -> str:
    """A text, or a list of texts or of ``{"contents": [...]}``, which AIPerf sends as one prompt's parts."""
    if isinstance(value, list):
        parts = [part.get("contents", []) if isinstance(part, dict) else part for part in value]
        return chat.text(number, key, [text for part in parts for text in (part if isinstance(part, list) else [part])])
    return chat.text(number, key, value)


def _stamp(file: SourceFile, number: int, row: Mapping[str, Any], key: str) -> float | None:
    if row.get(key) is None:
        return None
    value = float(values_to_floats(file, key, [row[key]], lambda _: number)[0])
    if not np.isfinite(value) or (key == "delay" and value < 0):
        raise file.error(number, f"{key} is {value:g}; a finite {'pause' if key == 'delay' else 'time'} is expected")
    return value


def _texts(file: SourceFile, rows: Sequence[_Turn], after: IntArray) -> dict[str, Any]:
    alone = [turn for turn in rows if not turn.has_text]
    if alone and ((after != NONE).any() or any(turn.messages for turn in rows)):
        raise file.error(
            alone[0].line, "only input_length is there, other rows have text; split the file into texts and lengths"
        )
    outputs = np.array([UNKNOWN if turn.output is None else turn.output for turn in rows], dtype=np.int64)
    columns: dict[str, Any] = {"output_tokens": outputs, "notes": ()}
    if any(turn.messages is not None for turn in rows):
        columns["messages"] = tuple(turn.messages or (("user", turn.text or ""),) for turn in rows)
        empty = [not any(text for _, text in messages) for messages in columns["messages"]]
        if any(turn.answer is not None for turn in rows):
            columns["output_text"] = tuple(turn.answer for turn in rows)
    else:
        texts = [turn.text or "" for turn in rows]
        empty = [not text for text in texts]
        columns |= {"prompt_text": conversations.added_texts(texts, after), "stated": "added"}
        columns["notes"] = conversations.additions_note(after)
    lengths = [turn.length or 0 if not turn.has_text else UNKNOWN for turn in rows]
    columns["input_tokens"] = np.where(np.array(empty) & (np.array(lengths) < 0), 0, lengths).astype(np.int64)
    if alone:
        text = "requests state a length alone; they get text from prompts, the others keep their own"
        columns["notes"] += (Note(code="lengths_among_text", count=len(alone), text=text),)
        if any(turn.ids for turn in alone):
            ids = tuple(() if turn.has_text else turn.ids for turn in rows)
            columns |= {"prefix_blocks": ids, "prefix_block_tokens": file.how.block_tokens or BLOCK_TOKENS}
    return columns


def _lengths(file: SourceFile, rows: Sequence[_Turn], after: IntArray) -> dict[str, Any]:
    added = np.array([turn.length for turn in rows], dtype=np.int64)
    outputs = np.array([UNKNOWN if turn.output is None else turn.output for turn in rows], dtype=np.int64)
    ids = [turn.ids for turn in rows]
    has_ids, has_turns = any(ids), bool((after != NONE).any())
    columns: dict[str, Any] = {"input_tokens": added, "output_tokens": outputs, "notes": ()}
    if has_ids:
        num_ids = np.array([len(blocks) for blocks in ids], dtype=np.int64)
        size = tokens_per_block(file, "hash_ids", added, num_ids, default=BLOCK_TOKENS)
        columns |= {"prefix_blocks": tuple(ids), "prefix_block_tokens": size}
    if not has_turns or _are_whole(ids, after):
        return columns
    inputs = whole_lengths(added, outputs, after)
    size = columns.get("prefix_block_tokens", conversations.OWN_BLOCK_TOKENS)
    return columns | {
        "input_tokens": inputs,
        "prefix_blocks": conversations.whole_blocks(ids, inputs, after, size),
        "prefix_block_tokens": size,
        "stated": "added",
        "notes": conversations.additions_note(after),
    }


def _are_whole(ids: Sequence[tuple[int, ...]], after: IntArray) -> bool:
    """True when most later turns begin with the first block of the turn before them."""
    pairs = [(ids[i], ids[before]) for i, before in enumerate(after.tolist()) if before != NONE]
    known = [(now, then) for now, then in pairs if now and then]
    return bool(known) and sum(now[0] == then[0] for now, then in known) * 2 > len(known)


def _units_per_s(file: SourceFile, stamps: FloatArray) -> float:
    """The unit of times and delays: milliseconds, unless the user says or the stamps prove another."""
    if file.how.timestamp_unit == "iso":
        raise file.error(None, "timestamp and delay of this format are numbers; give timestamp_unit as s, ms, us or ns")
    if file.how.timestamp_unit is not None:
        return PER_SECOND[file.how.timestamp_unit]
    unit = inferred_unit(file, "timestamp", stamps, "ms") if len(stamps) else "ms"
    file.found["timestamp_unit"] = unit
    return PER_SECOND[unit]


def _export(file: SourceFile) -> Trace:
    file.use("metadata", "metrics", "error")
    calls: list[Call] = []
    num_warmups = 0
    for number, row in json_rows(file):
        metadata = row.get("metadata")
        if not isinstance(metadata, dict):
            raise file.error(number, f"metadata is {shown(metadata)}; an object is expected")
        if metadata.get("credit_phase") == "warmup" or metadata.get("benchmark_phase") == "warmup":
            num_warmups += 1
            continue
        start = metadata.get("request_start_ns", metadata.get("timestamp_ns"))
        lengths = [
            count_of(file, number, name, inner(row, "metrics", name, "value"))
            for name in ("input_sequence_length", "output_sequence_length")
        ]
        calls.append(
            Call(
                row=number,
                time_ns=instant_ns(file, number, "request_start_ns", start, units_per_s=NS_PER_S),
                input_tokens=lengths[0],
                output_tokens=lengths[1],
                session=name_of(metadata.get("x_correlation_id") or metadata.get("conversation_id")),
                failed=bool(row.get("error")) or metadata.get("was_cancelled") is True,
            )
        )
    text = "warm-up requests were not replayed"
    notes = (Note(code="dropped_warmup", count=num_warmups, text=text),) if num_warmups else ()
    return trace_of("aiperf", file, calls, notes)
