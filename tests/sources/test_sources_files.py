"""What a file is, before any format: packed, parquet, UTF-16, something else; rows that do not fit; unused keys."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.trace_files import counts, read, refusal, said, write_rows, write_text

VIDUR = b"num_prefill_tokens,num_decode_tokens\n3,4\n"
MOONCAKE = {"timestamp": 0, "input_length": 5, "output_length": 6}


def zstd(data: bytes) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def put(folder: Path, data: bytes) -> Path:
    path = folder / "file"
    path.write_bytes(data)
    return path


PACKERS = {"gzip": gzip.compress, "xz": lzma.compress, "zstd": zstd, "bzip2": bz2.compress}


@pytest.mark.parametrize("name", PACKERS)
def test_packed_files_are_unpacked_and_damaged_ones_are_called_by_their_packing(tmp_path: Path, name: str) -> None:
    packed = PACKERS[name](VIDUR)
    trace = read(put(tmp_path, packed))
    assert (trace.input_tokens.tolist(), trace.output_tokens.tolist()) == ([3], [4])
    assert refusal(put(tmp_path, packed[: len(packed) // 2])) == f": damaged {name} file; it cannot be unpacked"


def test_a_format_is_known_in_parquet_as_in_csv(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "t.parquet"
    stamps = ["2024-05-10 00:00:00.5", "2024-05-10 00:00:02.5"]
    columns: dict[str, list[Any]] = {"TIMESTAMP": stamps, "ContextTokens": [7, 8], "GeneratedTokens": [1, 2]}
    pq.write_table(pa.table(columns | {"Tenant": ["a", "b"]}), path)
    trace = read(path)
    assert trace.source == "azure"
    assert trace.arrival_s.tolist() == [0.0, 2.0]
    assert trace.input_tokens.tolist() == [7, 8]
    assert said(trace, "unused_keys") == "columns of the file that are not used: Tenant"
    pq.write_table(pa.table(columns | {"ContextTokens": [7, None]}), path)
    assert refusal(path) == ":2: ContextTokens is empty; a number is expected"


def test_mooncake_rows_in_parquet_keep_their_prefix_ids(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "t.parquet"
    rows = [MOONCAKE | {"hash_ids": [1]}, MOONCAKE | {"timestamp": 500, "hash_ids": [2]}]
    pq.write_table(pa.Table.from_pylist(rows), path)
    trace = read(path)
    assert trace.prefix_blocks == ((1,), (2,))
    assert trace.arrival_s.tolist() == [0.0, 0.5]


def test_utf_16_as_windows_writes_it_is_read(tmp_path: Path) -> None:
    assert read(put(tmp_path, VIDUR.decode().encode("utf-16"))).input_tokens.tolist() == [3]


def a_zip(name: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, b"x")
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"PAR1....PAR1", ": damaged parquet file"),
        (a_zip("sheet.xml"), ": this is a zip archive"),
        (a_zip("archive/data.pkl"), ": this is a PyTorch file, not a trace"),
        (b"SQLite format 3\x00", ": this is an SQLite database"),
        (b"GGUF\x03\x00", ": this is a GGUF model"),
        (b"\x93NUMPY\x01", ": this is a NumPy array"),
        (len(b'{"a": {}}').to_bytes(8, "little") + b'{"a": {}}\x00', ": this is a safetensors file"),
        (b'{"logical_count": [[1, 2]]}', ": this is an SGLang expert dump"),
        (b'{"architectures": ["x"], "model_type": "y"}', ": this is a model's config (`moeprof params` reads it)"),
        (b'{\n "colours": [{"a": 1}]\n}', ": not a known trace (one JSON object, not lines; found keys colours)"),
        (b'{\n "a": 1,\n "b": }\n', ":3: broken JSON at line 3, character 7 (Expecting value)"),
        (b"[]", ": an empty JSON list"),
        (
            b'[{"timestamp": 0, "input_length": 1, "output_length": 1}, 3]',
            ":2: a JSON object is expected, found a number",
        ),
        (b"a,b\n1,2\n", ": not a known trace (found columns a, b); name its format, one of recording"),
    ],
)
def test_what_is_no_trace_is_called_by_its_name(tmp_path: Path, data: bytes, text: str) -> None:
    message = refusal(put(tmp_path, data))
    assert message.startswith(text)
    assert not any(word in message for word in ("Traceback", "dict", "NoneType", "char ", "sys."))


def test_a_file_of_no_known_format_is_refused_with_the_flags_that_read_it(tmp_path: Path) -> None:
    assert "--column arrival=NAME --column input=NAME" in refusal(write_text(tmp_path, "a,b\n1,2\n"))
    log = write_text(tmp_path, "id,started at,tokens_in,completion_tokens\n1,2,3,4\n")
    hint = "--column 'arrival=started at' --column input=tokens_in --column output=completion_tokens"
    assert hint in refusal(log)


def test_objects_over_several_lines_are_rows_with_the_line_they_begin_in(tmp_path: Path) -> None:
    rows = [MOONCAKE, MOONCAKE | {"timestamp": 800}]
    text = "\n".join(json.dumps(row, indent=2) for row in rows)
    assert read(write_text(tmp_path, text)).arrival_s.tolist() == [0.0, 0.8]
    broken = text.replace('"input_length": 5', '"input_length": -5')
    assert refusal(write_text(tmp_path, broken)).startswith(":1: input_length is -5")
    later = "\n".join(json.dumps(row, indent=2) for row in (rows[0], rows[1] | {"output_length": -1}))
    assert refusal(write_text(tmp_path, later)).startswith(":6: output_length is -1")  # five lines an object


# -- nothing vanishes --------------------------------------------------------------------------------------------------


def test_unused_keys_are_named_those_that_tell_something_first(tmp_path: Path) -> None:
    rows = [MOONCAKE | {"colour": "red", "images": [], "error": None}, MOONCAKE | {"images": ["a.png"], "error": None}]
    trace = read(write_rows(tmp_path, rows))
    assert said(trace, "unused_keys") == "keys of the file that are not used: images, colour"
    assert counts(trace)["unused_keys"] == 1  # each stands in one row; an error that is null says nothing


@pytest.mark.parametrize(
    ("row", "unused"),
    [
        ({"input_tokens": 1, "output_tokens": 2, "started": 5}, "started"),
        ({"prompt": "a", "input_tokens": 1, "hash_ids": [3]}, "hash_ids"),
        (
            {"messages": [{"role": "user", "content": "a", "weight": 1, "name": ""}], "session": "s"},
            "messages.weight",
        ),
        (MOONCAKE | {"chat_id": 1, "parent_chat_id": -1, "type": "a", "turn": 1, "tools": [1]}, "tools"),
        (
            {"id": 1, "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "lang": "en"},
            "lang",
        ),
    ],
)
def test_every_reader_of_json_names_what_it_does_not_use(tmp_path: Path, row: dict[str, Any], unused: str) -> None:
    text = said(read(write_rows(tmp_path, [row])), "unused_keys")
    assert text == f"keys of the file that are not used: {unused}"


def test_images_of_the_multimodal_azure_trace_are_counted(tmp_path: Path) -> None:
    text = (
        "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00,2,3000,5\n2024-05-10 00:00:01,0,10,5\n"
    )
    trace = read(write_text(tmp_path, text))
    assert counts(trace) == {"images_left_out": 1}
    assert "had 2 images" in said(trace, "images_left_out")


# -- rows that do not fit ----------------------------------------------------------------------------------------------


def test_a_bad_row_is_refused_unless_bad_rows_are_skipped_and_counted(tmp_path: Path) -> None:
    lines = [json.dumps(MOONCAKE | {"timestamp": 1000 * i}) for i in range(100)]
    lines[3] = lines[3][:-5]
    lines[50] = lines[50].replace('"input_length": 5', '"input_length": "five"')
    lines[51] = lines[51].replace('"output_length": 6', '"output_length": -6')
    lines[99] = "[1]"
    path = write_text(tmp_path, "\n".join(lines))
    assert refusal(path).startswith(":4: broken JSON")
    trace = read(path, skip_bad_rows=True)
    assert len(trace) == 96
    assert counts(trace) == {"skipped_bad_rows": 4}
    assert "the first is row 4: broken JSON" in said(trace, "skipped_bad_rows")


def csv_of(*rows: str) -> str:
    return "\n".join(["arrived_at,num_prefill_tokens,num_decode_tokens", *rows])


def test_bad_rows_of_csv_arrays_and_parquet_are_skipped_too(tmp_path: Path) -> None:
    trace = read(write_text(tmp_path, csv_of("1,10,1", "2,20", "3,x,1", "", "nan,5,5", "4,40,1")), skip_bad_rows=True)
    assert trace.input_tokens.tolist() == [10, 40]
    assert trace.arrival_s.tolist() == [0.0, 3.0]
    assert counts(trace) == {"skipped_bad_rows": 3}
    assert "the first is row 3: 2 cells in this row" in said(trace, "skipped_bad_rows")
    array = json.dumps([MOONCAKE, 3, MOONCAKE | {"input_length": None}, MOONCAKE])
    assert counts(read(write_text(tmp_path, array), skip_bad_rows=True)) == {"skipped_bad_rows": 2}


def test_bad_rows_of_parquet_are_skipped_too(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"num_prefill_tokens": [1, -2, 3], "num_decode_tokens": [1, 1, 1]}), path)
    trace = read(path, skip_bad_rows=True)
    assert trace.input_tokens.tolist() == [1, 3]
    assert "the first is row 2" in said(trace, "skipped_bad_rows")


def test_a_time_without_a_zone_among_times_with_one_is_skipped_although_it_is_a_time(tmp_path: Path) -> None:
    azure = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    rows = [f"2024-05-10 00:00:{second:02}+00:00,5,1" for second in range(40)]
    rows[30] = "2024-05-10 00:00:30,5,1"
    trace = read(write_text(tmp_path, azure + "\n".join(rows)), skip_bad_rows=True)
    assert len(trace) == 39
    assert counts(trace) == {"skipped_bad_rows": 1}


def test_a_file_of_bad_rows_alone_and_a_wrong_header_are_refused_although_bad_rows_are_skipped(tmp_path: Path) -> None:
    assert "none of its first 2 rows fits; row 2: num" in refusal(
        write_text(tmp_path, csv_of("1,x,1", "2,y,1")), skip_bad_rows=True
    )
    assert ": no column 'num_decode_tokens'" in refusal(
        write_text(tmp_path, "num_prefill_tokens,b\n1,2\n"), "vidur", skip_bad_rows=True
    )


def test_good_files_read_the_same_whether_bad_rows_are_skipped_or_not(tmp_path: Path) -> None:
    path = write_rows(tmp_path, [MOONCAKE | {"timestamp": 700 * i, "extra": 1} for i in range(5)])
    assert read(path, skip_bad_rows=True).notes == read(path).notes
