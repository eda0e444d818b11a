"""Traces in the forms of other tools, and what such a form cannot hold.

What is written is read again with the form's own reader and compared, field by field: what came back different is what
the form does not hold. So a loss is found wherever it arises, and none is claimed that is none.

    moeprof     our JSON lines (jsonl.py), which hold all
    mooncake    timestamp (ms), input_length, output_length, hash_ids
    aiperf      the same, or text_input or messages, with session_id and delay
    evalscope   body (a request), timestamp (s), completion_tokens; texts only
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from moeprof.core.errors import TraceError
from moeprof.core.trace import NO_SESSION, Trace
from moeprof.core.turns import NONE
from moeprof.sources.formats import jsonl
from moeprof.sources.formats.file import Reading
from moeprof.sources.formats.turns import TEXTS_JOINED_BY

Form = Literal["moeprof", "mooncake", "aiperf", "evalscope"]
FIELDS = {
    "arrival_s": "arrival times",
    "input_tokens": "prompt lengths",
    "output_tokens": "output lengths",
    "request_class": "request classes",
    "session": "sessions",
    "delay_s": "delays after the previous answer",
    "prefix_blocks": "prefix ids",
    "prompt_text": "prompts' text",
    "messages": "chat messages",
    "output_text": "answers' text",
    "waits": "which answer a turn waits for",
}
STATED = "whether prompts are whole or what turns add"
CLOCK_S = 1e-9  # forms whose reader counts in nanoseconds
MS_PER_S = 1000.0


def write_form(trace: Trace, path: Path, form: Form, *, force: bool, allow_loss: bool) -> dict[str, int]:
    """Write a trace in a form; what the form did not hold, as field and number of requests.

    Raises:
        TraceError: the file is already there (without ``force``) or cannot be written, the form cannot hold such a
            trace at all, or it does not hold everything (without ``allow_loss``).
    """
    from moeprof.sources.formats import read_trace

    if path.exists() and not force:
        raise TraceError(f"{path}: already there; --force overwrites it")
    part = path.with_name(path.name + ".part")
    how = Reading(
        timestamp_unit="ms" if form in ("mooncake", "aiperf") and _has_times(trace) else None,
        block_tokens=trace.prefix_block_tokens if form in ("mooncake", "aiperf") else None,
    )
    try:
        with part.open("x", encoding="utf-8", newline="\n") as out:
            out.writelines(line + "\n" for line in LINES[form](trace))
        try:
            again = read_trace(part, "jsonl" if form == "moeprof" else form, how)
        except TraceError as error:
            reason = str(error).removeprefix(f"{part}:")
            raise TraceError(f"{path}: the {form} form cannot hold this trace (row{reason})") from error
        lost = losses(trace, again)
        if lost and not allow_loss:
            named = ", ".join(
                f"{FIELDS.get(name, STATED if name == 'stated' else name)} ({number:,})"
                for name, number in lost.items()
            )
            raise TraceError(f"{path}: the {form} form does not hold {named}; --allow-loss writes it without")
        part.replace(path)
    except OSError as error:
        raise TraceError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        part.unlink(missing_ok=True)
    return lost


def losses(before: Trace, after: Trace) -> dict[str, int]:
    """Field to the number of requests for which it came back different; empty where all came back.

    Requests that are due at one time may come back in another order only if nothing tells them apart.
    """
    if len(before) != len(after):
        return {"requests": abs(len(before) - len(after))}
    lost = {name: _num_different(getattr(before, name), getattr(after, name)) for name in FIELDS}
    if before.prefix_blocks is not None and before.prefix_block_tokens != after.prefix_block_tokens:
        lost["prefix_blocks"] = len(before)
    if before.prompt_text is not None or before.messages is not None:
        lost["stated"] = len(before) * (before.stated != after.stated)
    lost["waits"] *= not lost["session"]  # with its session a turn loses what it waits for
    return {name: number for name, number in lost.items() if number}


def _num_different(before: Any, after: Any) -> int:
    if isinstance(before, np.ndarray) or isinstance(after, np.ndarray):
        left, right = (np.nan if column is None else np.asarray(column, dtype=np.float64) for column in (before, after))
        same = np.isclose(left, right, rtol=0, atol=CLOCK_S, equal_nan=True)
        return int(np.size(same) - np.count_nonzero(same))
    return sum(a != b for a, b in _pairs(before, after))


def _pairs(before: Sequence[Any] | None, after: Sequence[Any] | None) -> Iterator[tuple[Any, Any]]:
    """Values side by side; an empty one is none."""
    number = len(before if before is not None else after if after is not None else ())
    nothing = (None,) * number
    for a, b in zip(nothing if before is None else before, nothing if after is None else after, strict=True):
        yield a or None, b or None


def _mooncake(trace: Trace) -> Iterator[str]:
    _need_lengths(trace, "mooncake")
    for i in range(len(trace)):
        yield json.dumps(_stamp(trace, i) | _lengths(trace, i))


def _aiperf(trace: Trace) -> Iterator[str]:
    sessions = trace.session or (NO_SESSION,) * len(trace)
    if trace.prompt_text is None and trace.messages is None:
        _need_lengths(trace, "aiperf")
    for i, waits in enumerate(trace.waits.tolist()):
        previous = None if waits == NONE else waits
        row: dict[str, Any] = {"session_id": sessions[i]} if sessions[i] != NO_SESSION else {}
        row |= _stamp(trace, i)
        if trace.delay_s is not None and not math.isnan(trace.delay_s[i]):
            row["delay"] = _milliseconds(float(trace.delay_s[i]))
        if trace.messages is not None:
            row["messages"] = _chat(trace, i)
        elif trace.prompt_text is not None and trace.prompt_text[i]:
            row |= _text_row(trace, trace.prompt_text, i, previous)
        else:
            row |= _lengths(trace, i) if trace.prefix_blocks is not None else _additions(trace, i, previous)
        if trace.output_tokens[i] >= 0:
            row["output_length"] = int(trace.output_tokens[i])
        yield json.dumps(row, ensure_ascii=False)


def _text_row(trace: Trace, texts: Sequence[str], i: int, previous: int | None) -> dict[str, Any]:
    """What a turn adds; a later turn whose whole prompt is known, as one message."""
    if previous is None:
        return {"text_input": texts[i]}
    if trace.stated == "added":
        return {"text_input": texts[i].removeprefix(TEXTS_JOINED_BY)}
    return {"messages": [{"role": "user", "content": texts[i]}]}


def _additions(trace: Trace, i: int, previous: int | None) -> dict[str, Any]:
    """Lengths without ids, which AIPerf takes as what a turn adds to its session's context."""
    length = int(trace.input_tokens[i])
    if previous is not None:
        length -= int(trace.input_tokens[previous]) + max(0, int(trace.output_tokens[previous]))
    return {"input_length": max(0, length)}


