"""Small inputs on which readers once went wrong, read where they lie beside the repository; absent ones are skipped."""

from __future__ import annotations

import pytest

from moeprof.sources.describe import describe
from tests.helpers.shared_data import shared
from tests.helpers.trace_files import counts, read, refusal, said


@pytest.mark.parametrize(
    ("name", "rate", "span_s"),
    [
        ("timestamps-in-seconds/trace.jsonl", 0.2, 10.0),
        ("guidellm-seconds/guidellm_docs.jsonl", 2.0, 0.5),
        ("guidellm-seconds/guidellm_mooncake_seconds.jsonl", 1.0, 2.0),
    ],
)
def test_seconds_under_mooncakes_names_are_seconds(name: str, rate: float, span_s: float) -> None:
    stats = describe(read(shared(f"cases/{name}")))
    assert (stats.request_rate_per_s, stats.span_s) == (rate, span_s)
    assert "timestamp_unit" in {note.code for note in stats.notes}


def test_sixteen_token_blocks_share_48_of_64_tokens() -> None:
    trace = read(shared("cases/hash-block-size/trace.jsonl"))
    assert describe(trace).reused_prefix_ratio == pytest.approx(0.675)


@pytest.mark.parametrize(
    "name",
    [
        "hash-ids-without-times/trace.jsonl",
        "aiperf-hash-ids-without-time/aiperf_mooncake_notime_hash.jsonl",
    ],
)
def test_prefix_ids_without_times_are_shared(name: str) -> None:
    assert describe(read(shared(f"cases/{name}"))).reused_prefix_ratio == 0.5


@pytest.mark.parametrize("format", [None, "jsonl"])
@pytest.mark.parametrize("name", ["all_stamps.jsonl", "with_delay.jsonl"])
def test_sessions_are_kept(name: str, format: str | None) -> None:
    assert describe(read(shared(f"cases/session-dropped/{name}"), format)).num_sessions == 2


def test_packed_and_binary_files_are_read_or_named() -> None:
    trace = read(shared("cases/binary-called-not-utf8/azure.parquet"))
    assert (trace.source, len(trace)) == ("azure", 200)
    assert (int(trace.input_tokens[0]), int(trace.output_tokens[0])) == (374, 44)
    assert "found columns x" in refusal(shared("cases/binary-called-not-utf8/a.csv.xz"))
    assert refusal(shared("cases/binary-files/trace.csv.zst")).startswith(": damaged zstd file")
    assert refusal(shared("cases/binary-files/x.parquet")).startswith(": damaged parquet file")


def test_one_object_over_several_lines_is_read_by_its_named_columns() -> None:
    trace = read(
        shared("cases/json-object-called-broken/otel_simple_chain.json"),
        columns={
            "arrival": "start_time",
            "text": "attributes.gen_ai.input.messages",
            "output": "attributes.gen_ai.output.text",
        },
    )
    assert trace.arrival_s.tolist() == [0.0, 3.0, 6.0]
    assert trace.messages is not None
    assert [len(messages) for messages in trace.messages] == [1, 3, 5]
    assert "end_time" in said(trace, "unused_keys")


def test_images_are_counted_or_named() -> None:
    assert counts(read(shared("cases/images-dropped/multimodal.csv")))["images_left_out"] == 1
    trace = read(shared("cases/images-dropped/image.json"))
    assert "1 image items" in said(trace, "media_left_out")
    assert trace.messages == ((("user", "What is it?"),),)
