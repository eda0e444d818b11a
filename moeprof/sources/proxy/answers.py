"""What is kept of an answer: how it ended, what usage the server told, and how many chunks carried output.

Chunks are never called tokens: a server may put several tokens into one chunk (incomplete UTF-8, speculation) or none.
"""

from __future__ import annotations

import re
from typing import Any

from moeprof.sources.formats.recording import OK
from moeprof.sources.proxy.prompts import encoded, parsed

MAX_KEPT = 64 * 2**20  # bytes of a body that are kept to be read; a longer one is forwarded all the same
SHORT_WORD = re.compile(r"[\w.:-]{1,64}", re.ASCII)
OUTPUT_KEYS = ("content", "reasoning_content", "reasoning", "tool_calls", "function_call", "refusal", "audio")
USAGE_KEYS = {"prompt_tokens": "input_tokens", "completion_tokens": "output_tokens"}
DETAIL_KEYS = {
    ("prompt_tokens_details", "cached_tokens"): "cached_tokens",
    ("completion_tokens_details", "reasoning_tokens"): "reasoning_tokens",
}
HTTP_ERROR, STREAM_ERROR, CUT_SHORT = "http_error", "stream_error", "cut_short"


class Answer:
    """Reads a body as it passes, a stream of events or one JSON object.

    Attributes:
        chunks: events that carried output.
        finished: the stream said that it is complete.
        error: a short word of the server's about an error, never its message (which may quote the prompt).
    """

    def __init__(self, http_status: int, content_type: str, *, keep_text: bool) -> None:
        self.http_status = http_status
        self.streamed = content_type.startswith("text/event-stream")
        self.chunks = 0
        self.finished = False
        self.error: str | None = None
        self._finish_reason: str | None = None
        self._usage: dict[str, int] = {}
        self._rest = bytearray()
        self._data: list[bytes] = []
        self._lost = False
        self._text: list[str] | None = [] if keep_text else None

    def feed(self, piece: bytes) -> bool:
        """Take a piece; True where it held output (of a stream only)."""
        if self._lost:
            return False
        self._rest += piece
        if len(self._rest) > MAX_KEPT:
            self._lost = True
            self._rest.clear()
            return False
        if not self.streamed:
            return False
        before = self.chunks
        *lines, rest = self._rest.split(b"\n")
        self._rest = rest
        for line in lines:
            self._line(bytes(line).removesuffix(b"\r"))
        return self.chunks > before

    def close(self) -> None:
        """The body is over, whole or not."""
        if self.streamed:
            self._line(bytes(self._rest))
            self._line(b"")
        elif (whole := parsed(bytes(self._rest))) is not None:
            self._object(whole)
            self.finished = True
        self._rest.clear()

    def _line(self, line: bytes) -> None:
        if line.startswith(b"data:"):
            self._data.append(line[5:].strip())
        elif not line and self._data:
            data = b"\n".join(self._data)
            self._data.clear()
            if data == b"[DONE]":
                self.finished = True
            elif (event := parsed(data)) is not None:
                self._object(event)

    def _object(self, event: dict[str, Any]) -> None:
        if event.get("error"):
            self.error = short_word(event["error"])
        elif event.get("object") == "error":
            self.error = short_word(event)
        usage = event.get("usage")
        if isinstance(usage, dict):
            self._take_usage(usage)
        choices = event.get("choices")
        choices = [c for c in choices if isinstance(c, dict)] if isinstance(choices, list) else []
        texts = [text for choice in choices for text in self._output_of(choice)]
        self.chunks += bool(texts)
        if self._text is not None:
            # Calls of tools and reasoning are output, but no text that a model could be made to continue with.
            if len(choices) > 1 or None in texts:
                self._text = None
            else:
                self._text += [text for text in texts if text is not None]

    def _output_of(self, choice: dict[str, Any]) -> list[str | None]:
        """Output in a choice: its text, or None for output that is not plain text."""
        reason = choice.get("finish_reason")
        if isinstance(reason, str):
            self.finished = True
            self._finish_reason = reason if SHORT_WORD.fullmatch(reason) else "other"
        held = choice.get("delta") or choice.get("message")
        if isinstance(held, dict):
            found = [(key, held[key]) for key in OUTPUT_KEYS if held.get(key)]
            return [value if key == "content" and isinstance(value, str) else None for key, value in found]
        text = choice.get("text")
        return [text] if isinstance(text, str) and text else []

    def _take_usage(self, usage: dict[str, Any]) -> None:
        """The last usage counts: servers that tell it with every chunk tell it cumulatively."""
        for key, name in USAGE_KEYS.items():
            if _count(usage.get(key)):
                self._usage[name] = usage[key]
        for (section, key), name in DETAIL_KEYS.items():
            details = usage.get(section)
            if isinstance(details, dict) and _count(details.get(key)):
                self._usage[name] = details[key]

    def status(self) -> str:
        """How the exchange ended, where nobody broke it off."""
        if self.http_status != 200:
            return HTTP_ERROR
        if self.error is not None:
            return STREAM_ERROR
        return OK if self.finished or self._lost else CUT_SHORT

    def columns(self) -> dict[str, Any]:
        """The keys of a row that come from the answer."""
        row: dict[str, Any] = {"http_status": self.http_status, "stream": self.streamed, **self._usage}
        row["tokens_from"] = "usage" if "output_tokens" in self._usage else None
        if self.streamed:
            row["output_chunks"] = self.chunks
        for key, value in (("finish_reason", self._finish_reason), ("error", self.error)):
            if value is not None:
                row[key] = value
        if self._text and not self._lost:
            row["output"] = encoded("".join(self._text)).decode()
        return row


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def short_word(error: Any) -> str:
    """The code or type of an error."""
    if isinstance(error, dict):
        for key in ("code", "type"):
            word = str(error.get(key))
            if error.get(key) is not None and SHORT_WORD.fullmatch(word):
                return word
    return "error"
