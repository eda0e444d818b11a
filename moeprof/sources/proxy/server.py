"""The proxy itself: bytes are handed on as they come, in both directions, and looked at afterwards.

The upstream's certificate is verified, its redirects are handed to the client, and no cookie, proxy setting or
credential of this machine is used. What the client sends in its headers is forwarded and never written down.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
import ssl
from array import array
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from moeprof.core.errors import InputError
from moeprof.sources.formats.recording import CLIENT_LEFT
from moeprof.sources.proxy.answers import Answer
from moeprof.sources.proxy.exchange import BROKEN, STOPPED, UNREACHABLE, Exchange, clock, endpoint_of
from moeprof.sources.proxy.prompts import Salt
from moeprof.sources.proxy.writer import RecordingWriter

HOP_BY_HOP = {
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
    "transfer-encoding", "upgrade",
}  # fmt: skip
OWN_HEADERS = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")  # that aiohttp would add to a request
CONNECT_S = 30.0
# Idle connections to the upstream are given up before servers close them (uvicorn: 5 s), so that none breaks in use.
IDLE_S = 3.0
GRACE_S = 5.0
LOOP_CHECK_S = 0.05
STOP_CHECK_S = 0.02
MAX_HEAD = 64 * 2**10
MAX_SAMPLES = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxySettings:
    """What is forwarded where.

    Attributes:
        upstream: address of the server, without path /v1, query or credentials.
        keep_text: write prompts and outputs.
        session_header: name of the header that tells the session.
    """

    upstream: URL
    keep_text: bool = False
    session_header: str = "X-Session-Id"


class RecordingProxy:
    """Forwards and records from ``start`` to ``stop``; the writer stays the caller's.

    Attributes:
        url: where it listens, once started.
        statuses: recorded requests by how they ended.
        told: recorded requests whose output length the server told.
        streamed_untold: recorded requests of whose output only chunks are known.
        passed: requests that were forwarded without being recorded.
        held_s: for each piece of an answer, from its reading to its having been handed to the client's socket.
        late_s: how late the event loop came back to a timer: what else a piece may have waited.
    """

    def __init__(self, settings: ProxySettings, writer: RecordingWriter, salt: Salt) -> None:
        self.settings = settings
        self.url = ""
        self.statuses: Counter[str] = Counter()
        self.told = self.streamed_untold = self.passed = 0
        self.held_s, self.late_s = array("d"), array("d")
        self.start_time = clock()
        self._writer, self._salt = writer, salt
        self._stopping = False
        self._active: set[asyncio.Task[Any]] = set()

    async def start(self, listening: socket.socket) -> None:
        """Answer on a socket that listens already."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            max_line_size=MAX_HEAD,
            max_field_size=MAX_HEAD,
        )
        server = web.Server(
            self._handle,
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
            max_line_size=MAX_HEAD,
            max_field_size=MAX_HEAD,
        )
        self._runner = web.ServerRunner(server, handle_signals=False, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.SockSite(self._runner, listening)
        host, port = listening.getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self.start_time = clock()
        await site.start()
        self._site = site
        self._watch = asyncio.create_task(self._watch_loop())

    async def stop(self, at_once: asyncio.Event | None = None) -> None:
        """Take no more requests, let those in flight end for a few seconds (or until ``at_once``), and close."""
        self._stopping = True
        self._watch.cancel()
        await self._site.stop()
        end = clock() + GRACE_S
        while self._active and clock() < end and not (at_once is not None and at_once.is_set()):
            await asyncio.sleep(STOP_CHECK_S)
        if self._active:
            for task in self._active:
                task.cancel()
            await asyncio.wait(self._active, timeout=1.0)
        await self._runner.cleanup()
        await self._session.close()

    async def _watch_loop(self) -> None:
        while True:
            due = clock() + LOOP_CHECK_S
            await asyncio.sleep(LOOP_CHECK_S)
            _sample(self.late_s, clock() - due)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        endpoint = endpoint_of(request.method, request.path)
        task = asyncio.current_task()
        assert task is not None
        self._active.add(task)
        exchange = None
        if endpoint is None:
            self.passed += 1
        else:
            session = request.headers.get(self.settings.session_header)
            exchange = Exchange(endpoint=endpoint, session=session, keep_text=self.settings.keep_text)
        try:
            return await self._forward(request, exchange)
        except asyncio.CancelledError:
            if exchange is not None:
                exchange.left(STOPPED if self._stopping else CLIENT_LEFT)
            raise
        finally:
            self._active.discard(task)
            if exchange is not None:
                self._record(exchange)

    def _record(self, exchange: Exchange) -> None:
        row = exchange.row(self.start_time, self._salt)
        self.statuses[row["status"]] += 1
        told = "output_tokens" in row
        self.told += told
        self.streamed_untold += not told and bool(row.get("output_chunks"))
        self._writer.write(row)

    async def _forward(self, request: web.BaseRequest, exchange: Exchange | None) -> web.StreamResponse:
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        try:
            upstream = await self._session.request(
                request.method,
                self._target(request),
                headers=_request_headers(request.headers, recorded=exchange is not None),
                data=_body(request, exchange) if request.body_exists else None,
                skip_auto_headers=OWN_HEADERS,
                allow_redirects=False,
            )
        except (aiohttp.ClientError, OSError) as error:
            if exchange is not None:
                exchange.left(CLIENT_LEFT if request.transport is None else UNREACHABLE)
            text = f"moeprof: the upstream cannot be reached ({type(error).__name__})\n"
            return web.Response(status=502, text=text)
        async with upstream:
            return await self._answer(request, upstream, exchange)

    async def _answer(
        self, request: web.BaseRequest, upstream: aiohttp.ClientResponse, exchange: Exchange | None
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            status=upstream.status, reason=upstream.reason, headers=_end_to_end(upstream.headers)
        )
        if exchange is not None:
            content_type = upstream.headers.get("Content-Type", "")
            exchange.answer = Answer(upstream.status, content_type.lower(), keep_text=exchange.keep_text)
            exchange.body_left = upstream.content_length
        pieces = upstream.content.iter_any().__aiter__()
        loop = asyncio.get_running_loop()
        try:
            await response.prepare(request)
            while True:
                try:
                    piece = await anext(pieces, b"")
                except (aiohttp.ClientError, OSError):
                    # The client must not take half an answer for a whole one: its connection breaks as this one did.
                    if exchange is not None:
                        exchange.left(BROKEN)
                    if request.transport is not None:
                        request.transport.close()
                    return response
                if not piece:
                    break
                read = clock()
                await response.write(piece)
                sent = clock()
                _sample(self.held_s, sent - read)
                if exchange is not None and exchange.on_answer(piece, read, sent):
                    loop.call_soon(exchange.look)  # not now: other streams' pieces may be waiting
            if exchange is not None:
                exchange.whole = True
            await response.write_eof()
        except ConnectionError:
            if exchange is not None:
                exchange.left(CLIENT_LEFT)
        return response

    def _target(self, request: web.BaseRequest) -> URL:
        base = str(self.settings.upstream).rstrip("/")
        path = request.raw_path if request.raw_path.startswith("/") else URL(request.raw_path).raw_path_qs
        return URL(base + path, encoded=True)


async def _body(request: web.BaseRequest, exchange: Exchange | None) -> AsyncIterator[bytes]:
    async for piece in request.content.iter_any():
        yield piece
        if exchange is not None:
            exchange.on_request(piece)


def _end_to_end(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """Headers without those of one connection."""
    named = {name.strip().lower() for value in headers.getall("Connection", ()) for name in value.split(",")}
    kept = CIMultiDict[str]()
    for name, value in headers.items():
        if name.lower() not in HOP_BY_HOP | named:
            kept.add(name, value)
    return kept


def _request_headers(headers: CIMultiDictProxy[str], *, recorded: bool) -> CIMultiDict[str]:
    kept = _end_to_end(headers)
    for name in ("Host", "Expect"):
        kept.popall(name, None)
    if recorded:  # a compressed stream could be forwarded, but not read
        kept["Accept-Encoding"] = "identity"
    return kept


def _sample(samples: array[float], value: float) -> None:
    if len(samples) < MAX_SAMPLES:
        samples.append(value)


async def check_upstream(url: URL) -> None:
    """Open a connection, and for https look at the certificate.

    Raises:
        InputError: there is no such server.
    """
    assert url.host is not None
    try:
        async with asyncio.timeout(CONNECT_S):
            _, writer = await asyncio.open_connection(url.host, url.port, ssl=True if url.scheme == "https" else None)
    except (OSError, TimeoutError) as error:
        raise InputError(f"--upstream: {url} cannot be reached ({reason(error)})") from error
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def reason(error: BaseException) -> str:
    """What the system says about it, in a few words."""
    if isinstance(error, TimeoutError) and not str(error):
        return f"no answer within {CONNECT_S:g} s"
    if isinstance(error, socket.gaierror):
        return "no such host"
    number = error.errno if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else None
    if number is not None and number in errno.errorcode:
        return os.strerror(number)
    return str(error)


def parse_upstream(text: str) -> URL:
    """An address as given, without a /v1 at its end (the client's own path has it).

    Raises:
        InputError: no URL, or one that holds what does not belong there.
    """
    try:
        url = URL(text)
        port = url.port
    except ValueError:
        url, port = URL(), None
    if url.scheme not in ("http", "https") or not url.host or port is None:
        shown = text if "@" not in text else "that text"
        raise InputError(f"--upstream: {shown!r} is no URL; http://127.0.0.1:8000 is one")
    if url.user is not None or url.password is not None:
        raise InputError("--upstream: credentials do not belong in the URL; the clients send their own")
    if url.raw_query_string or url.raw_fragment:
        raise InputError("--upstream: the URL has a query or fragment; give the address alone")
    path = url.raw_path.rstrip("/").removesuffix("/v1")
    return url.origin().with_path(path, encoded=True) if path else url.origin()


def parse_listen(text: str) -> tuple[str, int]:
    """HOST:PORT.

    Raises:
        InputError: it is not that.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise InputError(f"--listen: {text!r} is no address; 127.0.0.1:8080 is one")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """True for an address that only this machine reaches."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
