"""``moeprof trace record`` as a process: bad input in one line, clean ends, kills, and what the proxy adds."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from moeprof.sources.formats import read_trace
from moeprof.sources.proxy.null_test import CHUNKS, STREAMS, NullTest, null_test
from tests.helpers.tiny_run import run_main

PROGRAM = "import sys; from moeprof.cli.main import main; sys.exit(main(sys.argv[1:]))"
NULL_TEST = r"Null test: the proxy adds -?\d+\.\d+ ms per chunk at the median"


class Answers(BaseHTTPRequestHandler):
    """Two tokens for every request."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        usage = {"prompt_tokens": 3, "completion_tokens": 2}
        body = json.dumps({"choices": [{"text": "a b", "finish_reason": "stop"}], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def upstream() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@contextmanager
def proxy(upstream: str, folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command in a process of its own, and where it listens."""
    command = [sys.executable, "-c", PROGRAM, "trace", "record", "--upstream", upstream, "--listen", "127.0.0.1:0"]
    with subprocess.Popen(
        [*command, *options], cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as it:
        try:
            assert it.stderr is not None
            first = it.stderr.readline()
            assert first.startswith("Recording http://127.0.0.1:"), first
            yield it, first.split()[1]
        finally:
            it.kill()


def complete(url: str) -> None:
    body = json.dumps({"model": "m", "prompt": "one two three", "max_tokens": 2}).encode()
    request = urllib.request.Request(f"{url}/v1/completions", data=body, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert json.load(answer)["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "--upstream: is missing"),
        (("--upstream", "127.0.0.1:8000"), "is no URL"),
        (("--upstream", "ftp://127.0.0.1"), "is no URL"),
        (("--upstream", "http://"), "is no URL"),
        (("--upstream", "http://127.0.0.1:99999"), "is no URL"),
        (("--upstream", "http://me:hunter2@127.0.0.1:1"), "credentials do not belong in the URL"),
        (("--upstream", "http://127.0.0.1:1?key=hunter2"), "query or fragment"),
        (("--upstream", "http://127.0.0.1:1"), "http://127.0.0.1:1 cannot be reached"),
        (("--upstream", "http://127.0.0.1:1", "--listen", "8080"), "--listen: '8080' is no address"),
        (("--upstream", "http://127.0.0.1:1", "--listen", "127.0.0.1:x"), "is no address"),
        (("--upstream", "http://127.0.0.1:1", "--listen", "127.0.0.1:70000"), "is no address"),
        (("--upstream", "http://127.0.0.1:1", "--listen", "TAKEN"), "cannot be listened on (Address already in use)"),
        (("--upstream", "UPSTREAM", "-o", "there.jsonl"), "already there"),
        (("--upstream", "UPSTREAM", "-o", "there.jsonl/below"), "cannot be written"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    options: tuple[str, ...], said: str, upstream: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.jsonl").write_text("mine")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = {"TAKEN": f"127.0.0.1:{taken.getsockname()[1]}", "UPSTREAM": upstream}
        listen = () if "--listen" in options else ("--listen", "127.0.0.1:0")
        ran = run_main(["trace", "record", *listen, *(words.get(option, option) for option in options)])
    assert (ran.code, ran.stdout) == (2, "")
    (line,) = ran.stderr.splitlines()
    assert line.startswith("moeprof: ") and said in line and "hunter2" not in line
    assert [path.name for path in tmp_path.iterdir()] == ["there.jsonl"]


def test_term_ends_it_with_a_summary(upstream: str, tmp_path: Path) -> None:
    with proxy(upstream, tmp_path, "-o", "traffic") as (process, url):
        for _ in range(3):
            complete(url)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "")
    assert re.match(r"Recorded 3 requests \(ok 3\) in [\d.]+ m?s into traffic\nAdded latency: ", err), err
    assert read_trace(tmp_path / "traffic").output_tokens.tolist() == [2, 2, 2]
    ran = run_main(["trace", "inspect", tmp_path / "traffic"])
    assert ran.code == 0 and "p50 3  p90 3  p99 3  max 3" in ran.stdout


def test_control_c_ends_it_with_the_null_test(upstream: str, tmp_path: Path) -> None:
    with proxy(upstream, tmp_path, "-o", "traffic.jsonl") as (process, url):
        complete(url)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert err.startswith("Recorded 1 requests (ok 1)")
    assert re.search(NULL_TEST, err.splitlines()[-1]), err


def test_kill_loses_no_finished_request(upstream: str, tmp_path: Path) -> None:
    with proxy(upstream, tmp_path, "-o", "traffic.jsonl") as (process, url):
        for _ in range(20):
            complete(url)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=30)
    assert len(read_trace(tmp_path / "traffic.jsonl")) >= 19  # the last may still have been on its way
    assert (tmp_path / "traffic.jsonl").read_bytes().endswith(b"}\n")


def test_the_null_test_is_a_command_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run_main(["trace", "record", "--null-test"])
    assert (ran.code, ran.stderr) == (0, "")
    assert re.match(NULL_TEST, ran.stdout)
    assert list(tmp_path.iterdir()) == []


def test_the_proxy_adds_less_than_half_a_millisecond_at_the_median() -> None:
    """The best of some: another process on the same cores makes both ways late, the proxied one twice."""
    added = []
    for _ in range(5):
        result: NullTest = asyncio.run(null_test())
        assert len(result.direct_s) == len(result.proxied_s) == STREAMS * CHUNKS
        assert min(result.proxied_s) > 0
        added.append(result.added_median_s)
        if added[-1] < 0.0005:
            break
    assert 0 < min(added) < 0.0005, added
