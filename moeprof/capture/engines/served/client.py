"""The client: an asynchronous loop on a thread of its own, behind ``submit`` and ``poll``.

A request that fails is told as failed, with the kind of failure first (``KINDS``); nothing is sent a second time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import aiohttp

from moeprof.capture.engines.base import ServedFacts, TokenEvent, TokenEvents, Told
from moeprof.capture.engines.served.events import (
    BAD_ANSWER,
    CUT_SHORT,
    NO_USAGE,
    STREAM_ERROR,
    Answer,
    Lines,
    json_reader,
)
from moeprof.capture.engines.served.probe import Server, session_for, why
from moeprof.capture.engines.served.settings import OpenAISettings
from moeprof.capture.engines.served.trial import PATHS, Dialect
from moeprof.core.trace import Request
from moeprof.sources.proxy.answers import short_word

T = TypeVar("T")
LIMITED, REFUSED, BROKEN_SERVER = "rate limited", "refused by the server", "server error"
DISCONNECTED, TIMEOUT, UNREACHABLE = "disconnected", "timed out", "not reachable"
KINDS = (
    LIMITED, REFUSED, BROKEN_SERVER, STREAM_ERROR, DISCONNECTED, CUT_SHORT, TIMEOUT, UNREACHABLE, NO_USAGE, BAD_ANSWER
)  # fmt: skip
MOST_WARM = 512  # connections that are opened before a pass
LAG_EVERY_S = 0.01
MAX_LAGS = 2_000_000
MAX_ERROR = 2**16
END_S = 10.0
clock = time.perf_counter


def run_fast(main: Coroutine[Any, Any, None]) -> None:
    """Run it in the fastest loop that is installed."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
        return
    uvloop.run(main)