def _evalscope(trace: Trace) -> Iterator[str]:
    if trace.prompt_text is None and trace.messages is None:
        raise TraceError("the evalscope form holds requests with their text; this trace has lengths alone")
    for i in range(len(trace)):
        prompt = "" if trace.prompt_text is None else trace.prompt_text[i]
        body = {"messages": _chat(trace, i)} if trace.messages is not None else {"prompt": prompt}
        row: dict[str, Any] = {"request_id": str(i), "timestamp": float(trace.arrival_s[i]), "body": body}
        if trace.output_tokens[i] >= 0:
            row["completion_tokens"] = int(trace.output_tokens[i])
        yield json.dumps(row, ensure_ascii=False)


LINES: dict[str, Callable[[Trace], Iterator[str]]] = {
    "moeprof": jsonl.lines,
    "mooncake": _mooncake,
    "aiperf": _aiperf,
    "evalscope": _evalscope,
}


def _need_lengths(trace: Trace, form: str) -> None:
    if (trace.input_tokens < 0).any() or (trace.output_tokens < 0).any():
        raise TraceError(f"the {form} form holds lengths; this trace has requests whose length is not known")


def _has_times(trace: Trace) -> bool:
    return bool((trace.arrival_s > 0).any())


def _stamp(trace: Trace, i: int) -> dict[str, Any]:
    return {"timestamp": _milliseconds(float(trace.arrival_s[i]))} if _has_times(trace) else {}


def _milliseconds(seconds: float) -> int | float:
    """Milliseconds that come back as the same seconds: whole where they are, else the next double that does."""
    product = seconds * MS_PER_S
    for value in (
        float(round(product)),
        product,
        math.nextafter(product, math.inf),
        math.nextafter(product, -math.inf),
    ):
        if value / MS_PER_S == seconds:
            return int(value) if value.is_integer() else value
    return product


def _lengths(trace: Trace, i: int) -> dict[str, Any]:
    row: dict[str, Any] = {"input_length": int(trace.input_tokens[i]), "output_length": int(trace.output_tokens[i])}
    if trace.prefix_blocks is not None:
        row["hash_ids"] = list(trace.prefix_blocks[i])
    return row


def _chat(trace: Trace, i: int) -> list[dict[str, str]]:
    """The messages of a request, and its answer as the last one where it is known."""
    assert trace.messages is not None
    said = [{"role": role, "content": content} for role, content in trace.messages[i]]
    answer = trace.output_text[i] if trace.output_text is not None else None
    return [*said, {"role": "assistant", "content": answer}] if answer else said
