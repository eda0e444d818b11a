"""What the proxy adds, measured against a server that costs nothing.

This process streams stamped chunks to itself over the loop-back, half of the streams directly and half through a proxy
in a process of its own, all at the same time, so that both halves meet the same machine. A chunk's lag is its arrival
minus its stamp; what the proxy adds is the difference of the medians.
"""

from __future__ import annotations

import asyncio
import sys
from array import array
from dataclasses import dataclass

import aiohttp
import numpy as np
from aiohttp import web
from yarl import URL

from moeprof.core.errors import MoeprofError
from moeprof.core.scratch import Scratch
from moeprof.sources.proxy.exchange import clock
from moeprof.sources.proxy.record import Stop, record
from moeprof.sources.proxy.server import ProxySettings

STREAMS = 8  # each way
CHUNKS = 100
GAP_S = 0.01
START_S = 60.0
PATH = "/v1/completions"
LISTENS = "Recording http"


@dataclass(frozen=True, slots=True, kw_only=True)
class NullTest:
    """Lags of both halves in seconds."""

    direct_s: array[float]
    proxied_s: array[float]

    @property
    def added_median_s(self) -> float:
        """Difference of the medians."""
        return self._at(50)[1] - self._at(50)[0]

    def _at(self, percent: float) -> tuple[float, float]:
        both = (np.percentile(np.frombuffer(lags), percent) for lags in (self.direct_s, self.proxied_s))
        direct, proxied = (float(value) for value in both)
        return direct, proxied

    def line(self) -> str:
        """The result in a sentence."""
        (direct, proxied), (direct_99, proxied_99) = self._at(50), self._at(99)
        return (
            f"Null test: the proxy adds {self.added_median_s * 1e3:.3f} ms per chunk at the median "
            f"({proxied * 1e3:.3f} ms through it, {direct * 1e3:.3f} ms directly; p99 {proxied_99 * 1e3:.3f} and "
            f"{direct_99 * 1e3:.3f} ms), {STREAMS} + {STREAMS} streams in step, {CHUNKS} chunks each, "
            f"one every {GAP_S * 1e3:g} ms"
        )


async def null_test() -> NullTest:
    """Measure; about two seconds and the start of a process.

    Raises:
        MoeprofError: the proxy's process did not start.
    """
    runner = web.ServerRunner(web.Server(_stream, access_log=None), handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    direct = f"http://127.0.0.1:{runner.addresses[0][1]}"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "moeprof.sources.proxy.null_test", direct,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    try:
        line = (await asyncio.wait_for(process.stdout.readline(), START_S)).decode()
        if not line.startswith(LISTENS):
            raise MoeprofError("the null test's proxy did not start")
        proxied = line.split()[1]
        lags = {direct: array("d"), proxied: array("d")}
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            for number in (1, CHUNKS):  # the first opens the connections
                for samples in lags.values():
                    del samples[:]
                urls = [url for url in lags for _ in range(STREAMS)]
                await asyncio.gather(*(_read(session, url, lags[url], number) for url in urls))
    finally:
        process.stdin.close()  # the proxy ends when nobody holds its input
        await process.wait()
        await runner.cleanup()
    return NullTest(direct_s=lags[direct], proxied_s=lags[proxied])


async def _stream(request: web.BaseRequest) -> web.StreamResponse:
    number = int(await request.read())
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    due = clock()
    for _ in range(number):
        due += GAP_S
        await asyncio.sleep(due - clock())
        # As long as a chunk of vLLM's, so that the recorder has its usual work.
        event = '{"id": "cmpl-0123456789abcdef0123456789abcdef", "object": "text_completion", "created": 1700000000, '
        event += (
            '"model": "null", "choices": [{"index": 0, "text": " token", "logprobs": null, "finish_reason": null}]}'
        )
        await response.write(f"data: {event}\n: {clock():.9f}\n\n".encode())
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


async def _read(session: aiohttp.ClientSession, url: str, samples: array[float], number: int) -> None:
    rest = b""
    async with session.post(url + PATH, data=str(number).encode()) as answer:
        async for piece in answer.content.iter_any():
            now = clock()
            *lines, rest = (rest + piece).split(b"\n")
            samples.extend(now - float(line[2:]) for line in lines if line.startswith(b": "))


async def _proxy(upstream: str) -> None:
    """The child: a proxy that lives as long as its standard input."""
    stop = Stop()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), stop.asked.set)
    settings = ProxySettings(upstream=URL(upstream))
    with Scratch() as scratch:
        output = scratch.path / "null.jsonl"
        say = lambda line: print(line, flush=True)  # noqa: E731
        await record(settings, output, listen=("127.0.0.1", 0), part_bytes=2**30, say=say, stop=stop)


if __name__ == "__main__":
    asyncio.run(_proxy(sys.argv[1]))
