"""Calls of a log as a trace: what gateway logs, files of requests and spans have in common.

A call that failed is counted and not replayed. Times may come in any order; they are sorted, because a log is written
when calls end. Where a log has both text and token counts, both are kept: the counts are the recorded model's, the text
is what is replayed and counted anew.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from moeprof.core.trace import NO_SESSION, FloatArray, IntArray, Note, Trace
from moeprof.sources.formats.chat import Messages
from moeprof.sources.formats.columns import MAX_SECONDS, MAX_TOKENS, assemble, numbered, shown
from moeprof.sources.formats.file import BROKEN_CSV, SourceFile, json_rows

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NS_PER_S = 1_000_000_000
UNKNOWN = -1
UNITS_PER_S = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a model.

    Attributes:
        row: line or item in the file.
        messages: the chat, or None.
        prompt: the text of a completion, or None.
        answer: what the model said, or None.
        input_tokens: as the log states it, or None.
        output_tokens: as the log states it or as it was asked for, or None.
        time_ns: when it started, or None where the format has no times.
        session: its conversation, or "".
        request_class: its kind, or None.
        failed: it has no answer.
    """

    row: int
    messages: Messages | None = None
    prompt: str | None = None
    answer: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    time_ns: int | None = None
    session: str = NO_SESSION
    request_class: str | None = None
    failed: bool = False

    @property
    def has_text(self) -> bool:
        """True when its prompt is known, not only its length."""
        return self.messages is not None or self.prompt is not None


def trace_of(source: str, file: SourceFile, calls: Sequence[Call], notes: Sequence[Note] = ()) -> Trace:
    """The calls that did not fail, in order of their start.

    Raises:
        TraceError: nothing is left; or a row has neither text nor length, or no time where others have one.
    """
    said = list(notes)
    good = [call for call in calls if not call.failed]
    if len(good) < len(calls):
        text = "calls had failed and are not replayed"
        said.append(Note(code="dropped_failed", count=len(calls) - len(good), text=text))
    if not good:
        raise file.error(None, f"none of its {len(calls)} calls can be replayed")
    arrival_s = _arrivals(file, good)
    if arrival_s is not None:
        order = np.argsort(arrival_s, kind="stable")
        good, arrival_s = [good[i] for i in order.tolist()], arrival_s[order]
    columns, text_notes = _text_columns(file, good)
    if any(call.session != NO_SESSION for call in good):
        columns["session"] = tuple(call.session for call in good)
    if any(call.request_class is not None for call in good):
        columns["request_class"] = tuple(call.request_class or "all" for call in good)
    return assemble(
        source,
        file,
        arrival_s=arrival_s,
        input_tokens=_input_tokens(good),
        output_tokens=_stated([call.output_tokens for call in good]),
        notes=(*said, *text_notes),
        **columns,
    )


def _arrivals(file: SourceFile, calls: Sequence[Call]) -> FloatArray | None:
    times = [call.time_ns for call in calls]
    known = [time for time in times if time is not None]
    if not known:
        return None
    if len(known) < len(times):
        raise file.error(calls[times.index(None)].row, "the time is missing; other rows have one")
    first = min(known)
    return np.array([(time - first) / NS_PER_S for time in known], dtype=np.float64)


def _text_columns(file: SourceFile, calls: Sequence[Call]) -> tuple[dict[str, Any], list[Note]]:
    with_text = [call for call in calls if call.has_text]
    if not with_text or len(with_text) < len(calls):
        lost = next((call for call in calls if call.input_tokens is None), None)
        if lost is not None and not lost.has_text:
            raise file.error(lost.row, "neither the prompt's text nor its length is there")
        if lost is not None:
            without = next(call for call in calls if not call.has_text)
            raise file.error(without.row, "only the prompt's length is there; other rows have text without a length")
        if not with_text:
            return {}, []
        text = "calls have text, but others of the file only lengths: the lengths of all are replayed"
        return {}, [Note(code="text_left_out", count=len(with_text), text=text)]
    columns: dict[str, Any] = {}
    if any(call.answer is not None for call in calls):
        columns["output_text"] = tuple(call.answer for call in calls)
    if all(call.messages is None for call in calls):
        columns["prompt_text"] = tuple(call.prompt or "" for call in calls)
        return columns, []
    # A lone prompt among chats is what a user said.
    columns["messages"] = tuple(call.messages or (("user", call.prompt or ""),) for call in calls)
    num_prompts = sum(call.messages is None for call in calls)
    text = "prompts without roles stand among chats and are replayed as a user's message"
    return columns, [Note(code="prompt_as_chat", count=num_prompts, text=text)] if num_prompts else []


