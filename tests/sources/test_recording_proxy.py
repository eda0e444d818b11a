"""The recording proxy between a client and a server of known behaviour, all on 127.0.0.1."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from moeprof.core.errors import InputError, TraceError
from moeprof.sources.formats import read_trace
from tests.helpers.mock_openai import SECRET_OF_ERROR, MockServer, Recording, mock_server, recording, rows_of

USAGE = {"stream_options": {"include_usage": True}}
Talk = Callable[[Recording, MockServer], Awaitable[Any]]


def recorded(output: Path, talk: Talk, **settings: Any) -> list[dict[str, Any]]:
    """Rows of a recording of what the clients of ``talk`` did."""

    async def run() -> None:
        async with mock_server() as mock, recording(mock.url, output, **settings) as proxy:
            await asyncio.wait_for(talk(proxy, mock), 30)

    asyncio.run(run())
    return rows_of(output) if output.suffix else []


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "traffic.jsonl"


# -- forwarding --------------------------------------------------------------------------------------------------------


def test_each_chunk_passes_before_the_next_is_made(output: Path) -> None:
    """The server makes a chunk only when the client has the one before: a proxy that waits would wait for ever."""
    seen = []

    async def talk(proxy: Recording, mock: MockServer) -> None:
        mock.may_go_on.set()
        async with proxy.ask(model="stepwise", stream=True) as answer:
            async for piece in answer.content.iter_any():
                seen.append(piece.count(b"tok"))
                mock.may_go_on.set()

    (row,) = recorded(output, talk)
    assert seen[:5] == [1, 1, 1, 1, 1]
    assert (row["status"], row["output_chunks"]) == ("ok", 5)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_the_answer_is_byte_for_byte_that_of_the_server(output: Path, chat: bool, stream: bool) -> None:
    got = []

    async def talk(proxy: Recording, mock: MockServer) -> None:
        got.append(await proxy.complete(chat=chat, stream=stream))
        proxy.url = mock.url
        got.append(await proxy.complete(chat=chat, stream=stream))
        (path, headers, body), direct = mock.requests
        assert (path, body) == (direct[0], direct[2])
        assert headers.keys() == direct[1].keys()

    assert len(recorded(output, talk)) == 1
    assert got[0] == got[1]
    assert got[0].count(b" tok") == 5


def test_what_is_no_completion_passes_and_is_not_recorded(output: Path) -> None:
    async def talk(proxy: Recording, mock: MockServer) -> None:
        address = URL(f"{proxy.url}/v1/models?limit=3&q=%2F", encoded=True)
        async with proxy.client.get(address, headers={"X-Own": "a"}) as answer:
            assert (answer.status, await answer.read()) == (200, b'{"data": []}')
            assert answer.headers["X-Extra"] == "kept"
        path, headers, _ = mock.requests[0]
        assert path == "/v1/models?limit=3&q=%2F"
        assert headers["X-Own"] == "a"

    assert recorded(output, talk) == []


def test_heads_redirects_cookies_and_compressed_bodies_pass_as_they_are(output: Path) -> None:
    async def talk(proxy: Recording, mock: MockServer) -> None:
        async with proxy.client.head(f"{proxy.url}/health") as answer:
            assert (answer.status, answer.headers["Content-Length"]) == (200, "1234")
        async with proxy.client.delete(f"{proxy.url}/v1/files/1") as answer:
            assert (answer.status, await answer.read()) == (204, b"")
        async with proxy.client.get(f"{proxy.url}/moved", allow_redirects=False) as answer:
            moved = (answer.status, answer.headers["Location"], answer.headers["Set-Cookie"])
            assert moved == (307, "/v1/models", "a=b")
        async with aiohttp.ClientSession(auto_decompress=False) as raw, raw.get(f"{proxy.url}/packed") as answer:
            assert gzip.decompress(await answer.read()) == b"packed"
        assert all("Cookie" not in headers for _, headers, _ in mock.requests)

    assert recorded(output, talk) == []


def test_many_streams_at_once_are_told_apart(output: Path) -> None:
    async def talk(proxy: Recording, mock: MockServer) -> None:
        mock.gap_s = 0.005
        asks = (proxy.complete(prompt="w " * n, max_tokens=n, stream=True, **USAGE) for n in range(1, 65))
        bodies = await asyncio.gather(*asks)
        assert [body.count(b" tok") for body in bodies] == list(range(1, 65))

    rows = recorded(output, talk)
    assert sorted((row["input_tokens"], row["output_tokens"]) for row in rows) == [(n, n) for n in range(1, 65)]
    assert all(row["output_chunks"] == row["output_tokens"] for row in rows)


def test_an_upstream_with_v1_at_its_end_is_the_same_upstream(output: Path) -> None:
    async def run() -> list[str]:
        async with mock_server() as mock, recording(f"{mock.url}/v1/", output) as proxy:
            await proxy.complete()
            return [path for path, _, _ in mock.requests]

    assert asyncio.run(run()) == ["/v1/completions"]


def test_a_long_body_is_forwarded_whole(output: Path) -> None:
    prompt = "word " * 200_000

    async def talk(proxy: Recording, mock: MockServer) -> None:
        await proxy.complete(prompt=prompt, headers={"Expect": "100-continue"})
        assert json.loads(mock.requests[0][2])["prompt"] == prompt

    (row,) = recorded(output, talk)
    assert (row["input_tokens"], row["prompt_characters"], len(row["prefix_blocks"])) == (200_000, 1_000_000, 1954)


# -- what is recorded --------------------------------------------------------------------------------------------------


def test_a_stream_with_usage(output: Path) -> None:
    async def talk(proxy: Recording, mock: MockServer) -> None:
        mock.gap_s = 0.02
        await proxy.complete(stream=True, max_tokens=6, prompt="a b c d", **USAGE)

    (row,) = recorded(output, talk)
    wanted = {
        "endpoint": "completions", "model": "plain", "status": "ok", "http_status": 200, "finish_reason": "length",
        "stream": True, "input_tokens": 4, "output_tokens": 6, "cached_tokens": 1, "tokens_from": "usage",
        "output_chunks": 6, "max_tokens": 6, "prompt_characters": 7,
    }  # fmt: skip
    assert {key: row.get(key) for key in wanted} == wanted
    times = [row[f"{name}_s"] for name in ("forwarded", "upstream_first", "client_first", "upstream_last")]
    assert times == sorted(times)
    assert 0.02 < row["upstream_first_s"] <= row["first_output_s"]
    assert row["client_last_s"] - row["client_first_s"] > 5 * 0.02 * 0.9  # six tokens, five gaps
    assert row["upstream_last_s"] <= row["client_last_s"]


def test_chunks_are_not_tokens(output: Path) -> None:
    """Six tokens in three chunks: with usage the output is 6 long, without it the reader estimates 3 and says so."""

    async def talk(proxy: Recording, mock: MockServer) -> None:
        await proxy.complete(model="pairs", stream=True, max_tokens=6, **USAGE)
        await proxy.complete(model="pairs", stream=True, max_tokens=6)

    told, untold = recorded(output, talk)
    assert (told["output_tokens"], told["output_chunks"]) == (6, 3)
    assert "output_tokens" not in untold and untold["tokens_from"] is None and untold["output_chunks"] == 3
    trace = read_trace(output)
    assert trace.output_tokens.tolist() == [6, 3]
    assert trace.input_tokens.tolist() == [3, 3]  # 13 characters, as in the prompt of three tokens
    notes = {note.code: note.count for note in trace.notes}
    assert (notes["output_estimated"], notes["input_estimated"]) == (1, 1)


def test_the_summary_counts_what_is_only_known_as_chunks(output: Path) -> None:
    async def run() -> tuple[str, ...]:
        async with mock_server() as mock:
            async with recording(mock.url, output) as proxy:
                await proxy.complete(stream=True, **USAGE)
                await proxy.complete(stream=True)
                await proxy.client.get(f"{proxy.url}/health")
            assert proxy.ended is not None
            return proxy.ended.lines

    first, second, third = asyncio.run(run())
    assert first.startswith("Recorded 2 requests (ok 2) in ") and first.endswith("; 1 others passed on")
    assert second.startswith("The server told the output tokens of 1 of 2 requests; of 1 only their chunks are known")
    assert third.startswith("Added latency: the proxy held a chunk for 0.")


def test_one_json_answer(output: Path) -> None:
    async def talk(proxy: Recording, mock: MockServer) -> None:
        await proxy.complete(chat=True, max_tokens=9)

    (row,) = recorded(output, talk)
    assert (row["endpoint"], row["stream"], row["status"]) == ("chat/completions", False, "ok")
    assert (row["input_tokens"], row["output_tokens"]) == (3, 9)
    assert "output_chunks" not in row


def test_a_chats_first_chunk_is_no_output(output: Path) -> None:
    async def talk(proxy: Recording, mock: MockServer) -> None:
        mock.gap_s = 0.05
        await proxy.complete(chat=True, stream=True, max_tokens=2)

    (row,) = recorded(output, talk)
    assert row["output_chunks"] == 2
    assert row["first_output_s"] - row["upstream_first_s"] > 0.04


def test_ids_as_prompt_are_counted_exactly(output: Path) -> None:
    async def talk(proxy: Recording, mock: MockServer) -> None:
        await proxy.complete(prompt=list(range(300)), stream=True)

    (row,) = recorded(output, talk)
    assert (row["prompt_ids"], len(row["prefix_blocks"])) == (300, 3)  # of 128, 128 and 44
    trace = read_trace(output)
    assert (trace.input_tokens.tolist(), trace.prefix_block_tokens) == ([300], 128)


# -- faults ------------------------------------------------------------------------------------------------------------


def test_a_refusal_passes_with_its_headers_and_is_recorded_by_its_word(output: Path) -> None:
    async def talk(proxy: Recording, mock: MockServer) -> None:
        async with proxy.ask(model="busy") as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (429, "7")
            assert SECRET_OF_ERROR in await answer.text()

    (row,) = recorded(output, talk)
    assert (row["status"], row["http_status"], row["error"]) == ("http_error", 429, "rate_limit_error")
    assert SECRET_OF_ERROR not in output.read_text()


def test_an_error_inside_a_stream_of_status_200(output: Path) -> None:
    async def talk(proxy: Recording, mock: MockServer) -> None:
        assert SECRET_OF_ERROR.encode() in await proxy.complete(model="fails", stream=True)

    (row,) = recorded(output, talk)
    assert (row["status"], row["http_status"], row["error"], row["output_chunks"]) == ("stream_error", 200, "500", 3)
    assert SECRET_OF_ERROR not in output.read_text()


def test_a_stream_that_ends_without_saying_so_was_cut_short(output: Path) -> None:
    async def talk(proxy: Recording, mock: MockServer) -> None:
        await proxy.complete(model="stops", stream=True)

    assert [row["status"] for row in recorded(output, talk)] == ["cut_short"]


def test_a_broken_upstream_breaks_the_client_too(output: Path) -> None:
    async def talk(proxy: Recording, mock: MockServer) -> None:
        with pytest.raises(aiohttp.ClientPayloadError):
            await proxy.complete(model="breaks", stream=True)

    (row,) = recorded(output, talk)
    assert (row["status"], row["output_chunks"]) == ("upstream_disconnect", 3)


def test_a_client_that_leaves_ends_the_request_upstream(output: Path) -> None:
    async def talk(proxy: Recording, mock: MockServer) -> None:
        mock.may_go_on.set()
        async with proxy.ask(model="stepwise", stream=True) as answer:
            await answer.content.readany()
            answer.close()
        await asyncio.wait_for(mock.client_left.wait(), 10)

    (row,) = recorded(output, talk)
    assert (row["status"], row["output_chunks"]) == ("client_disconnect", 1)
    trace = read_trace(output)
    assert trace.output_tokens.tolist() == [1]
    assert "ended_by_client" in {note.code for note in trace.notes}


def test_an_upstream_that_goes_away_is_a_502_for_each_request(output: Path) -> None:
    async def run() -> None:
        async with mock_server() as mock:
            running = recording(mock.url, output)
            proxy = await running.__aenter__()
        async with proxy.ask() as answer:
            assert answer.status == 502
            assert "moeprof: the upstream cannot be reached" in await answer.text()
        await running.__aexit__(None, None, None)

    asyncio.run(run())
    (row,) = rows_of(output)
    assert row["status"] == "upstream_unreachable"
    assert "http_status" not in row
    with pytest.raises(TraceError, match=r"1 requests that failed were dropped \(upstream_unreachable 1\)"):
        read_trace(output)


def test_requests_in_flight_are_let_end(output: Path) -> None:
    async def run() -> bytes:
        async with mock_server() as mock:
            mock.gap_s = 0.1
            async with aiohttp.ClientSession() as client:
                async with recording(mock.url, output) as proxy:
                    asked = {"model": "plain", "prompt": "a", "max_tokens": 5, "stream": True}
                    answer = await client.post(f"{proxy.url}/v1/completions", json=asked)
                return await answer.read()

    assert asyncio.run(run()).endswith(b"data: [DONE]\n\n")
    assert [row["status"] for row in rows_of(output)] == ["ok"]


# -- what must not be written ------------------------------------------------------------------------------------------


def test_no_text_and_no_header_is_written(output: Path) -> None:
    async def talk(proxy: Recording, mock: MockServer) -> None:
        headers = {"Authorization": "Bearer sk-secret", "X-Api-Key": "key-secret", "X-Session-Id": "session-secret"}
        await proxy.complete(prompt="prompt-secret", stream=True, user="user-secret", headers=headers)
        await proxy.complete(chat=True, messages=[{"role": "user", "content": "chat-secret"}], user="user-secret")
        assert mock.requests[0][1]["Authorization"] == "Bearer sk-secret"

    rows = recorded(output, talk)
    text = output.read_text()
    assert "secret" not in text and " tok" not in text and "Bearer" not in text
    assert len({row["session"] for row in rows}) == 2
    assert output.stat().st_mode & 0o077 == 0


def test_equal_sessions_and_beginnings_have_equal_hashes_within_one_recording_only(tmp_path: Path) -> None:
    shared = "s" * 1024  # two blocks of 512 characters

    async def talk(proxy: Recording, mock: MockServer) -> None:
        for end in ("one", "two"):
            await proxy.complete(prompt=shared + end, headers={"X-Session-Id": "mine"})

    first = recorded(tmp_path / "first.jsonl", talk)
    again = recorded(tmp_path / "again.jsonl", talk)
    one, two = (row["prefix_blocks"] for row in first)
    assert one[:2] == two[:2] and one[2] != two[2] and len(one) == len(two) == 3
    assert first[0]["session"] == first[1]["session"]
    assert set(one).isdisjoint(again[0]["prefix_blocks"])
    assert first[0]["session"] != again[0]["session"]


def test_text_is_kept_when_asked_for(tmp_path: Path) -> None:
    async def completions(proxy: Recording, mock: MockServer) -> None:
        await proxy.complete(prompt="a b \ud800", stream=True)
        await proxy.complete(prompt="c")

    async def chats(proxy: Recording, mock: MockServer) -> None:
        parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
        await proxy.complete(chat=True, messages=[{"role": "user", "content": parts}], stream=True)

    recorded(tmp_path / "completions.jsonl", completions, keep_text=True)
    trace = read_trace(tmp_path / "completions.jsonl")
    assert trace.prompt_text == ("a b ?", "c")
    assert trace.output_text == (" tok" * 5, " tok" * 5)
    recorded(tmp_path / "chats.jsonl", chats, keep_text=True)
    assert read_trace(tmp_path / "chats.jsonl").messages == ((("user", "hello"),),)


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_recording_in_parts_is_read_as_one(tmp_path: Path) -> None:
    async def talk(proxy: Recording, mock: MockServer) -> None:
        for number in range(1, 9):
            await proxy.complete(max_tokens=number)

    recorded(tmp_path / "parts", talk, part_bytes=1500)
    parts = sorted((tmp_path / "parts").iterdir())
    assert [part.name for part in parts] == [f"part-{i:04d}.jsonl" for i in range(1, len(parts) + 1)]
    assert len(parts) > 2 and all(part.stat().st_size <= 1500 for part in parts)
    assert read_trace(tmp_path / "parts").output_tokens.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert len(read_trace(parts[0])) == len(rows_of(parts[0]))
    parts[0].with_suffix(".jsonl.gz").write_bytes(gzip.compress(parts[0].read_bytes()))
    parts[0].unlink()
    assert len(read_trace(tmp_path / "parts")) == 8


def test_a_recording_overwrites_nothing(tmp_path: Path) -> None:
    async def talk(proxy: Recording, mock: MockServer) -> None:
        await proxy.complete()

    (tmp_path / "there.jsonl").write_text("mine")
    recorded(tmp_path / "parts", talk)
    with pytest.raises(TraceError, match="already there"):
        recorded(tmp_path / "there.jsonl", talk)
    with pytest.raises(TraceError, match="holds a recording already"):
        recorded(tmp_path / "parts", talk)
    assert (tmp_path / "there.jsonl").read_text() == "mine"


def test_an_untrusted_certificate_is_refused(tmp_path: Path) -> None:
    import shutil
    import ssl
    import subprocess

    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1",
         "-keyout", key, "-out", certificate], check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def run() -> None:
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0, ssl=context)
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(InputError, match=r"cannot be reached .*certificate verify failed"):
            async with recording(url, tmp_path / "tls.jsonl"):
                pass
        server.close()

    asyncio.run(run())
    assert not (tmp_path / "tls.jsonl").exists()
