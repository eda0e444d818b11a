"""A streamed answer, read as it comes. Chunks are never tokens.

How many tokens a chunk brought is said by the ids it returns, or by the usage that it carries. A server that tells its
usage only at the end leaves the tokens of a chunk unknown: where it sent as many chunks with output as tokens, each is
taken for one; else it is known when the first and the last token came, and no time between them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from moeprof.capture.engines.base import Told
from moeprof.sources.proxy.answers import SHORT_WORD, short_word

MAX_REST = 16 * 2**20  # of an event that has not ended: an image of text that no server of tokens sends
ANSWER, REASONING = ("content", "tool_calls", "function_call", "refusal"), ("reasoning_content", "reasoning")
BAD_ANSWER, STREAM_ERROR, CUT_SHORT, NO_USAGE = "bad answer", "error in the stream", "cut short", "no usage"
TokensFrom = Literal["ids", "usage", "usage at the end"]


def json_reader() -> Callable[[bytes], Any]:
    """The fastest there is; both raise a ValueError."""
    try:
        import orjson
    except ImportError:
        return json.loads
    read: Callable[[bytes], Any] = orjson.loads
    return read


class Lines:
    """Bytes in pieces of any size; the data of each whole event (server-sent events: comments and names left out)."""

    def __init__(self) -> None:
        self._rest, self._data = b"", list[bytes]()

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The data of events that end in this piece."""
        rest = self._rest + piece
        if b"\r" in rest:
            held = rest.endswith(b"\r")  # half of an end of line, maybe
            rest = rest[: len(rest) - held].replace(b"\r\n", b"\n").replace(b"\r", b"\n") + b"\r" * held
        *lines, self._rest = rest.split(b"\n")
        if len(self._rest) > MAX_REST:
            raise ValueError("an event without end")
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(line[5:].strip())
            elif not line and self._data:
                yield self._take()

    def close(self) -> Iterator[bytes]:
        """What stood at the end of the body without an empty line after it."""
        yield from self.feed(b"\n\n")

    def _take(self) -> bytes:
        whole = b"\n".join(self._data)
        self._data.clear()
        return whole


@dataclass(slots=True)
class Answer:
    """One answer so far.

    Attributes:
        read: reads JSON.
        first_s, last_s: when the first and the latest chunk with output came.
        first_answer_s: when the first came that was no reasoning.
        tokens: output tokens known so far.
        chunks: chunks with output.
        uncounted: of these, chunks whose tokens are not known, and when each came.
        total: output tokens that the server told.
        failed: kind of the failure, and a short word of the server's.
    """

    read: Callable[[bytes], Any]
    lines: Lines
    first_s: float | None = None
    last_s: float | None = None
    first_answer_s: float | None = None
    tokens: int = 0
    chunks: int = 0
    uncounted: list[float] = field(default_factory=list)
    total: int | None = None
    input_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    finish_reason: str | None = None
    complete: bool = False
    failed: tuple[str, str] | None = None

    def feed(self, piece: bytes, now_s: float) -> int:
        """Take a piece; how many tokens it is known to have brought."""
        return sum(self._event(data, now_s) for data in self.lines.feed(piece))

    def close(self, now_s: float) -> int:
        """The body is over."""
        num = sum(self._event(data, now_s) for data in self.lines.close())
        if self.failed is None and not self.complete:
            self.failed = (CUT_SHORT, "")
        elif self.failed is None and self.total is None and self.uncounted:
            self.failed = (NO_USAGE, "")
        return num

    def late_tokens(self) -> tuple[list[float], bool]:
        """Times of tokens that no chunk counted, once the stream has ended; False: only first and last are times."""
        missing = (self.total or 0) - self.tokens
        if not self.uncounted or missing <= 0:
            return [], True
        if len(self.uncounted) == missing:
            return self.uncounted, True
        return [self.uncounted[0]] + [self.uncounted[-1]] * (missing - 1), missing == 1

    def told(self, sent_s: float | None, *, token_times: bool) -> Told:
        """What the server said of the request."""
        return Told(
            sent_s=sent_s, first_answer_s=self.first_answer_s, input_tokens=self.input_tokens,
            reasoning_tokens=self.reasoning_tokens, chunks=self.chunks, finish_reason=self.finish_reason,
            token_times=token_times,
        )  # fmt: skip

    def _event(self, data: bytes, now_s: float) -> int:
        if data == b"[DONE]":
            self.complete = True
            return 0
        try:
            event = self.read(data)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            self.failed = self.failed or (BAD_ANSWER, "no JSON object")
            return 0
        if event.get("error") or event.get("object") == "error":
            self.failed = self.failed or (STREAM_ERROR, short_word(event.get("error") or event))
            return 0
        choices, usage = event.get("choices"), event.get("usage")
        num, has_output = self._choice(choices[0], now_s) if choices else (0, False)
        if usage:
            told = self._usage(usage)
            if num is None and told is not None and not self.uncounted:
                num = max(0, told - self.tokens)
        if num is None and has_output:
            self.uncounted.append(now_s)
        if num or has_output:
            self.first_s = now_s if self.first_s is None else self.first_s
            self.last_s = now_s
        self.tokens += num or 0
        return num or 0

    def _choice(self, choice: Any, now_s: float) -> tuple[int | None, bool]:
        """Tokens by returned ids (None: it has none), and whether it held output."""
        reason = choice.get("finish_reason")
        if reason is not None:
            self.complete = True
            self.finish_reason = reason if SHORT_WORD.fullmatch(str(reason)) else "other"
        held = choice.get("delta")
        if isinstance(held, dict):
            is_answer = any(held.get(key) for key in ANSWER)
            has_output = is_answer or any(held.get(key) for key in REASONING)
        else:
            has_output = is_answer = bool(choice.get("text"))
        if is_answer and self.first_answer_s is None:
            self.first_answer_s = now_s
        self.chunks += has_output
        ids = choice.get("token_ids")
        return (len(ids) if isinstance(ids, list) else None), has_output

    def _usage(self, usage: dict[str, Any]) -> int | None:
        """Takes the counts; the last one told counts, because they are cumulative."""
        total = _count(usage.get("completion_tokens"))
        self.total = total if total is not None else self.total
        found = _count(usage.get("prompt_tokens"))
        self.input_tokens = found if found is not None else self.input_tokens
        for section, key, name in (
            ("prompt_tokens_details", "cached_tokens", "cached_tokens"),
            ("completion_tokens_details", "reasoning_tokens", "reasoning_tokens"),
        ):
            details = usage.get(section)
            count = _count(details.get(key)) if isinstance(details, dict) else None
            if count is not None:
                setattr(self, name, count)
        return total


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 2**31 else None
