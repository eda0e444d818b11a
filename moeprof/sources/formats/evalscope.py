"""evalscope's workload_trace: ``{"body", "timestamp", "headers", "request_id", "completion_tokens"}`` a line.

``body`` is a whole request (an object, or its JSON as text), ``timestamp`` seconds or ISO 8601, ``completion_tokens``
what the answer had, which is replayed.
Source: https://github.com/modelscope/evalscope/blob/main/evalscope/perf/plugin/datasets (workload_trace)
"""

from __future__ import annotations

from dataclasses import replace

from moeprof.core.trace import Trace
from moeprof.sources.formats.calls import Call, count_of, instant_ns, trace_of
from moeprof.sources.formats.chat import ChatReader, parsed
from moeprof.sources.formats.columns import shown
from moeprof.sources.formats.file import SourceFile, json_rows
from moeprof.sources.formats.openai import BodyReader


def matches(file: SourceFile) -> bool:
    """True when a body and a time stand side by side."""
    return file.keys >= {"body", "timestamp"}


def read(file: SourceFile) -> Trace:
    """Read a workload trace.

    Raises:
        TraceError: see calls.py; or a body that is none.
    """
    file.use("body", "timestamp", "completion_tokens", "request_id")
    bodies = BodyReader(chat=ChatReader(file=file))
    calls: list[Call] = []
    for number, row in json_rows(file):
        body = parsed(row.get("body"))
        if not isinstance(body, dict):
            raise file.error(number, f"body is {shown(row.get('body'))}; a JSON object is expected")
        stated = count_of(file, number, "completion_tokens", row.get("completion_tokens"))
        if stated is not None:
            body = {key: value for key, value in body.items() if not key.startswith("max_")}
        call = bodies.call(number, body)
        time_ns = instant_ns(file, number, "timestamp", row.get("timestamp"))
        calls.append(replace(call, time_ns=time_ns, output_tokens=call.output_tokens if stated is None else stated))
    return trace_of("evalscope", file, calls, bodies.notes())
