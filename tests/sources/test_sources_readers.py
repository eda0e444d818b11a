"""Each format, read from small files with numbers that can be checked in the head, and from the real traces."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from moeprof.core.errors import TraceError
from moeprof.core.trace import Trace
from moeprof.sources.formats import READERS, read_trace, reader, write_trace
from tests.helpers.shared_data import shared

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def write(folder: Path, text: str, name: str = "trace.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def codes(trace: Trace) -> dict[str, int]:
    return {note.code: note.count for note in trace.notes}


def message(path: Path, format: str | None = None) -> str:
    with pytest.raises(TraceError) as caught:
        read_trace(path, format)
    text = str(caught.value)
    assert "\n" not in text
    return text.removeprefix(str(path))


def test_azure_2023_stamps_keep_their_seven_digits(tmp_path: Path) -> None:
    path = write(
        tmp_path, AZURE + "2023-11-16 18:17:03.9799600,4808,10\r\n2023-11-16 18:17:04.0319607,3180,8"
    )  # no final newline
    trace = read_trace(path)
    assert trace.source == "azure"
    assert trace.arrival_s.tolist() == pytest.approx([0.0, 0.0520007], abs=1e-12)
    assert trace.input_tokens.tolist() == [4808, 3180]
    assert trace.output_tokens.tolist() == [10, 8]
    assert trace.notes == ()


def test_azure_2024_stamps_may_have_a_zone_and_no_fraction(tmp_path: Path) -> None:
    path = write(tmp_path, AZURE + "2024-05-10 00:00:00+00:00,5,1\n2024-05-10 00:00:01.500000+00:00,6,2\n\n")
    assert read_trace(path).arrival_s.tolist() == [0.0, 1.5]


def test_burstgpt_is_read_by_column_name_and_failed_requests_are_counted(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "Model,Timestamp,Response tokens,Request tokens,Total tokens,Log Type\n"
        "GPT-4,5.0,20,10,30,API log\nGPT-4,7.5,0,10,10,API log\nChatGPT,9,40,30,70,Conversation log\n",
    )
    trace = read_trace(path)
    assert trace.source == "burstgpt"
    assert trace.arrival_s.tolist() == [0.0, 4.0]
    assert trace.input_tokens.tolist() == [10, 30]
    assert trace.output_tokens.tolist() == [20, 40]
    assert trace.request_class == ("API log", "Conversation log")
    assert codes(trace) == {"dropped_failed": 1, "unused_keys": 3}
    assert trace.notes[-1].text == "columns of the file that are not used: Model"


def test_vidur_files_with_and_without_times_are_read(tmp_path: Path) -> None:
    timed = read_trace(write(tmp_path, "arrived_at,num_prefill_tokens,num_decode_tokens\n1,10,2\n3,20,4\n"))
    untimed = read_trace(write(tmp_path, "num_prefill_tokens,num_decode_tokens,pd_ratio\n10,2,5.0\n"))
    assert timed.arrival_s.tolist() == [0.0, 2.0]
    assert codes(untimed) == {"no_times": 1}


def test_mooncake_milliseconds_and_hash_ids_become_seconds_and_prefix_blocks(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 1000, "input_length": 600, "output_length": 5, "hash_ids": [7, 8]},
        {"timestamp": 1500, "input_length": 513, "output_length": 6, "hash_ids": [7, 9]},
        {"timestamp": 2000, "input_length": 10, "output_length": 7, "hash_ids": [1, 2]},  # one id too many
    ]
    trace = read_trace(write(tmp_path, "\n".join(map(json.dumps, rows)), "m.jsonl"))
    assert trace.source == "mooncake"
    assert trace.arrival_s.tolist() == [0.0, 0.5, 1.0]
    assert trace.prefix_blocks == ((7, 8), (7, 9), (1, 2))
    assert trace.prefix_block_tokens == 512
    assert codes(trace) == {"prefix_blocks_mismatch": 1}


def test_bailian_chats_become_sessions_and_sixteen_token_blocks(tmp_path: Path) -> None:
    base = {"input_length": 16, "output_length": 5, "type": "text", "hash_ids": [1]}
    rows = [
        base | {"chat_id": 1, "parent_chat_id": -1, "timestamp": 0.0, "turn": 1},
        base | {"chat_id": 2, "parent_chat_id": -1, "timestamp": 1.0, "turn": 1},
        base | {"chat_id": 3, "parent_chat_id": 1, "timestamp": 2.0, "turn": 2},
        base | {"chat_id": 4, "parent_chat_id": 3, "timestamp": 3.0, "turn": 3},
    ]
    trace = read_trace(write(tmp_path, "\n".join(map(json.dumps, rows)), "b.jsonl"))
    assert trace.source == "bailian"
    assert trace.session == ("1", "2", "1", "1")
    assert trace.prefix_block_tokens == 16
    assert trace.request_class == ("text",) * 4


def test_every_answer_of_a_sharegpt_conversation_is_a_request_with_its_history(tmp_path: Path) -> None:
    turns = [("gpt", "cut off"), ("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d")]
    conversations = [
        {"id": "x", "conversations": [{"from": who, "value": text} for who, text in turns]},
        {"id": "y", "conversations": [{"from": "human", "value": "nobody answers"}]},
    ]
    trace = read_trace(write(tmp_path, json.dumps(conversations), "s.json"))
    assert trace.source == "sharegpt"
    assert trace.messages == ((("user", "a"),), (("user", "a"), ("assistant", "b"), ("user", "c")))
    assert trace.output_text == ("b", "d")
    assert trace.session == ("x", "x")
    assert codes(trace) == {"dropped_conversations": 1, "no_times": 2}


def test_own_jsonl_takes_prompts_and_aiperf_turns_follow_by_their_delay(tmp_path: Path) -> None:
    prompts = read_trace(write(tmp_path, '{"prompt": "a", "output_tokens": 3}\n{"prompt": "b"}\n', "p.jsonl"))
    assert prompts.prompt_text == ("a", "b")
    assert prompts.output_tokens.tolist() == [3, -1]
    rows = [
        {"text": "a", "timestamp": 1000, "session_id": "s"},
        {"text": "b", "delay": 500, "session_id": "s", "output_length": 9},
    ]
    turns = read_trace(write(tmp_path, "\n".join(map(json.dumps, rows)), "a.jsonl"))
    assert turns.arrival_s.tolist() == [0.0, 0.5]
    assert turns.session == ("s", "s")
    assert turns.output_tokens.tolist() == [-1, 9]


def test_unsorted_times_are_sorted_and_said(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path, "arrived_at,num_prefill_tokens,num_decode_tokens\n5,1,1\n3,2,2\n4,3,3\n"))
    assert trace.arrival_s.tolist() == [0.0, 1.0, 2.0]
    assert trace.input_tokens.tolist() == [2, 3, 1]
    assert codes(trace) == {"sorted": 1}


def test_a_session_request_before_its_predecessor_is_moved_and_said(tmp_path: Path) -> None:
    row = '{{"arrival_s": {}, "input_tokens": 1, "output_tokens": 1, "session": "{}"}}\n'
    trace = read_trace(write(tmp_path, row.format(0, "a") + row.format(9, "b") + row.format(4, "b"), "j.jsonl"))
    assert trace.arrival_s.tolist() == [0.0, 9.0, 9.0]
    assert codes(trace) == {"session_order": 1}


def test_requests_without_prompt_or_output_are_dropped_and_counted(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path, "num_prefill_tokens,num_decode_tokens\n0,1\n1,0\n2,2\n"))
    assert len(trace) == 1
    assert codes(trace) == {"dropped_no_input": 1, "dropped_no_output": 1, "no_times": 1}


def test_gzip_and_a_byte_order_mark_make_no_difference(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbfnum_prefill_tokens,num_decode_tokens\n3,4\n"))
    assert read_trace(path).input_tokens.tolist() == [3]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ": empty"),
        (AZURE, ": no rows"),
        ("TIMESTAMP,ContextToken,GeneratedTokens\n2023-11-16 18:17:03,1,1\n", "no column 'ContextTokens' (nearest"),
        (AZURE + "2023-11-16 18:17:03.1,1,1\n\n2023-11-16 18:17:04.1,ten,1\n", ":4: ContextTokens is 'ten'"),
        (AZURE + "2023-11-16 18:17:03.1,1,1\n2023-11-16 18:17:04.1,,1\n", ":3: ContextTokens is empty"),
        (AZURE + "2023-11-16 18:17:03.1,nan,1\n", ":2: ContextTokens is nan"),
        (AZURE + "2023-11-16 18:17:03.1,1,inf\n", ":2: GeneratedTokens is inf"),
        (AZURE + "2023-11-16 18:17:03.1,1,-5\n", ":2: GeneratedTokens is -5"),
        (AZURE + "2023-11-16 18:17:03.1,1.5,1\n", ":2: ContextTokens is 1.5; a whole number"),
        (AZURE + "2023-11-16 18:17:03.1,1,1\nyesterday,1,1\n", ":3: TIMESTAMP is 'yesterday'"),
        (AZURE + "2023-11-16 18:17:03.1,1,1\n2023-11-16 18:17:03.1+00:00,1,1\n", ":3: TIMESTAMP is"),
        (AZURE + "2023-11-16 18:17:03.1,1,1\n2023-11-16 18:17:04.1,1\n", ":3: 2 cells in this row, 3 are expected"),
        (AZURE + "2023-11-16 18:17:03.1,0,0\n", ": none of its 1 rows"),
    ],
)
def test_a_bad_azure_file_is_refused_in_one_line_with_the_row(tmp_path: Path, text: str, said: str) -> None:
    assert said in message(write(tmp_path, text), "azure")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"timestamp": 0, "input_length": 1, "output_length": 1}\n{"timestamp": 0', ":2: broken JSON"),
        ('{"timestamp": 0, "input_length": 1, "output_length": 1}\n[1]', ":2: a JSON object is expected"),
        ('{"timestamp": 0, "input_length": 1, "output_length": 1}\n\n{"timestamp": 0}', ":3: input_length is missing"),
        ('{"timestamp": NaN, "input_length": 1, "output_length": 1}', ":1: timestamp is nan"),
        ('{"timestamp": 0, "input_length": "9", "output_length": 1}', ":1: input_length is '9'"),
        ('{"timestamp": 0, "input_length": true, "output_length": 1}', ":1: input_length is true"),
        ('{"timestamp": 0, "input_length": -1, "output_length": 1}', ":1: input_length is -1"),
        ('{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": ["a"]}', ":1: hash_ids is"),
        ('{"prompt": "a", "output_tokens": 1}\n{"output_tokens": 1}', ":2: prompt is missing"),
        ('{"prompt": "\\ud800", "output_tokens": 1}', ":1: prompt holds half a surrogate"),
        ('{"messages": [], "output_tokens": 1}', ":1: messages is []"),
        (
            '{"input_tokens": 1, "output_tokens": 1}\n{"input_tokens": 1, "output_tokens": -2}',
            ":2: output_tokens is -2",
        ),
        ('{"conversations": 3}', ":1: conversations must be"),
        ('{"colour": "red"}', ": not a known trace (found keys colour)"),
    ],
)
def test_a_bad_json_file_is_refused_in_one_line_with_the_row(tmp_path: Path, text: str, said: str) -> None:
    assert said in message(write(tmp_path, text, "t.jsonl"))


def test_bytes_that_are_no_text_are_refused_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"num_prefill_tokens,num_decode_tokens\n1,\xff\n")
    assert ":2: not UTF-8 text (byte 0xff)" in message(path)


def test_missing_files_folders_and_unknown_formats_are_refused(tmp_path: Path) -> None:
    assert "no such file" in message(tmp_path / "absent.csv")
    assert "this is a folder; give the file in it" in message(tmp_path)
    with pytest.raises(TraceError, match=r"'azur'; did you mean 'azure'\? \(known: recording, azure, burstgpt"):
        read_trace(tmp_path / "absent.csv", "azur")


def test_every_format_of_the_index_is_a_reader() -> None:
    for name in READERS:
        assert callable(reader(name).matches)
        assert callable(reader(name).read)


def test_the_fast_and_the_careful_way_read_the_same_jsonl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moeprof.sources.formats import jsonl

    row = '{{"arrival_s": {!r}, "input_tokens": {}, "output_tokens": 2, "request_class": "\u00fc{}"}}\n'
    path = write(tmp_path, "".join(row.format(i / 7, i + 1, i) for i in range(50)), "j.jsonl")
    fast = read_trace(path)
    monkeypatch.setattr(jsonl, "_read_fast", lambda file: None)
    careful = read_trace(path)
    assert np.array_equal(fast.arrival_s, careful.arrival_s)
    assert np.array_equal(fast.input_tokens, careful.input_tokens)
    assert fast.request_class == careful.request_class


def test_what_is_written_reads_back_the_same_and_nothing_is_overwritten(tmp_path: Path) -> None:
    rows = [
        {"arrival_s": 0.1 * i, "messages": [{"role": "user", "content": f"\u00fc{i}"}], "session": "s", "output": "o"}
        for i in range(3)
    ]
    trace = read_trace(write(tmp_path, "\n".join(map(json.dumps, rows)), "j.jsonl"))
    out = tmp_path / "out.jsonl"
    write_trace(trace, out)
    again = read_trace(out)
    assert np.array_equal(again.arrival_s, trace.arrival_s)
    assert (again.messages, again.session, again.output_text) == (trace.messages, trace.session, trace.output_text)
    with pytest.raises(TraceError, match="already there"):
        write_trace(trace, out)
    write_trace(trace, out, force=True)


@pytest.mark.parametrize(
    ("name", "rows", "rate", "cv", "input_p50_p99", "output_p50_p99"),
    [
        ("code", 8819, 2.57, 13.15, (1469, 7436), (13, 251)),
        ("conv", 19366, 5.53, 1.09, (1020, 4142), (129, 601)),
    ],
)
def test_the_real_azure_traces_have_their_known_statistics(
    name: str, rows: int, rate: float, cv: float, input_p50_p99: tuple[int, int], output_p50_p99: tuple[int, int]
) -> None:
    from moeprof.sources.describe import describe

    stats = describe(read_trace(shared(f"traces/AzureLLMInferenceTrace_{name}.csv")))
    assert stats.num_requests == rows
    assert stats.request_rate_per_s == pytest.approx(rate, abs=0.005)
    assert stats.gap_cv == pytest.approx(cv, abs=0.005)
    assert stats.input is not None
    assert stats.output is not None
    assert (int(stats.input.p50), int(stats.input.p99)) == input_p50_p99
    assert (int(stats.output.p50), int(stats.output.p99)) == output_p50_p99


def test_the_real_mooncake_trace_stands_on_a_grid_that_is_said() -> None:
    trace = read_trace(shared("traces/mooncake_conversation.jsonl"))
    assert len(trace) == 12031
    assert len(np.unique(trace.arrival_s)) == 1180
    assert codes(trace) == {"grid_detected": 12031}
    assert "3 s grid" in trace.notes[0].text
