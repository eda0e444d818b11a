"""Whatever the bytes are: a Trace, or a TraceError in one line. Nothing else."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moeprof.core.errors import TraceError
from moeprof.core.trace import Trace
from moeprof.sources.formats import READERS, read_trace
from moeprof.sources.formats.file import Reading

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


def packed_files() -> dict[str, bytes]:
    """One small trace in each packing."""
    text = b"TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00,5,1\n2024-05-10 00:00:01,6,2\n"
    packed = {"gzip": gzip.compress(text), "xz": lzma.compress(text), "bz2": bz2.compress(text)}
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(text)
    packed["zstd"] = sink.getvalue().to_pybytes()
    out = pa.BufferOutputStream()
    pq.write_table(pa.table({"num_prefill_tokens": [1, 2], "num_decode_tokens": [3, 4]}), out)
    packed["parquet"] = out.getvalue().to_pybytes()
    return packed


PACKED_FILES = packed_files()
FORMATS = st.sampled_from([None, *READERS])
NAMES = st.sampled_from([*KEYS, "messages.0.content", "output.value", "prompt.from", "TIMESTAMP", "ContextTokens"])
HOW = st.builds(
    Reading,
    timestamp_unit=st.sampled_from([None, "s", "ms", "us", "ns", "iso"]),
    block_tokens=st.sampled_from([None, 1, 16]),
    skip_bad_rows=st.booleans(),
)
NAMED = st.builds(
    Reading,
    columns=st.fixed_dictionaries(
        {"input": NAMES},
        optional={role: NAMES for role in ("arrival", "output", "text", "session", "class", "blocks")},
    ),
    skip_bad_rows=st.booleans(),
)


def check(data: bytes, format: str | None, how: Reading | None = None) -> Trace | None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace"
        path.write_bytes(data)
        try:
            trace = read_trace(path, format, how)
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


@settings(max_examples=250, deadline=None)
@given(rows=ROWS, format=FORMATS, as_array=st.booleans(), how=HOW)
def test_whatever_the_user_says_random_json_rows_are_a_trace_or_an_error(
    rows: list[dict[str, Any]], format: str | None, as_array: bool, how: Reading
) -> None:
    text = json.dumps(rows) if as_array else "\n".join(map(json.dumps, rows))
    check(text.encode(), format, how)


@settings(max_examples=250, deadline=None)
@given(
    header=st.sampled_from(HEADERS),
    rows=st.lists(st.lists(CELLS, min_size=2, max_size=4), max_size=4),
    delimiter=st.sampled_from(",;\t"),
    how=st.one_of(HOW, NAMED),
)
def test_whatever_the_user_says_random_cells_are_a_trace_or_an_error(
    header: str, rows: list[list[str]], delimiter: str, how: Reading
) -> None:
    text = "\n".join([header.replace(",", delimiter), *(delimiter.join(row) for row in rows)])
    check(text.encode("utf-8", errors="surrogatepass"), None, how)


@settings(max_examples=400, deadline=None)
@given(rows=ROWS, indent=st.sampled_from([None, 1]), how=NAMED)
def test_named_columns_of_random_objects_are_a_trace_or_an_error(
    rows: list[dict[str, Any]], indent: int | None, how: Reading
) -> None:
    check("\n".join(json.dumps(row, indent=indent) for row in rows).encode(), None, how)


@settings(max_examples=100, deadline=None)
@given(
    cut=st.integers(0, 400), flip=st.integers(0, 399), name=st.sampled_from(["gzip", "xz", "zstd", "bz2", "parquet"])
)
def test_damaged_packed_files_are_a_trace_or_an_error(cut: int, flip: int, name: str) -> None:
    data = bytearray(PACKED_FILES[name])
    data[flip % len(data)] ^= 0x41
    check(bytes(data[: cut or None]), None)


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