def _input_tokens(calls: Sequence[Call]) -> IntArray:
    """Stated lengths; 0 for an empty text, which assemble drops and counts."""
    empty = [call.has_text and not call.prompt and not any(text for _, text in call.messages or ()) for call in calls]
    return np.where(empty, 0, _stated([call.input_tokens for call in calls]))


def _stated(values: Sequence[int | None]) -> IntArray:
    return np.array([UNKNOWN if value is None else value for value in values], dtype=np.int64)


def count_of(file: SourceFile, row: int, name: str, value: Any) -> int | None:
    """A token count; None where it is not stated.

    Raises:
        TraceError: no whole number of at least 0.
    """
    if value is None or value == "":
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= len(str(MAX_TOKENS)):
        value = int(value)
    if type(value) not in (int, float) or not 0 <= value <= MAX_TOKENS or value != int(value):
        raise file.error(row, f"{name} is {shown(value)}; a whole number from 0 to {MAX_TOKENS} is expected")
    return int(value)


def instant_ns(file: SourceFile, row: int, name: str, value: Any, *, units_per_s: int = 1) -> int:
    """A point in time as nanoseconds since 1970: an ISO 8601 text (UTC where it names no zone), or a number.

    Args:
        file: for messages.
        row: for messages.
        name: for messages.
        value: what stands there.
        units_per_s: of a number, unless the user says another: 1 for seconds, 1,000,000,000 for nanoseconds.

    Raises:
        TraceError: neither of these, or out of range.
    """
    if value is None or value == "":
        raise file.error(row, f"{name} is missing")
    number = _number(value)
    if number is not None:
        units_per_s = UNITS_PER_S.get(file.how.timestamp_unit or "", units_per_s)
        if not abs(number) <= MAX_SECONDS * units_per_s:
            raise file.error(row, f"{name} is {shown(value)}; a finite time is expected")
        whole = math.floor(number)  # apart from the fraction: seconds since 1970 in nanoseconds do not fit a double
        return whole * (NS_PER_S // units_per_s) + round((number - whole) * NS_PER_S / units_per_s)
    try:
        moment = datetime.fromisoformat(value.strip())
    except (ValueError, AttributeError) as error:
        expected = "a time like 2025-01-24T09:20:46.847371Z is expected"
        raise file.error(row, f"{name} is {shown(value)}; {expected}") from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - EPOCH) // timedelta(microseconds=1) * 1000


def _number(value: Any) -> int | float | None:
    if type(value) in (int, float):
        return value  # type: ignore[no-any-return]
    if not isinstance(value, str) or len(value) > 40 or value[4:5] == "-":  # 2025-...
        return None
    try:
        return int(value) if value.strip().lstrip("-").isdigit() else float(value)
    except ValueError:
        return None


def row_objects(file: SourceFile) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a JSON, parquet or CSV file as objects, with their line; cells of CSV are text, however long.

    Raises:
        TraceError: as ``json_rows``; or a row of CSV with too few or too many cells.
    """
    if file.has_objects:
        yield from json_rows(file)
        return
    cells = numbered(csv.reader(io.StringIO(file.data.decode("utf-8"), newline=""), delimiter=file.delimiter))
    try:
        next(cells)  # the header
        for number, row in cells:
            if len(row) != len(file.header):
                raise file.error(number, f"{len(row)} cells in this row, {len(file.header)} are expected")
            yield number, dict(zip(file.header, row, strict=True))
    except csv.Error as error:
        raise file.error(None, BROKEN_CSV) from error


def inner(row: Mapping[str, Any], *path: str) -> Any:
    """The value under nested keys, None where one is missing."""
    value: Any = row
    for key in path:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def name_of(value: Any) -> str:
    """An id of a session as text that can be written as UTF-8; "" for none."""
    if not isinstance(value, str | int) or isinstance(value, bool):
        return NO_SESSION
    text = str(value)
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