class Client:
    """See ``ServedEngine``.

    Args:
        settings, server, dialect: whom it asks, and how.
        decode: makes text of ids, for servers that take text only.
        on_piece: sees what was read, and when.

    Attributes:
        facts: what it talks to.
        lag_s: how late the loop came back to a timer, since ``watch`` was last called.
        tokens: output tokens that have arrived, ever.
    """

    def __init__(
        self,
        settings: OpenAISettings,
        server: Server,
        dialect: Dialect,
        decode: Callable[[Sequence[int]], str],
        *,
        on_piece: Callable[[bytes, float], None] | None = None,
    ) -> None:
        self.facts = ServedFacts(kind=settings.kind, max_sequence_tokens=server.max_sequence_tokens)
        self.tokens = 0
        self.lag_s = array("d")
        self._settings, self._server, self._dialect, self._decode = settings, server, dialect, decode
        self._url = f"{server.url}/{PATHS[dialect.endpoint]}"
        self._read, self._on_piece = json_reader(), on_piece
        self._arrived: deque[TokenEvent] = deque()
        self._ended = threading.Condition()
        self._num_ended = 0
        self._tasks: dict[int, asyncio.Task[None]] = {}
        started: Future[None] = Future()
        self._thread = threading.Thread(target=run_fast, args=(self._serve(started),), daemon=True, name="client")
        self._thread.start()
        started.result()

    def submit(self, request: Request) -> None:
        """Send it now."""
        body = self._dialect.body(
            self._server.served_as, request.input_ids, request.output_tokens, self._decode,
            fixed=not request.stop_at_eos,
        )  # fmt: skip
        content = json.dumps(body, separators=(",", ":")).encode()
        self._loop.call_soon_threadsafe(self._start, request.index, content)

    def poll(self, wait_s: float) -> TokenEvents:
        """What has arrived, as soon as a request has ended; tokens alone may wait, because nobody acts on them."""
        with self._ended:
            self._ended.wait_for(lambda: self._num_ended > 0, wait_s)
            self._num_ended = 0
        return self._take()

    def drain(self) -> list[TokenEvents]:
        """What has arrived and was not told yet."""
        return [self._take()]

    def prepare(self, num_sequences: int, longest_tokens: int) -> int:
        """Open connections, so that no first token waits for one. Nothing is captured."""
        self._call(self._warm(min(num_sequences, MOST_WARM)))
        return 0

    def reset(self) -> None:
        """Break off what is still under way, and forget it."""
        self._call(self._break_off())
        self._arrived.clear()
        self._num_ended = 0

    def close(self) -> None:
        """End the loop and its connections."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._over.set)
            self._thread.join(END_S)

    def watch(self) -> None:
        """Forget what is known of the client's own lag."""
        self._call(self._forget_lag())

    @property
    def cpu_s(self) -> float | None:
        """Processor time of the client's thread; None where the system does not tell."""
        if not hasattr(time, "pthread_getcpuclockid") or self._thread.ident is None:
            return None
        return time.clock_gettime(time.pthread_getcpuclockid(self._thread.ident))

    # -- on the client's thread ------------------------------------------------------------------------------------

    async def _serve(self, started: Future[None]) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        try:
            async with session_for(self._settings, total_s=self._settings.request_timeout_s) as self._session:
                watching = asyncio.create_task(self._watch_lag())
                started.set_result(None)
                await self._over.wait()
                watching.cancel()
                await self._break_off()
        except Exception as error:
            if not started.done():
                started.set_exception(error)
            raise

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _take(self) -> TokenEvents:
        found = []
        while self._arrived:
            found.append(self._arrived.popleft())
        return TokenEvents(events=tuple(found))

    def _start(self, index: int, content: bytes) -> None:
        task = self._loop.create_task(self._answer(index, content))
        self._tasks[index] = task
        task.add_done_callback(lambda done: self._tasks.pop(index, None))

    async def _answer(self, index: int, content: bytes) -> None:
        answer, sent_s = Answer(read=self._read, lines=Lines()), clock()
        headers = {"Content-Type": "application/json"}
        try:
            async with self._session.post(self._url, data=content, headers=headers, allow_redirects=False) as response:
                if response.status == 200:
                    await self._stream(index, answer, response)
                else:
                    answer.failed = _status_failure(response.status, await response.content.read(MAX_ERROR))
        except asyncio.CancelledError:
            raise
        except Exception as error:
            answer.failed = answer.failed or _failure(error)
        self._end(index, answer, sent_s)

    async def _stream(self, index: int, answer: Answer, response: aiohttp.ClientResponse) -> None:
        tell, feed = self._arrived.append, answer.feed
        async for piece in response.content.iter_any():
            now_s = clock()
            num = feed(piece, now_s)
            if self._on_piece is not None:
                self._on_piece(piece, now_s)
            if num:
                self.tokens += num
                tell(TokenEvent(request=index, at_s=now_s, num_tokens=num))
            if answer.failed is not None:
                return
        answer.close(clock())

    def _end(self, index: int, answer: Answer, sent_s: float) -> None:
        """Tells what was not counted while it came, and that it is over."""
        now_s = clock()
        times, token_times = answer.late_tokens()
        self.tokens += len(times)
        self._arrived.extend(TokenEvent(request=index, at_s=at_s, num_tokens=1) for at_s in times)
        told: Told = answer.told(sent_s, token_times=token_times)
        error = None if answer.failed is None else ": ".join(part for part in answer.failed if part)
        last = TokenEvent(
            request=index, at_s=now_s, cached_tokens=answer.cached_tokens, finished=True, error=error, told=told
        )
        with self._ended:
            self._arrived.append(last)
            self._num_ended += 1
            self._ended.notify()

    async def _warm(self, num: int) -> None:
        """All at once, so that none finds a connection that another has given back."""

        async def touch() -> None:
            with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):  # the requests will say what is wrong
                async with self._session.get(f"{self._server.url}/models", allow_redirects=False) as answer:
                    await answer.read()

        await asyncio.gather(*(touch() for _ in range(num)))

    async def _break_off(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _forget_lag(self) -> None:
        self.lag_s = array("d")

    async def _watch_lag(self) -> None:
        while True:
            due_s = clock() + LAG_EVERY_S
            await asyncio.sleep(LAG_EVERY_S)
            if len(self.lag_s) < MAX_LAGS:
                self.lag_s.append(clock() - due_s)


def _status_failure(status: int, content: bytes) -> tuple[str, str]:
    """Kind and word of an answer that is none."""
    try:
        held = json.loads(content)
    except ValueError:
        held = None
    word = short_word(held.get("error") or held) if isinstance(held, dict) else ""
    kind = LIMITED if status == 429 else BROKEN_SERVER if status >= 500 else REFUSED
    return kind, f"status {status}" + (f", {word}" if word not in ("", "error", str(status)) else "")


def _failure(error: Exception) -> tuple[str, str]:
    if isinstance(error, TimeoutError):
        return TIMEOUT, ""
    if isinstance(error, aiohttp.ClientConnectorError):
        return UNREACHABLE, why(error)
    if isinstance(error, aiohttp.ClientError | OSError):
        return DISCONNECTED, type(error).__name__
    return BAD_ANSWER, type(error).__name__
