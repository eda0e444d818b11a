"""Amazon SageMaker's data capture: ``{"captureData": {"endpointInput", "endpointOutput"}, "eventMetadata"}`` a line.

Bodies stand there as text (``encoding`` JSON or CSV) or in base64. They are read as OpenAI's (``messages``, ``prompt``)
or the text-generation containers' (``inputs``, ``parameters.max_new_tokens``, ``generated_text``), whole or streamed as
server-sent events.
Source: https://docs.aws.amazon.com/sagemaker/latest/dg/model-monitor-data-capture-endpoint.html
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moeprof.core.trace import Trace
from moeprof.sources.formats.calls import Call, inner, instant_ns, name_of, trace_of
from moeprof.sources.formats.chat import ChatReader, answer_of, parsed
from moeprof.sources.formats.columns import shown
from moeprof.sources.formats.file import SourceFile, json_rows
from moeprof.sources.formats.openai import BodyReader, usage_of

EVENT_MARK = "data:"


def matches(file: SourceFile) -> bool:
    """True when captured data stands beside event metadata."""
    return file.keys >= {"captureData", "eventMetadata"}


def read(file: SourceFile) -> Trace:
    """Read captured requests and answers; ``inferenceId`` is no session, so there are none.

    Raises:
        TraceError: see calls.py; or a body that cannot be read.
    """
    file.use("captureData", "eventMetadata", "eventVersion")
    bodies = BodyReader(chat=ChatReader(file=file))
    calls = [_call(bodies, number, row) for number, row in json_rows(file)]
    return trace_of("sagemaker", file, calls, bodies.notes())


def _call(bodies: BodyReader, number: int, row: Mapping[str, Any]) -> Call:
    file = bodies.chat.file
    time_ns = instant_ns(file, number, "inferenceTime", inner(row, "eventMetadata", "inferenceTime"))
    body = parsed(_data(file, number, row, "endpointInput"))
    if not isinstance(body, dict):
        raise file.error(number, f"endpointInput.data is {shown(body)}; a JSON body with a prompt is expected")
    if isinstance(body.get("parameters"), dict):
        body = body["parameters"] | body
    response = _response(_data(file, number, row, "endpointOutput"))
    answer = answer_of(bodies.chat, number, response)
    num_input, num_output = usage_of(file, number, inner(response, "usage") if isinstance(response, dict) else None)
    call = bodies.call(number, body, answer)
    return replace(
        call,
        time_ns=time_ns,
        input_tokens=num_input if call.input_tokens is None else call.input_tokens,
        output_tokens=call.output_tokens if num_output is None else num_output,
        session=name_of(body.get("session_id")),
    )


def _data(file: SourceFile, number: int, row: Mapping[str, Any], side: str) -> Any:
    data = inner(row, "captureData", side, "data")
    if inner(row, "captureData", side, "encoding") != "BASE64":
        return data
    try:
        return base64.b64decode(str(data), validate=True).decode("utf-8")
    except (binascii.Error, ValueError) as error:
        raise file.error(number, f"{side}.data is no text in base64 ({shown(data)})") from error


def _response(data: Any) -> Any:
    """A response as one object; the pieces of a streamed one are put together."""
    if not isinstance(data, str) or EVENT_MARK not in data[:200].replace(" ", ""):
        return parsed(data)
    said: list[str] = []
    usage = None
    for line in data.splitlines():
        event = parsed(line.removeprefix(EVENT_MARK).strip()) if line.startswith(EVENT_MARK) else None
        if not isinstance(event, dict):
            continue
        usage = event.get("usage") or usage
        choices = event.get("choices")
        first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        piece = inner(first, "delta", "content") or first.get("text") or inner(event, "token", "text")
        if isinstance(piece, str):
            said.append(piece)
    return {"generated_text": "".join(said), "usage": usage}
