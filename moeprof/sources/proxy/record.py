"""A recording from its first signal to its last: the proxy, its file, and what is said at the end."""

from __future__ import annotations

import asyncio
import secrets
import signal
import socket
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from moeprof.core import units
from moeprof.core.errors import InputError
from moeprof.sources.formats.recording import BLOCK_CHARACTERS, BLOCK_IDS, HEADER_KEY, VERSION
from moeprof.sources.proxy.exchange import clock
from moeprof.sources.proxy.prompts import Salt
from moeprof.sources.proxy.server import ProxySettings, RecordingProxy, check_upstream, reason
from moeprof.sources.proxy.writer import RecordingWriter

Say = Callable[[str], None]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
BACKLOG = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """How a recording ended.

    Attributes:
        lines: what to tell.
        lost: requests that could not be written.
        signal_number: what ended it; 0: no signal.
    """

    lines: tuple[str, ...]
    lost: int
    signal_number: int


class Stop:
    """Remembers the first signal that asks for an end; a second one asks for it at once."""

    def __init__(self) -> None:
        self.asked, self.at_once = asyncio.Event(), asyncio.Event()
        self.number = 0

    def on_signal(self, number: int) -> None:
        """A signal came."""
        (self.at_once if self.asked.is_set() else self.asked).set()
        self.number = self.number or number


def listening_socket(host: str, port: int) -> socket.socket:
    """The address, taken; nothing is answered on it yet.

    Raises:
        InputError: it is in use, or not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise InputError(f"--listen: {host}:{port} cannot be listened on ({reason(error)})") from error


async def record(
    settings: ProxySettings, output: Path, *, listen: tuple[str, int], part_bytes: int, say: Say, stop: Stop
) -> Recorded:
    """Record until ``stop`` or a signal ends it.

    Raises:
        InputError: the upstream is not there, the address is taken, or the output cannot be written.
    """
    with listening_socket(*listen) as taken:
        await check_upstream(settings.upstream)
        header = {
            HEADER_KEY: VERSION,
            "recording": secrets.token_hex(8),
            "started_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "upstream": str(settings.upstream),
            "prefix_block_characters": BLOCK_CHARACTERS,
            "prefix_block_ids": BLOCK_IDS,
            "text": "kept" if settings.keep_text else "left out",
        }
        writer = RecordingWriter(output, header, part_bytes=part_bytes)
        proxy = RecordingProxy(settings, writer, Salt())
        loop = asyncio.get_running_loop()
        try:
            await proxy.start(taken)
            for number in SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:  # nohup's wish is kept
                    loop.add_signal_handler(number, stop.on_signal, number)
            say(f"Recording {proxy.url} -> {settings.upstream} into {output}; Ctrl-C ends it")
            await stop.asked.wait()
            span_s = clock() - proxy.start_time
            await proxy.stop(stop.at_once)
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)
            writer.close()
    return Recorded(lines=tuple(_summary(proxy, writer, span_s)), lost=writer.lost, signal_number=stop.number)


def _summary(proxy: RecordingProxy, writer: RecordingWriter, span_s: float) -> Iterator[str]:
    number = proxy.statuses.total()
    kinds = ", ".join(f"{name} {count:,}" for name, count in proxy.statuses.most_common())
    passed = f"; {proxy.passed:,} others passed on" * bool(proxy.passed)
    yield (
        f"Recorded {writer.rows:,} requests{f' ({kinds})' * bool(kinds)} in {units.seconds(span_s)} into "
        f"{writer.output}{passed}"
    )
    if writer.lost:
        yield f"{writer.lost:,} requests could not be written ({writer.problem}): the recording lacks them"
    if proxy.streamed_untold:
        yield (
            f"The server told the output tokens of {proxy.told:,} of {number:,} requests; of {proxy.streamed_untold:,} "
            "only their chunks are known, from which a length is an estimate (clients get usage by "
            "stream_options.include_usage)"
        )
    if proxy.held_s:
        late = f"; its event loop was late by {_two(proxy.late_s)}" if proxy.late_s else ""
        yield f"Added latency: the proxy held a chunk for {_two(proxy.held_s)} ({len(proxy.held_s):,} chunks){late}"


def _two(samples: array[float]) -> str:
    median, p99 = np.percentile(np.frombuffer(samples), [50, 99]).tolist()
    return f"{median * 1e3:.3f} ms at the median, {p99 * 1e3:.3f} ms at p99"
