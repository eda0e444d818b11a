"""Seconds, milliseconds and block sizes: what the user says, what the file proves, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moeprof.sources.describe import describe
from tests.helpers.trace_files import counts, read, refusal, said, write_rows, write_text


def lengths(*stamps: object) -> list[dict[str, Any]]:
    return [{"timestamp": stamp, "input_length": 100, "output_length": 10} for stamp in stamps]


def prompts(num_tokens: int, *ids: list[int]) -> list[dict[str, Any]]:
    rows = [{"timestamp": 1000 * i, "input_length": num_tokens, "output_length": 8} for i in range(len(ids))]
    return [row | {"hash_ids": list(blocks)} for row, blocks in zip(rows, ids, strict=True)]


def test_fractions_that_would_mean_200_requests_per_second_are_seconds(tmp_path: Path) -> None:
    trace = read(write_rows(tmp_path, lengths(0, 0.5, 10.0)))  # as milliseconds: 2 gaps in 0.01 s
    assert trace.arrival_s.tolist() == [0.0, 0.5, 10.0]
    assert "read in seconds (0.2 requests per second)" in said(trace, "timestamp_unit")
    assert "as milliseconds they mean 200 requests per second" in said(trace, "timestamp_unit")


def test_fractions_of_milliseconds_at_a_common_rate_stay_milliseconds_and_are_told(tmp_path: Path) -> None:
    trace = read(write_rows(tmp_path, lengths(0.25, 500.25, 1000.25)))  # 2 gaps in 1 s
    assert trace.arrival_s.tolist() == [0.0, 0.5, 1.0]
    assert "if it is in seconds, say timestamp_unit: s" in said(trace, "timestamp_unit")


def test_fractions_that_make_no_sense_in_any_unit_are_refused_until_the_user_speaks(tmp_path: Path) -> None:
    path = write_rows(tmp_path, lengths(0, 0.001, 0.004))  # 500 per second as seconds, 500,000 as milliseconds
    message = refusal(path)
    assert "the unit of timestamp is unclear (requests per second: 500 as s, 5e+05 as ms" in message
    assert "--timestamp-unit" in message
    assert read(path, timestamp_unit="s").arrival_s.tolist() == [0.0, 0.001, 0.004]


def test_the_users_unit_wins_over_what_the_stamps_look_like(tmp_path: Path) -> None:
    path = write_rows(tmp_path, lengths(0, 0.5, 10.0))
    milliseconds = read(path, timestamp_unit="ms")
    assert milliseconds.arrival_s.tolist() == [0.0, 0.0005, 0.01]
    assert milliseconds.notes == ()
    assert read(path, timestamp_unit="us").arrival_s.tolist() == [0.0, 5e-7, 1e-5]
    assert read(path, timestamp_unit="ns").arrival_s.tolist() == pytest.approx([0.0, 5e-10, 1e-8])


def test_whole_milliseconds_at_200_requests_per_second_are_told(tmp_path: Path) -> None:
    trace = read(write_rows(tmp_path, lengths(0, 5, 10)))
    assert trace.arrival_s.tolist() == [0.0, 0.005, 0.01]
    assert "200 requests per second" in said(trace, "timestamp_unit")


def test_common_milliseconds_need_no_word(tmp_path: Path) -> None:
    assert read(write_rows(tmp_path, lengths(0, 500, 2000))).notes == ()


@pytest.mark.parametrize(
    ("first", "second", "word"),
    [
        (1_700_000_000_000, 1_700_000_000_250, "milliseconds"),
        (1_700_000_000_000_000, 1_700_000_000_250_000, "microseconds"),
        (1_700_000_000_000_000_000, 1_700_000_000_250_000_000, "nanoseconds"),
    ],
)
def test_a_clock_since_1970_proves_its_unit(tmp_path: Path, first: int, second: int, word: str) -> None:
    path = write_text(tmp_path, f"Timestamp,Request tokens,Response tokens\n{first},1,2\n{second},3,4\n")
    trace = read(path)
    assert trace.arrival_s.tolist() == pytest.approx([0.0, 0.25], abs=1e-6)  # a double resolves 256 ns of such a clock
    assert f"read in {word} (4 requests per second): the stamps are a clock since 1970" in said(trace, "timestamp_unit")


def test_a_clock_in_the_formats_own_unit_needs_no_word(tmp_path: Path) -> None:
    trace = read(write_rows(tmp_path, lengths(1_700_000_000_000, 1_700_000_000_001)))
    assert trace.arrival_s.tolist() == [0.0, 0.001]
    assert trace.notes == ()


def test_a_request_in_a_thousand_seconds_looks_like_milliseconds_and_is_told(tmp_path: Path) -> None:
    trace = read(write_text(tmp_path, "Timestamp,Request tokens,Response tokens\n0,1,2\n1000,3,4\n"))
    assert trace.arrival_s.tolist() == [0.0, 1000.0]
    assert "if it is in milliseconds, say timestamp_unit: ms" in said(trace, "timestamp_unit")


def test_iso_times_are_read_where_numbers_were_the_custom_and_numbers_where_iso_was(tmp_path: Path) -> None:
    iso = read(write_rows(tmp_path, lengths("2024-05-10T00:00:00.5Z", "2024-05-10T00:00:02Z")))
    assert iso.arrival_s.tolist() == [0.0, 1.5]
    azure = "TIMESTAMP,ContextTokens,GeneratedTokens\n5,1,1\n7,3,3\n"
    assert read(write_text(tmp_path, azure), timestamp_unit="ms").arrival_s.tolist() == [0.0, 0.002]


def test_a_row_that_is_no_time_among_iso_times_is_named(tmp_path: Path) -> None:
    path = write_rows(tmp_path, lengths("2024-05-10T00:00:00Z", 7))
    assert refusal(path).startswith(":2: timestamp is 7; a time like 2024")
    assert refusal(write_rows(tmp_path, lengths(5, 7)), timestamp_unit="iso").startswith(":1: timestamp is 5; a time")


def test_a_unit_for_a_file_without_times_or_with_seconds_by_name_is_not_lost(tmp_path: Path) -> None:
    path = write_rows(tmp_path, [{"input_length": 1, "output_length": 1, "hash_ids": [1]}])
    assert "no times are read" in said(read(path, timestamp_unit="ms"), "timestamp_unit")
    own = write_rows(tmp_path, [{"arrival_s": 1.0, "input_tokens": 1, "output_tokens": 1, "prefix_blocks": [1]}])
    assert "arrival_s is in seconds" in refusal(own, timestamp_unit="ms")


def test_four_ids_for_64_tokens_are_blocks_of_16_and_share_48_of_64(tmp_path: Path) -> None:
    path = write_rows(tmp_path, prompts(64, *([0, 1, 2, 10 + i] for i in range(10))))
    trace = read(path)
    assert trace.prefix_block_tokens == 16
    assert "blocks of 16 tokens" in said(trace, "block_tokens")
    assert describe(trace).reused_prefix_ratio == pytest.approx(9 * 48 / 640)  # 0.675


def test_the_users_block_size_wins_and_rows_that_do_not_fit_it_are_counted(tmp_path: Path) -> None:
    path = write_rows(tmp_path, prompts(64, [0, 1, 2, 10], [0, 1, 2, 11]))
    trace = read(path, block_tokens=32)  # two ids would do for 64 tokens
    assert trace.prefix_block_tokens == 32
    assert counts(trace) == {"prefix_blocks_mismatch": 2}
    assert describe(trace).reused_prefix_ratio == 0.5  # the second prompt is the first


def test_512_stands_where_it_fits_as_well_as_any_other_size(tmp_path: Path) -> None:
    trace = read(write_rows(tmp_path, prompts(1024, [1, 2], [1, 3])))
    assert trace.prefix_block_tokens == 512
    assert trace.notes == ()
    assert describe(trace).reused_prefix_ratio == 0.25


def test_ids_left_out_for_a_last_block_that_is_not_full_are_no_other_block_size(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 0, "input_length": length, "output_length": 1, "hash_ids": list(range(length // 16))}
        for length in (100, 250, 999, 1500)
    ]
    chats = [row | {"chat_id": i, "parent_chat_id": -1, "timestamp": i} for i, row in enumerate(rows)]
    assert read(write_rows(tmp_path, chats)).prefix_block_tokens == 16


def test_ids_that_fit_no_block_size_are_refused_until_the_user_speaks(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 1000 * i, "input_length": length, "output_length": 1, "hash_ids": list(range(number))}
        for i, (length, number) in enumerate([(10, 9), (1000, 3), (5000, 2), (70, 30), (900, 11), (40, 1)])
    ]
    path = write_rows(tmp_path, rows)
    assert "no other size fits half; say block_tokens (--block-tokens)" in refusal(path)
    assert read(path, block_tokens=64).prefix_block_tokens == 64


def test_a_block_size_for_a_file_without_ids_is_not_lost(tmp_path: Path) -> None:
    assert "no ids" in said(read(write_rows(tmp_path, lengths(0, 1000)), block_tokens=16), "block_tokens")


def test_ids_without_times_share_their_prefixes(tmp_path: Path) -> None:
    rows = [{"input_length": 100, "hash_ids": [1], "output_length": 10}] * 2
    for format in (None, "jsonl"):
        trace = read(write_rows(tmp_path, rows), format)
        assert counts(trace) == {"no_times": 2}
        assert describe(trace).reused_prefix_ratio == 0.5


def test_mooncake_sessions_are_kept_and_later_turns_stand_their_delay_after_the_one_before(tmp_path: Path) -> None:
    length = {"input_length": 100, "output_length": 10}
    rows = [
        {"session_id": "a", "timestamp": 0} | length,
        {"session_id": "a", "delay": 500} | length,
        {"session_id": "b", "timestamp": 200} | length,
    ]
    trace = read(write_rows(tmp_path, rows), "mooncake")  # by content it is AIPerf's form
    assert trace.arrival_s.tolist() == [0.0, 0.2, 0.5]
    assert trace.session == ("a", "b", "a")
    assert counts(trace) == {"sorted": 1}
    assert trace.delay_s is not None
    assert trace.delay_s[2] == 0.5


def test_a_delay_in_a_file_of_seconds_is_in_seconds(tmp_path: Path) -> None:
    rows = [*lengths(0, 0.5), {"session_id": "a", "timestamp": 8.0, "input_length": 1, "output_length": 1}]
    rows.append({"session_id": "a", "delay": 2, "input_length": 1, "output_length": 1})
    assert read(write_rows(tmp_path, rows)).arrival_s.tolist() == [0.0, 0.5, 8.0, 10.0]
