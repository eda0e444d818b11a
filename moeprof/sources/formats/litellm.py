"""LiteLLM: its standard logging payload (JSON), and its spend logs (CSV or JSON), one call a row.

``startTime`` is a text without zone or seconds since 1970. Calls that failed, that the gateway's own cache answered, or
that write no text (embeddings, images) are counted and not replayed.
Sources: https://docs.litellm.ai/docs/proxy/logging_spec, the table LiteLLM_SpendLogs of
https://github.com/BerriAI/litellm/blob/main/schema.prisma
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moeprof.core.trace import Note, Trace
from moeprof.sources.formats.calls import Call, count_of, instant_ns, name_of, row_objects, trace_of
from moeprof.sources.formats.chat import ChatReader, answer_of, parsed
from moeprof.sources.formats.file import SourceFile

KEYS = {"call_type", "startTime", "prompt_tokens", "completion_tokens"}
USED = ("id", "request_id", "session_id", "trace_id", "messages", "response", "status", "cache_hit", "total_tokens")
WRITES = ("completion", "responses", "anthropic_messages", "generate_content", "generate_content_stream")


def matches(file: SourceFile) -> bool:
    """True when its names of type, time and lengths stand there."""
    return (file.keys or set(file.header)) >= KEYS


def read(file: SourceFile) -> Trace:
    """Read LiteLLM's logs; ``session_id``, else ``trace_id``, is the session.

    Raises:
        TraceError: see calls.py.
    """
    file.use(*KEYS, *USED)
    chat = ChatReader(file=file)
    calls: list[Call] = []
    num_cached = num_other = 0
    for number, row in row_objects(file):
        if not str(row.get("call_type") or "completion").endswith(WRITES):
            num_other += 1
        elif str(row.get("cache_hit")).lower() == "true":
            num_cached += 1
        else:
            calls.append(_call(chat, number, row))
    notes = list(chat.notes())
    for code, number, text in (
        ("dropped_other_calls", num_other, "calls that write no text (embeddings and the like) were dropped"),
        ("dropped_cached", num_cached, "calls that the gateway's own cache answered reached no model: not replayed"),
    ):
        if number:
            notes.append(Note(code=code, count=number, text=text))
    return trace_of("litellm", file, calls, notes)


def _call(chat: ChatReader, number: int, row: Mapping[str, Any]) -> Call:
    file = chat.file
    call = Call(
        row=number,
        time_ns=instant_ns(file, number, "startTime", row.get("startTime")),
        input_tokens=count_of(file, number, "prompt_tokens", row.get("prompt_tokens")),
        output_tokens=count_of(file, number, "completion_tokens", row.get("completion_tokens")),
        session=name_of(row.get("session_id") or row.get("trace_id")),
        failed=str(row.get("status") or "success") != "success",
    )
    given = parsed(row.get("messages"))
    if call.failed or not given or given == "null":
        return call
    if isinstance(given, str):
        call = replace(call, prompt=given)
    else:
        call = replace(call, messages=chat.messages(number, given))
    return replace(call, answer=answer_of(chat, number, row.get("response")))
