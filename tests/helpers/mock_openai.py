"""An OpenAI-compatible server of known behaviour on 127.0.0.1: the request's ``model`` names what it does.

``NAME`` streams or answers ``max_tokens`` tokens of " tok" and tells usage; the prompt has as many tokens as words.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from moeprof.sources.proxy.record import Recorded, Stop, record
from moeprof.sources.proxy.server import ProxySettings, parse_upstream

SECRET_OF_ERROR = "the prompt was: rosebud"


class MockServer:
    """What it got, and handles for tests that look into the middle of a stream."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.may_go_on = asyncio.Event()  # model "stepwise": the next chunk is sent when this is set
        self.client_left = asyncio.Event()
        self.gap_s = 0.0

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        self.requests.append((request.raw_path, dict(request.headers), body))
        if request.method == "HEAD":
            return web.Response(headers={"Content-Length": "1234"})
        if request.method == "DELETE":
            return web.Response(status=204)
        if request.path == "/moved":
            return web.Response(status=307, headers={"Location": "/v1/models", "Set-Cookie": "a=b"})
        if request.path == "/packed":
            return web.Response(body=gzip.compress(b"packed"), headers={"Content-Encoding": "gzip"})
        if request.method == "GET":
            return web.Response(body=b'{"data": []}', headers={"X-Extra": "kept", "Content-Type": "application/json"})
        asked = json.loads(body)
        model = asked["model"]
        if model == "busy":
            error = {"error": {"message": SECRET_OF_ERROR, "type": "rate_limit_error"}}
            return web.Response(status=429, text=json.dumps(error), headers={"Retry-After": "7"})
        if asked.get("stream"):
            try:
                return await self.stream(request, asked, model)
            except (asyncio.CancelledError, ConnectionError):
                self.client_left.set()
                raise
        choice = {"index": 0, "finish_reason": "length"} | self.output(request, " tok" * asked["max_tokens"], "message")
        whole = {"choices": [choice], "usage": usage_of(asked, asked["max_tokens"])}
        return web.Response(text=json.dumps(whole), content_type="application/json")

    def output(self, request: web.BaseRequest, text: str, key: str) -> dict[str, Any]:
        return {key: {"content": text}} if "chat" in request.path else {"text": text}

    async def stream(self, request: web.BaseRequest, asked: dict[str, Any], model: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)

        async def send(event: Any) -> None:
            await response.write(f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode())

        if "chat" in request.path:
            await send({"choices": [{"index": 0, "delta": {"role": "assistant"}}]})
        number = asked["max_tokens"]
        per_chunk = 2 if model == "pairs" else 1
        for done in range(0, number, per_chunk):
            if self.gap_s:
                await asyncio.sleep(self.gap_s)
            if model == "stepwise":
                await self.may_go_on.wait()
                self.may_go_on.clear()
            if model in ("fails", "breaks", "stops") and done == 3:
                if model == "fails":
                    await send({"error": {"message": SECRET_OF_ERROR, "code": 500}})
                if model == "breaks":
                    assert request.transport is not None
                    request.transport.abort()
                return response
            text = " tok" * min(per_chunk, number - done)
            await send({"choices": [{"index": 0, **self.output(request, text, "delta")}]})
        await send({"choices": [{"index": 0, "finish_reason": "length", **self.output(request, "", "delta")}]})
        if (asked.get("stream_options") or {}).get("include_usage"):
            await send({"choices": [], "usage": usage_of(asked, number)})
        await send("[DONE]")
        await response.write_eof()
        return response


def usage_of(asked: dict[str, Any], number: int) -> dict[str, Any]:
    prompt = asked.get("prompt") or " ".join(message["content"] for message in asked["messages"])
    words = len(prompt.split()) if isinstance(prompt, str) else len(prompt)
    return {"prompt_tokens": words, "completion_tokens": number, "prompt_tokens_details": {"cached_tokens": 1}}


@asynccontextmanager
async def mock_server() -> AsyncIterator[MockServer]:
    mock = MockServer()
    server = web.Server(mock.handle, access_log=None, handler_cancellation=True)
    runner = web.ServerRunner(server, handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    mock.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield mock
    finally:
        await runner.cleanup()


class Recording:
    """A proxy that runs, and the client that talks through it."""

    def __init__(self, url: str, client: aiohttp.ClientSession, output: Path) -> None:
        self.url, self.client, self.output = url, client, output
        self.ended: Recorded | None = None

    async def complete(self, *, chat: bool = False, headers: dict[str, str] | None = None, **asked: Any) -> bytes:
        """The body of a completion, read to its end."""
        async with self.ask(chat=chat, headers=headers, **asked) as answer:
            return await answer.read()

    def ask(self, *, chat: bool = False, headers: dict[str, str] | None = None, **asked: Any) -> Any:
        text = {"messages": [{"role": "user", "content": "say it now"}]} if chat else {"prompt": "one two three"}
        asked = {"model": "plain", "max_tokens": 5, **text, **asked}
        url = f"{self.url}/v1/{'chat/' * chat}completions"
        return self.client.post(url, json=asked, headers=headers)


@asynccontextmanager
async def recording(
    upstream: str, output: Path, *, part_bytes: int = 2**30, **settings: Any
) -> AsyncIterator[Recording]:
    stop = Stop()
    listens: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        record(
            ProxySettings(upstream=parse_upstream(upstream), **settings),
            output,
            listen=("127.0.0.1", 0),
            part_bytes=part_bytes,
            say=listens.set_result,
            stop=stop,
        )
    )
    await asyncio.wait([task, listens], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task
    async with aiohttp.ClientSession() as client:
        running = Recording((await listens).split()[1], client, output)
        try:
            yield running
        finally:
            await client.close()
            stop.asked.set()
            running.ended = await task


def rows_of(output: Path) -> list[dict[str, Any]]:
    """The rows of a recording without the header."""
    return [json.loads(line) for line in output.read_text().splitlines()][1:]
