"""Recordings as traces: order, estimates, what is dropped, damaged files; from a recording to a schedule and back."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeprof.core.errors import TraceError
from moeprof.core.trace import Schedule
from moeprof.core.workload.traffic import Prompts, TraceSource, Traffic
from moeprof.sources.formats import read_trace, write_trace
from moeprof.sources.formats.recording import HEADER_KEY
from moeprof.sources.proxy import writer as writing
from moeprof.sources.proxy.answers import Answer
from moeprof.sources.proxy.writer import RecordingWriter
from moeprof.sources.schedule import build_schedule
from moeprof.sources.tokenizer import load_tokenizer
from tests.helpers.mock_openai import mock_server, recording, rows_of

HEADER = {HEADER_KEY: 1, "recording": "a", "prefix_block_characters": 512, "prefix_block_ids": 128}
TINY = Path(__file__).parents[2] / "workloads/models/demo-moe"


def row(arrival_s: float, **keys: Any) -> dict[str, Any]:
    return {"arrival_s": arrival_s, "status": "ok", "http_status": 200, "input_tokens": 8, "output_tokens": 4, **keys}


def file(tmp_path: Path, *rows: dict[str, Any], end: str = "") -> Path:
    path = tmp_path / "recording.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows) + end)
    return path


def notes(path: Path) -> dict[str, int]:
    return {note.code: note.count for note in read_trace(path).notes}


def test_rows_stand_in_the_order_they_ended_and_are_read_in_the_order_they_came(tmp_path: Path) -> None:
    """The session's first request ended last: nobody is moved behind it, and nothing needs to be said."""
    path = file(tmp_path, HEADER, row(2.5, session="s"), row(1.5, session="s"), row(1.0, session="s", output_tokens=9))
    trace = read_trace(path)
    assert trace.arrival_s.tolist() == [0.0, 0.5, 1.5]
    assert trace.output_tokens.tolist() == [9, 4, 4]
    assert trace.notes == ()


def test_lengths_that_no_server_told_are_estimated_at_the_recordings_own_ratio(tmp_path: Path) -> None:
    """40 characters were 8 tokens, so 100 characters are 20; 7 chunks are taken as 7 tokens."""
    told = row(0.0, prompt_characters=40, prefix_blocks=[1])
    untold = row(1.0, input_tokens=None, output_tokens=None, prompt_characters=100, output_chunks=7, prefix_blocks=[1])
    path = file(tmp_path, HEADER, told, untold)
    trace = read_trace(path)
    assert trace.input_tokens.tolist() == [8, 20]
    assert trace.output_tokens.tolist() == [4, 7]
    assert trace.prefix_block_tokens == 102  # 512 characters at 5 a token
    assert notes(path) == {"input_estimated": 1, "output_estimated": 1, "prefix_blocks_estimated": 2}


def test_failures_are_dropped_and_counted_by_kind(tmp_path: Path) -> None:
    path = file(
        tmp_path, HEADER, row(0.0), row(1.0, status="http_error", http_status=429), row(2.0, status="stream_error"),
        row(3.0, status="http_error", http_status=429), row(4.0, prompts=3), row(5.0, output_tokens=0),
    )  # fmt: skip
    assert len(read_trace(path)) == 1
    assert notes(path) == {"dropped_failed": 3, "dropped_several_prompts": 1, "dropped_no_output": 1}
    texts = " ".join(note.text for note in read_trace(path).notes)
    assert "(http_error 429 2, stream_error 1)" in texts


def test_half_a_row_at_the_end_is_left_out_and_told(tmp_path: Path) -> None:
    whole = json.dumps(row(1.0))
    for cut in range(1, len(whole)):
        path = file(tmp_path, HEADER, row(0.0), end=whole[:cut])
        assert (len(read_trace(path)), notes(path)) == (1, {"half_row": 1})
    assert len(read_trace(file(tmp_path, HEADER, row(0.0), end=whole))) == 2


