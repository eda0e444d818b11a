"""A server that costs nothing: streams tokens made beforehand, as fast as they are taken or one every so often.

Run as a file in a process of its own (no import of ours), so that it takes nothing from the client that it tests:
``python loopback.py`` prints its port and ends when its input is closed. The request's ``model`` says what it does:
``flood``, or ``paced:GAP_S``, or ``paced:GAP_S:FIRST_S`` for another time to the first token. Each event has the
server's clock (the system's monotonic one) as ``stamp``.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = (
    'data: {"id":"cmpl-0123456789abcdef0123456789abcdef","object":"text_completion","created":1700000000,'
    '"model":"loopback","choices":[{"index":0,"text":" token","logprobs":null,"finish_reason":null,'
    '"stop_reason":null,"token_ids":null}],"stamp":%.7f,"usage":{"prompt_tokens":16,"total_tokens":%d,'
    '"completion_tokens":%d}}\n\n'
)
DONE = b"data: [DONE]\n\n"
FLOOD_BLOCK = 16  # events in one write of a flood; the socket's buffer bounds it


def chunk(data: bytes) -> bytes:
    """As HTTP frames it."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(number: int) -> bytes:
    """The event of a token, counted from 1."""
    return (EVENT % (time.perf_counter(), 16 + number, number)).encode()


class Connection(asyncio.Protocol):
    """One client; requests come one after the other."""

    def __init__(self) -> None:
        self._held = b""
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: Any) -> None:
        """Keep it."""
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        """Stop what is under way."""
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        """The client is slower than we are."""
        self._may_write.clear()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._may_write.set()

    def data_received(self, data: bytes) -> None:
        """Answer once a request is whole."""
        self._held += data
        head, found, rest = self._held.partition(b"\r\n\r\n")
        if not found:
            return
        length = next(
            (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        if len(rest) < length:
            return
        self._held = rest[length:]
        if head.startswith(b"GET"):
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            return
        self._task = asyncio.get_running_loop().create_task(self._answer(json.loads(rest[:length])))

    async def _answer(self, asked: dict[str, Any]) -> None:
        what, _, gap = asked["model"].partition(":")
        self._transport.write(HEAD)
        if what == "flood":
            await self._flood(asked["max_tokens"])
        else:
            gap_s, _, first_s = gap.partition(":")
            await self._pace(asked["max_tokens"], float(gap_s), float(first_s or gap_s))
        self._transport.write(chunk(DONE) + b"0\r\n\r\n")

    async def _flood(self, num: int) -> None:
        for start in range(1, num + 1, FLOOD_BLOCK):
            block = b"".join(chunk(event(start + i)) for i in range(min(FLOOD_BLOCK, num + 1 - start)))
            await self._may_write.wait()
            self._transport.write(block)
            await asyncio.sleep(0)

    async def _pace(self, num: int, gap_s: float, first_s: float) -> None:
        """At fixed times from the start, so that a late event does not make the next ones late."""
        start_s = time.perf_counter()
        for number in range(1, num + 1):
            await asyncio.sleep(max(0.0, start_s + first_s + (number - 1) * gap_s - time.perf_counter()))
            self._transport.write(chunk(event(number)))


async def serve() -> None:
    """Until the input is closed."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Connection, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


def main() -> None:
    """In the fastest loop that is installed."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(serve())
    else:
        uvloop.run(serve())


if __name__ == "__main__":
    main()
