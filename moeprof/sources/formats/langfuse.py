"""Langfuse: batches of its ingestion API (``{"batch": [{"type", "body"}]}``), and exported observations.

Only generations are calls of a model. An update of a generation completes it. The session is the trace's
``sessionId``, else the trace itself. Usage is ``usageDetails`` (all kinds of input add up, all kinds of output too), or
``usage`` with ``input`` and ``output``, in tokens.
Source: https://api.reference.langfuse.com (ingestion, observations),
https://langfuse.com/docs/observability/features/token-and-cost-tracking
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from moeprof.core.trace import Note, Trace
from moeprof.sources.formats.calls import Call, count_of, instant_ns, name_of, trace_of
from moeprof.sources.formats.chat import ChatReader, answer_of, parsed
from moeprof.sources.formats.columns import shown
from moeprof.sources.formats.file import SourceFile, json_rows
from moeprof.sources.formats.openai import usage_of

OBSERVATION_KEYS = {"traceId", "type", "startTime"}
USED = ("id", "sessionId", "level", "input", "output", "usage", "usageDetails", "promptTokens", "completionTokens")
GENERATION_EVENTS = ("generation-create", "generation-update")


def matches(file: SourceFile) -> bool:
    """True for ingestion batches and observations."""
    return "batch" in file.keys or file.keys >= OBSERVATION_KEYS


def read(file: SourceFile) -> Trace:
    """Read Langfuse's generations.

    Raises:
        TraceError: see calls.py; or a batch that is no list of events.
    """
    file.use("batch", "metadata", *OBSERVATION_KEYS, *USED)
    generations: dict[str, tuple[int, dict[str, Any]]] = {}
    sessions: dict[str, str] = {}
    num_other = 0
    for number, kind, body in _events(file):
        if kind in ("trace-create", "trace-update"):
            sessions[str(body.get("id"))] = name_of(body.get("sessionId"))
        elif kind in GENERATION_EVENTS:
            key = str(body.get("id", f"{number}:{len(generations)}"))
            first, known = generations.get(key, (number, {}))
            generations[key] = first, known | {name: value for name, value in body.items() if value is not None}
        else:
            num_other += 1
    chat = ChatReader(file=file)
    calls = [_call(chat, number, body, sessions) for number, body in generations.values()]
    notes = chat.notes()
    if num_other:
        text = "events and observations that are no generation (spans, scores) were left out"
        notes = (*notes, Note(code="other_events", count=num_other, text=text))
    return trace_of("langfuse", file, calls, notes)


def _events(file: SourceFile) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
    for number, row in json_rows(file):
        if "batch" not in row:
            yield number, "generation-create" if row.get("type") == "GENERATION" else str(row.get("type")), row
            continue
        if not isinstance(row["batch"], list):
            raise file.error(number, f"batch is {shown(row['batch'])}; a list of events is expected")
        for event in row["batch"]:
            if not isinstance(event, dict) or not isinstance(event.get("body"), dict):
                raise file.error(number, f'{shown(event)} in batch; {{"type", "body"}} is expected')
            yield number, str(event.get("type")), event["body"]


def _call(chat: ChatReader, number: int, body: Mapping[str, Any], sessions: Mapping[str, str]) -> Call:
    num_input, num_output = _usage(chat.file, number, body)
    trace = name_of(body.get("traceId"))
    call = Call(
        row=number,
        time_ns=instant_ns(chat.file, number, "startTime", body.get("startTime")),
        input_tokens=num_input,
        output_tokens=num_output,
        session=name_of(body.get("sessionId")) or sessions.get(trace) or trace,
        failed=body.get("level") == "ERROR",
    )
    given = parsed(body.get("input"))
    if call.failed or not given:
        return call
    if isinstance(given, dict) and "messages" in given:
        call = replace(call, messages=chat.messages(number, given["messages"], tools=given.get("tools")))
    elif isinstance(given, list) and given and isinstance(given[0], dict) and "role" in given[0]:
        call = replace(call, messages=chat.messages(number, given))
    elif isinstance(given, str):
        call = replace(call, prompt=chat.text(number, "input", given))
    else:
        return call
    return replace(call, answer=answer_of(chat, number, body.get("output")))


def _usage(file: SourceFile, number: int, body: Mapping[str, Any]) -> tuple[int | None, int | None]:
    details = body.get("usageDetails")
    if isinstance(details, dict) and details:
        return _sum_of(file, number, details, "input", "prompt"), _sum_of(file, number, details, "output", "completion")
    usage = body.get("usage")
    if isinstance(usage, dict) and usage.get("unit", "TOKENS") in ("TOKENS", None):
        stated = usage_of(file, number, usage)
        pairs = (("input", "promptTokens"), ("output", "completionTokens"))
    else:
        stated, usage = (None, None), body
        pairs = (("inputUsage", "promptTokens"), ("outputUsage", "completionTokens"))
    found = [
        given if given is not None else next((usage[key] for key in keys if usage.get(key) is not None), None)
        for given, keys in zip(stated, pairs, strict=True)
    ]
    num_input, num_output = (count_of(file, number, keys[0], value) for keys, value in zip(pairs, found, strict=True))
    return num_input, num_output


def _sum_of(file: SourceFile, number: int, details: Mapping[str, Any], *names: str) -> int | None:
    """The kinds of usage that have one of these words in their name, added up."""
    counts = [count_of(file, number, key, details[key]) for key in details if any(name in key for name in names)]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None
