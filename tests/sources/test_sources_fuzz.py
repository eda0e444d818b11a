"""Whatever the bytes are: a Trace, or a TraceError in one line. Nothing else."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moeprof.core.errors import TraceError
from moeprof.core.trace import Trace
from moeprof.sources.formats import READERS, read_trace

HEADERS = [
    "TIMESTAMP,ContextTokens,GeneratedTokens",
    "Timestamp,Request tokens,Response tokens",
    "arrived_at,num_prefill_tokens,num_decode_tokens",
    "arrival_timestamp,prompt_size,token_size",
    "prompt,output_tokens_count,prompt_tokens_count",
]
KEYS = [
    *("timestamp", "input_length", "output_length", "hash_ids", "chat_id", "parent_chat_id", "type", "conversations"),
    *(
        "body",
        "custom_id",
        "url",
        "response",
        "error",
        "tools",
        "max_tokens",
        "call_type",
        "startTime",
        "prompt_tokens",
    ),
    *("completion_tokens", "status", "cache_hit", "session_id", "batch", "traceId", "usage", "usageDetails", "level"),
    *("captureData", "eventMetadata", "resourceSpans", "spans", "attributes", "startTimeUnixNano", "start_time", "id"),
    *("requests", "t", "in", "out", "think_time", "block_size", "text", "texts", "text_input", "turns", "image"),
    *("metadata", "metrics", "conversation", "ts", "output_tokens_count", "prompt_0", "image_files"),
    *(
        "arrival_s",
        "input_tokens",
        "output_tokens",
        "prompt",
        "messages",
        "output",
        "session",
        "prefix_blocks",
        "delay",
    ),
]
INNER_KEYS = ["from", "value", "role", "content", "type", "text", "parts", "messages", "key", "data", "encoding"]
INNER_KEYS += ["endpointInput", "inferenceTime", "scopeSpans", "spans", "attributes", "gen_ai.input.messages", "body"]
INNER_KEYS += ["gen_ai.usage.input_tokens", "gen_ai.operation.name", "t", "in", "out", "requests", "usage", "startTime"]
INNER_KEYS += ["timestamp_ns", "input_sequence_length", "input", "output", "prompt_tokens", "choices", "message"]
CELLS = st.one_of(
    st.integers(-3, 10**20).map(str),
    st.floats().map(str),
    st.sampled_from(
        ["", "nan", "inf", "1e400", " 7 ", '"', "2023-11-16 18:17:03.9799600", "9999-12-31", "\x00", "\u2028"]
    ),
    st.text(max_size=5),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(10**25), 10**25), st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(INNER_KEYS), inner, max_size=4),
    ),
    max_leaves=6,
)
ROWS = st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=8), min_size=1, max_size=4)
FORMATS = st.sampled_from([None, *READERS])


def check(data: bytes, format: str | None) -> Trace | None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace"
        path.write_bytes(data)
        try:
            trace = read_trace(path, format)
        except TraceError as error:
            assert "\n" not in str(error)
            return None
    assert len(trace) == len(trace.input_tokens) == len(trace.output_tokens) > 0
    assert np.isfinite(trace.arrival_s).all()
    assert trace.arrival_s[0] == 0
    assert (np.diff(trace.arrival_s) >= 0).all()
    return trace


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=80), format=FORMATS)
def test_random_bytes_are_a_trace_or_an_error(data: bytes, format: str | None) -> None:
    check(data, format)


@settings(max_examples=250, deadline=None)
@given(
    header=st.sampled_from(HEADERS),
    rows=st.lists(st.lists(CELLS, min_size=2, max_size=4), max_size=4),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_random_csv_rows_are_a_trace_or_an_error(header: str, rows: list[list[str]], end: str) -> None:
    text = end.join([header, *(",".join(row) for row in rows)])
    check(text.encode("utf-8", errors="surrogatepass"), None)


@settings(max_examples=250, deadline=None)
@given(rows=ROWS, format=FORMATS, as_array=st.booleans())
def test_random_json_rows_are_a_trace_or_an_error(
    rows: list[dict[str, Any]], format: str | None, as_array: bool
) -> None:
    text = json.dumps(rows) if as_array else "\n".join(map(json.dumps, rows))
    check(text.encode(), format)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(1, 10**6), st.integers(1, 10**6)), min_size=1, max_size=20))
@example([(0.0, 1, 1), (0.0, 1, 1), (0.0, 1, 1), (1.0, 1, 1), (5e-324, 1, 1)])  # a gap that nothing can be divided by
def test_good_rows_are_all_kept_with_their_lengths(rows: list[tuple[float, int, int]]) -> None:
    text = "arrived_at,num_prefill_tokens,num_decode_tokens\n" + "\n".join(f"{t!r},{i},{o}" for t, i, o in rows)
    trace = check(text.encode(), "vidur")
    assert trace is not None
    in_order = sorted(rows, key=lambda row: row[0])
    assert trace.input_tokens.tolist() == [row[1] for row in in_order]
    assert trace.arrival_s.tolist() == pytest.approx([row[0] - in_order[0][0] for row in in_order])


def test_deeply_nested_json_and_giant_numbers_are_errors() -> None:
    assert check(b"[" * 100_000, None) is None
    assert check(b'{"timestamp": ' + b"9" * 5000 + b', "input_length": 1, "output_length": 1}', None) is None
    assert check(b'{"timestamp": 0, "input_length": ' + b"9" * 400 + b', "output_length": 1}', None) is None