@pytest.mark.parametrize(
    ("rows", "end", "said"),
    [
        ([HEADER], "", "no recorded request can be replayed"),
        ([HEADER], '{"arrival_s": 0.', "no recorded request can be replayed"),
        ([HEADER | {HEADER_KEY: 2}, row(0.0)], "", "written by a newer moeprof"),
        ([HEADER | {HEADER_KEY: "x"}, row(0.0)], "", "moeprof_recording is 'x'"),
        ([HEADER | {"prefix_block_characters": 0}, row(0.0)], "", "prefix_block_characters is 0"),
        ([HEADER, row(0.0), HEADER | {"recording": "b"}, row(1.0)], "", ":3: a second recording begins here"),
        ([HEADER, row(0.0, output_tokens=-1)], "", ":2: output_tokens is -1"),
        ([HEADER, row(0.0), row(float("inf"))], "", ":3: arrival_s is Infinity"),
        ([HEADER, row(0.0, output_tokens=None, output_chunks="x")], "", ":2: output_chunks is 'x'"),
        ([HEADER, row(0.0, prompts=[])], "", ":2: prompts is []"),
        ([HEADER, row(0.0, input_tokens="x")], "", ":2: input_tokens is 'x'"),
        ([HEADER, row(0.0, prefix_blocks=["x"])], "", ':2: prefix_blocks is ["x"]'),
    ],
)
def test_a_damaged_recording_is_refused_by_row(tmp_path: Path, rows: list[dict[str, Any]], end: str, said: str) -> None:
    with pytest.raises(TraceError) as caught:
        read_trace(file(tmp_path, *rows, end=end))
    assert said in str(caught.value)


def test_a_broken_row_in_the_middle_is_no_half_row(tmp_path: Path) -> None:
    path = tmp_path / "recording.jsonl"
    path.write_text(f'{json.dumps(HEADER)}\n{{"arrival_s"\n{json.dumps(row(0.0))}\n')
    with pytest.raises(TraceError, match=":2: broken JSON"):
        read_trace(path)


def test_a_recording_converts_to_the_same_trace(tmp_path: Path) -> None:
    path = file(tmp_path, HEADER, row(3.25, session="s", prefix_blocks=[5, 6], prompt_characters=32), row(1.0))
    write_trace(read_trace(path), tmp_path / "plain.jsonl")
    again, first = read_trace(tmp_path / "plain.jsonl"), read_trace(path)
    assert again.source == "jsonl"
    assert (again.arrival_s.tolist(), again.output_tokens.tolist()) == ([0.0, 2.25], [4, 4])
    assert (again.session, again.prefix_blocks) == (first.session, first.prefix_blocks) == (("", "s"), ((), (5, 6)))


def test_text_of_two_kinds_leaves_the_lengths(tmp_path: Path) -> None:
    path = file(tmp_path, HEADER, row(0.0, prompt="a"), row(1.0, messages=[{"role": "user", "content": "b"}]))
    trace = read_trace(path)
    assert (trace.prompt_text, trace.messages, trace.input_tokens.tolist()) == (None, None, [8, 8])
    assert notes(path) == {"text_left_out": 2}


# -- the writer --------------------------------------------------------------------------------------------------------


