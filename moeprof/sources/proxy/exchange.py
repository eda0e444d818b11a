"""One request on its way: when what passed, on both sides; and the row that it becomes. All times in seconds."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from moeprof.sources.formats.recording import CLIENT_LEFT
from moeprof.sources.proxy.answers import MAX_KEPT, Answer
from moeprof.sources.proxy.prompts import Salt, prompt_columns

UNREACHABLE, BROKEN = "upstream_unreachable", "upstream_disconnect"
STOPPED, OUR_FAULT = "proxy_stopped", "proxy_error"
ENDPOINTS = ("chat/completions", "completions")
DIGITS = 6  # of seconds: microseconds
clock = time.monotonic


def endpoint_of(method: str, path: str) -> str | None:
    """Which of the recorded endpoints a request asks for, or None."""
    path = path.rstrip("/")
    if method != "POST":
        return None
    return next((name for name in ENDPOINTS if path.endswith(f"/{name}")), None)


@dataclass(slots=True, kw_only=True)
class Exchange:
    """What is known of a request so far.

    Attributes:
        endpoint: ``completions`` or ``chat/completions``.
        arrival: when its head had been read, on the process's clock.
        session: the session's header.
        keep_text: write prompt and output.
        forwarded: when the last byte of the request had been passed on.
        upstream_first, upstream_last: when the first and last byte of the answer's body was read.
        client_first, client_last: when it had been handed to the client's socket.
        first_output: when the first chunk with output was read (a chat's first chunk often names the role only).
        answer: the answer as far as it came.
        body_left: bytes of the answer's body that are still to come, where its head said how many there are.
        whole: all of the answer passed.
        ended: why it ended, where it is known to be broken.
    """

    endpoint: str
    session: str | None
    keep_text: bool
    arrival: float = field(default_factory=clock)
    forwarded: float | None = None
    upstream_first: float | None = None
    upstream_last: float | None = None
    client_first: float | None = None
    client_last: float | None = None
    first_output: float | None = None
    answer: Answer | None = None
    body_left: int | None = None
    whole: bool = False
    ended: str | None = None
    _body: bytearray = field(default_factory=bytearray)
    _unread: list[tuple[bytes, float]] = field(default_factory=list)

    def on_request(self, piece: bytes) -> None:
        """A piece of the request's body passed."""
        if len(self._body) <= MAX_KEPT:
            self._body += piece
        self.forwarded = clock()

    def on_answer(self, piece: bytes, read: float, sent: float) -> bool:
        """A piece of the answer was read and has been handed on; True where ``look`` is to be called soon."""
        if self.upstream_first is None:
            self.upstream_first, self.client_first = read, sent
        self.upstream_last, self.client_last = read, sent
        if self.body_left is not None:  # a client that counts may go when it has the last byte
            self.body_left -= len(piece)
            self.whole = self.whole or self.body_left <= 0
        self._unread.append((piece, read))
        return len(self._unread) == 1

    def look(self) -> None:
        """Read the pieces that have passed."""
        assert self.answer is not None
        for piece, read in self._unread:
            if self.answer.feed(piece) and self.first_output is None:
                self.first_output = read
        self._unread.clear()

    def left(self, ended: str) -> None:
        """It was broken off; the first reason counts, and none after the whole answer had passed."""
        if self.answer is not None:
            self.look()
            self.whole = self.whole or self.answer.finished
        if self.ended is None and not self.whole:
            self.ended = ended

    def row(self, start: float, salt: Salt) -> dict[str, Any]:
        """The line of the recording; times of the exchange count from its arrival."""
        row: dict[str, Any] = {"arrival_s": round(self.arrival - start, DIGITS), "endpoint": self.endpoint}
        if self.answer is not None:
            self.look()
            self.answer.close()
        row["status"] = self.ended or (OUR_FAULT if self.answer is None else self.answer.status())
        row |= prompt_columns(bytes(self._body), salt, session=self.session, keep_text=self.keep_text)
        if self.answer is not None:
            row |= self.answer.columns()
        for name in ("forwarded", "upstream_first", "upstream_last", "first_output", "client_first", "client_last"):
            moment = getattr(self, name)
            if moment is not None:
                row[f"{name}_s"] = round(moment - self.arrival, DIGITS)
        if row["status"] == CLIENT_LEFT:
            row.pop("output", None)  # the text stopped where its reader did
        return row
