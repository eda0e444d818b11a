"""What this client can take at most, and how late it is: told by a loop-back server before a run.

Through the client that the run uses. Paced trials: one token a chunk, so that each token costs a wake-up; with
BUSY_STREAMS for the limit (tokens per second of the process's processor time: what it takes with a core of its own),
and with as many streams as the run has for the lag. A flood, as many tokens as the machine lets through now, is beside.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moeprof.capture.engines.served import loopback
from moeprof.capture.engines.served.client import Client
from moeprof.capture.engines.served.kinds import GENERIC
from moeprof.capture.engines.served.probe import Server
from moeprof.capture.engines.served.settings import OpenAISettings
from moeprof.capture.engines.served.trial import Dialect
from moeprof.core.trace import Request, Schedule

FLOOD_S, PACED_S, START_S, END_S = 0.6, 1.2, 20.0, 5.0
FLOOD_STREAMS, FLOOD_TOKENS = 16, 1_000_000
GAP_S = 0.02  # between tokens of a stream, where the run's own is not known
MOST_STREAMS = 512
BUSY_STREAMS = 128
STAMP = b'"stamp":'


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """Of the client on this machine, now; keys of ``ClientHeader``."""

    limit_tokens_per_s: float
    flood_tokens_per_s: float
    paced_tokens_per_s: float
    paced_streams: int
    paced_lag_p50_s: float
    paced_lag_p99_s: float

    def to_json(self) -> dict[str, Any]:
        """For pass.json."""
        return asdict(self)


def streams_of(schedule: Schedule) -> int:
    """Streams that are open at once, or that bring the schedule's tokens per second in steps of GAP_S."""
    if schedule.pattern == "open" and len(schedule) > 1 and schedule.arrival_s.max() > 0:
        tokens_per_s = float(schedule.output_tokens.sum() / schedule.arrival_s.max())
        return int(np.clip(round(tokens_per_s * GAP_S), 1, MOST_STREAMS))
    return min(len(schedule), schedule.concurrency or len(schedule), MOST_STREAMS)


def measure(streams: int, *, paced_s: float = PACED_S, gap_s: float = GAP_S) -> Limit | str:
    """The limit, or why there is none."""
    try:
        with loopback_server() as port:
            flood = _flood(port)
            busy = _paced(port, BUSY_STREAMS, paced_s, gap_s)
            own = busy if streams == BUSY_STREAMS else _paced(port, streams, paced_s, gap_s)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return f"the loop-back server did not run ({type(error).__name__})"
    return Limit(
        limit_tokens_per_s=busy.tokens_per_cpu_s,
        flood_tokens_per_s=flood,
        paced_tokens_per_s=own.tokens_per_s,
        paced_streams=streams,
        paced_lag_p50_s=own.lag_p50_s,
        paced_lag_p99_s=own.lag_p99_s,
    )


@contextmanager
def loopback_server() -> Iterator[int]:
    """The port of one that runs inside."""
    process = subprocess.Popen(
        [sys.executable, str(Path(loopback.__file__))], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.stdin.close()
        process.stdout.close()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def loopback_client(port: int, model: str, on_piece: Callable[[bytes, float], None] | None = None) -> Client:
    """Asks it; ``model`` says what it does."""
    url = f"http://127.0.0.1:{port}/v1"
    server = Server(
        url=url, kind=GENERIC, version=None, served_as=model, models=(), max_sequence_tokens=None, metrics=()
    )
    return Client(OpenAISettings(url=url), server, Dialect(prompts="ids"), lambda ids: "", on_piece=on_piece)


def _request(index: int, tokens: int) -> Request:
    return Request(
        index=index, request_id=str(index), arrival_s=0.0, input_ids=[1] * 16, output_tokens=tokens, output_ids=None,
        request_class="all",
    )  # fmt: skip


def _flood(port: int) -> float:
    client = loopback_client(port, "flood")
    try:
        client.prepare(FLOOD_STREAMS, 0)
        for index in range(FLOOD_STREAMS):
            client.submit(_request(index, FLOOD_TOKENS))
        start_s = time.perf_counter()
        while (now_s := time.perf_counter()) < start_s + FLOOD_S:
            client.poll(min(0.05, start_s + FLOOD_S - now_s))
        return client.tokens / (time.perf_counter() - start_s)
    finally:
        client.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Paced:
    """What came of a paced trial."""

    tokens_per_s: float
    tokens_per_cpu_s: float
    lag_p50_s: float
    lag_p99_s: float


def _paced(port: int, streams: int, paced_s: float, gap_s: float) -> _Paced:
    """Streams that each bring a token every ``gap_s``; processor time counts from when all of them were asked for."""
    lags: list[float] = []

    def on_piece(piece: bytes, now_s: float) -> None:
        """The first stamp of the piece is the oldest: the longest wait."""
        at = piece.find(STAMP)
        if at >= 0:
            lags.append(now_s - float(piece[at + len(STAMP) : at + len(STAMP) + 24].partition(b",")[0]))

    client = loopback_client(port, f"paced:{gap_s}", on_piece)
    num = max(4, round(paced_s / gap_s))
    try:
        client.prepare(streams, 0)
        start_s = time.perf_counter()
        for index in range(streams):
            due_s = start_s + gap_s * index / streams  # streams of a server are not in step with each other
            time.sleep(max(0.0, due_s - time.perf_counter()))
            client.submit(_request(index, num))
        time.sleep(2 * gap_s)
        start_s, cpu_s, before = time.perf_counter(), time.process_time(), client.tokens
        ended, last_s = 0, start_s + 3 * paced_s + 1
        while ended < streams and time.perf_counter() < last_s:
            ended += client.poll(0.05).num_ended
        seconds, cpu_s, tokens = time.perf_counter() - start_s, time.process_time() - cpu_s, client.tokens - before
    finally:
        client.close()
    if not lags or not tokens:
        raise ValueError("no token came")
    p50, p99 = np.percentile(lags, (50, 99))
    return _Paced(
        tokens_per_s=tokens / seconds, tokens_per_cpu_s=tokens / cpu_s, lag_p50_s=float(p50), lag_p99_s=float(p99)
    )