def test_a_line_that_does_not_fit_on_the_disk_leaves_no_half_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.jsonl"
    kept = RecordingWriter(path, HEADER, part_bytes=10**6)
    kept.write(row(0.0))
    real = writing.os.write
    monkeypatch.setattr(writing.os, "write", lambda file, data: real(file, data[: len(data) // 2]))
    kept.write(row(1.0))
    monkeypatch.undo()
    kept.write(row(2.0))
    kept.close()
    assert [one["arrival_s"] for one in rows_of(path)] == [0.0, 2.0]
    assert (kept.rows, kept.lost, kept.problem) == (2, 1, "no space for a whole line")


# -- streams, cut anywhere ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_a_stream_is_read_the_same_wherever_it_is_cut(line_end: bytes) -> None:
    events = [b'{"choices": [{"text": "\xc3\xa9"}]}', b'{"choices": [{"text": "b", "finish_reason": "stop"}]}',
              b'{"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 3}}', b"[DONE]"]  # fmt: skip
    stream = b"".join(b": ping%b%bdata: %b%b%b" % (line_end, line_end, e, line_end, line_end) for e in events)
    for size in (1, 2, 7, len(stream)):
        answer = Answer(200, "text/event-stream", keep_text=True)
        for at in range(0, len(stream), size):
            answer.feed(stream[at : at + size])
        answer.close()
        told = answer.columns()
        assert (told["output_chunks"], told["output_tokens"], told["output"]) == (2, 3, "\u00e9b"), size
        assert (answer.status(), told["finish_reason"]) == ("ok", "stop")


def test_an_answer_that_is_no_json_is_no_error_of_ours() -> None:
    for body in (b"", b"\xff\xfe", b"[" * 100_000, b'{"usage": 3, "choices": {"a": 1}}', b'{"choices": [[], null, 3]}'):
        answer = Answer(200, "application/json", keep_text=True)
        answer.feed(body)
        answer.close()
        assert "output_tokens" not in answer.columns()


# -- replay ------------------------------------------------------------------------------------------------------------


def schedule_of(recorded: Path) -> Schedule:
    tokenizer = load_tokenizer(TINY)
    traffic = Traffic(trace=TraceSource(path=str(recorded)), prompts=Prompts(source="packaged"))
    return build_schedule(traffic, tokenizer=tokenizer, seed=0).measured


async def replay(schedule: Schedule, url: str, output: Path) -> None:
    """What a client does with a schedule: each request at its time, with its lengths."""
    async with recording(url, output) as proxy:
        await proxy.complete()  # a connection and whatever is slow at first; it is row 0
        loop = asyncio.get_running_loop()
        begin = loop.time() + 0.2

        async def one(arrival_s: float, prompt: int, number: int) -> None:
            await asyncio.sleep(begin + arrival_s - loop.time())
            usage = {"stream_options": {"include_usage": True}}
            await proxy.complete(prompt="w " * prompt, max_tokens=number, stream=True, **usage)

        lengths = zip(schedule.input_tokens.tolist(), schedule.output_tokens.tolist(), strict=True)
        await asyncio.gather(*(one(s, *pair) for s, pair in zip(schedule.arrival_s.tolist(), lengths, strict=True)))


@pytest.mark.process
def test_a_replay_of_a_recording_has_its_arrivals_and_lengths(tmp_path: Path) -> None:
    """Arrivals 0, 0.11, ... with gaps of 70 to 150 ms; recorded, read as a schedule, sent again, recorded again."""
    planted = file(tmp_path, HEADER, *(row(0.1 * i + 0.01 * (i % 3), input_tokens=5 + i, output_tokens=1 + i)
                                       for i in range(12)))  # fmt: skip

    async def twice(number: int) -> list[Schedule]:
        async with mock_server() as mock:
            schedules = [schedule_of(planted)]
            for name in ("first", "second"):
                output = tmp_path / f"{name}-{number}.jsonl"
                await replay(schedules[-1], mock.url, output)
                without_first = output.read_text().splitlines()
                output.write_text("\n".join([without_first[0], *without_first[2:]]) + "\n")
                schedules.append(schedule_of(output))
        return schedules

    off = []
    for number in range(4):  # a busy machine may wake a client late: that is not the recording's fault
        wanted, first, second = asyncio.run(twice(number))
        for again in (first, second):
            assert again.input_tokens.tolist() == wanted.input_tokens.tolist() == list(range(5, 17))
            assert again.output_tokens.tolist() == wanted.output_tokens.tolist() == list(range(1, 13))
        off.append(float(np.abs(second.arrival_s - first.arrival_s).max()))
        if off[-1] <= 0.010:
            break
    assert min(off) <= 0.010, off
