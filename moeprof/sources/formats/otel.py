"""OpenTelemetry's GenAI spans: OTLP's JSON (``resourceSpans``), ``{"spans": [...]}``, or a span a line.

A span is a call of a model when ``gen_ai.operation.name`` says so (chat, text_completion, generate_content), or, where
that is missing, when it has a usage or input messages; agents' and tools' spans, which hold other spans, are left out.
Times are ``startTimeUnixNano`` or ``start_time`` (ISO). The session is ``gen_ai.conversation.id``, any other attribute
that ends in ``session.id``, else the trace's id.
Sources: https://github.com/open-telemetry/semantic-conventions/blob/main/docs/gen-ai/gen-ai-spans.md,
https://github.com/open-telemetry/opentelemetry-proto/blob/main/opentelemetry/proto/trace/v1/trace.proto, and the
file of spans that https://github.com/kubernetes-sigs/inference-perf reads
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from moeprof.core.trace import Note, Trace
from moeprof.sources.formats.calls import NS_PER_S, Call, count_of, instant_ns, name_of, trace_of
from moeprof.sources.formats.chat import ChatReader, Messages, answer_of, parsed
from moeprof.sources.formats.columns import shown
from moeprof.sources.formats.file import SourceFile, json_rows

WRITES = ("chat", "text_completion", "generate_content")
CALL_MARKS = ("gen_ai.input.messages", "gen_ai.prompt", "gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens")
INDEXED = re.compile(r"gen_ai\.(prompt|completion)\.(\d{1,6})\.(role|content)$")  # older: one attribute a message
ERRORS = (2, "ERROR", "STATUS_CODE_ERROR")


def matches(file: SourceFile) -> bool:
    """True for OTLP, for a list of spans, and for rows that are spans."""
    keys = file.keys
    a_span = "attributes" in keys and bool(keys & {"start_time", "startTimeUnixNano"})
    return "resourceSpans" in keys or "spans" in keys or a_span


def read(file: SourceFile) -> Trace:
    """Read the spans that are calls of a model.

    Raises:
        TraceError: see calls.py; or spans that are none.
    """
    file.use("resourceSpans", "spans", "attributes", "start_time", "startTimeUnixNano", "status", "trace_id", "traceId")
    file.use("span_count", "collected_at", "end_time", "endTimeUnixNano", "name", "kind", "span_id", "spanId")
    chat = ChatReader(file=file)
    calls: list[Call] = []
    num_other = 0
    for number, span in _spans(file):
        attributes = _attributes(span.get("attributes"))
        if _is_call(attributes):
            calls.append(_call(chat, number, span, attributes))
        else:
            num_other += 1
    notes = chat.notes()
    if num_other:
        text = "spans that are no call of a model (agents, tools, other work) were left out"
        notes = (*notes, Note(code="other_spans", count=num_other, text=text))
    return trace_of("otel", file, calls, notes)


def _spans(file: SourceFile) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, row in json_rows(file):
        for span in _spans_of(file, number, row):
            if not isinstance(span, dict):
                raise file.error(number, f"{shown(span)} is no span")
            yield number, span


def _spans_of(file: SourceFile, number: int, row: Mapping[str, Any]) -> Iterator[Any]:
    if "resourceSpans" in row:
        for resource in _list(file, number, "resourceSpans", row["resourceSpans"]):
            for scope in _list(file, number, "scopeSpans", resource.get("scopeSpans", [])):
                yield from _list(file, number, "spans", scope.get("spans", []))
    elif "spans" in row:
        yield from _list(file, number, "spans", row["spans"])
    else:
        yield row


def _list(file: SourceFile, number: int, name: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise file.error(number, f"{name} is {shown(value)}; a list of objects is expected")
    return value


def _attributes(value: Any) -> dict[str, Any]:
    """Attributes as a dict, from a dict or from OTLP's ``[{"key", "value": {"stringValue": ...}}]``."""
    if isinstance(value, dict):
        return value
    pairs = [item for item in value if isinstance(item, dict) and "key" in item] if isinstance(value, list) else []
    return {str(item["key"]): _any_value(item.get("value")) for item in pairs}


def _any_value(value: Any) -> Any:
    if not isinstance(value, dict) or len(value) != 1:
        return value
    kind, inside = next(iter(value.items()))
    if kind == "intValue":  # OTLP writes 64-bit numbers as text
        return int(inside) if isinstance(inside, str) and inside.lstrip("-").isdigit() and len(inside) < 25 else inside
    if kind == "arrayValue" and isinstance(inside, dict):
        return [_any_value(item) for item in inside.get("values", [])]
    if kind == "kvlistValue" and isinstance(inside, dict):
        return _attributes(inside.get("values"))
    return inside


def _is_call(attributes: Mapping[str, Any]) -> bool:
    operation = attributes.get("gen_ai.operation.name")
    if operation is not None:
        return operation in WRITES
    return any(key.startswith(CALL_MARKS) for key in attributes)


def _call(chat: ChatReader, number: int, span: Mapping[str, Any], attributes: Mapping[str, Any]) -> Call:
    status = span.get("status")
    code = status.get("code", status.get("status_code")) if isinstance(status, dict) else None
    call = Call(
        row=number,
        time_ns=_start(chat.file, number, span),
        input_tokens=_count(chat.file, number, attributes, "input_tokens", "prompt_tokens"),
        output_tokens=_count(chat.file, number, attributes, "output_tokens", "completion_tokens"),
        session=_session(span, attributes),
        failed=code in ERRORS or "error.type" in attributes,
    )
    if call.failed:
        return call
    messages = _messages(chat, number, attributes)
    answer = _answer(chat, number, attributes)
    limit = attributes.get("gen_ai.request.max_tokens")
    if call.output_tokens is None and answer is None and limit is not None:
        call = replace(call, output_tokens=count_of(chat.file, number, "gen_ai.request.max_tokens", limit))
    return call if messages is None else replace(call, messages=messages, answer=answer)


def _start(file: SourceFile, number: int, span: Mapping[str, Any]) -> int:
    if "startTimeUnixNano" in span:
        return instant_ns(file, number, "startTimeUnixNano", span["startTimeUnixNano"], units_per_s=NS_PER_S)
    return instant_ns(file, number, "start_time", span.get("start_time"))


def _count(file: SourceFile, number: int, attributes: Mapping[str, Any], *names: str) -> int | None:
    keys = [f"gen_ai.usage.{name}" for name in names]
    return next((count_of(file, number, key, attributes[key]) for key in keys if key in attributes), None)


def _session(span: Mapping[str, Any], attributes: Mapping[str, Any]) -> str:
    named = attributes.get("gen_ai.conversation.id")
    if named is None:
        named = next((value for key, value in attributes.items() if key.endswith("session.id")), None)
    context = span.get("context")
    inside = context.get("trace_id") if isinstance(context, dict) else None
    return name_of(named) or name_of(span.get("traceId", span.get("trace_id", inside)))


def _messages(chat: ChatReader, number: int, attributes: Mapping[str, Any]) -> Messages | None:
    given = parsed(attributes.get("gen_ai.input.messages"))
    if given is None:
        given = _indexed(attributes, "prompt")
    if not given:
        return None
    system = parsed(attributes.get("gen_ai.system_instructions"))
    if system and isinstance(given, list):
        given = [{"role": "system", "content": system}, *given]
    tools = parsed(attributes.get("gen_ai.tool.definitions"))
    return chat.messages(number, given, tools=tools, name="gen_ai.input.messages")


def _answer(chat: ChatReader, number: int, attributes: Mapping[str, Any]) -> str | None:
    for key in ("gen_ai.output.messages", "gen_ai.output.text"):
        if attributes.get(key):
            return answer_of(chat, number, attributes[key])
    return answer_of(chat, number, _indexed(attributes, "completion"))


def _indexed(attributes: Mapping[str, Any], side: str) -> list[dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for key, value in attributes.items():
        match = INDEXED.match(key)
        if match is not None and match[1] == side:
            default = {"role": "user" if side == "prompt" else "assistant"}
            found.setdefault(int(match[2]), default)[match[3]] = value
    return [found[i] for i in sorted(found)]
