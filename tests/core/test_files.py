"""The door: whatever lies behind a name, a reader gets it whole or is told why not, in little time and memory."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moeprof.core import files
from moeprof.core.errors import RecordError, TraceError
from moeprof.core.files import UnreadableError
from moeprof.sources.formats.packing import read_head


def npz(**arrays: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    return out.getvalue()


# -- bytes -------------------------------------------------------------------------------------------------------------


def test_devices_pipes_folders_and_large_files_are_refused_before_they_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    large = tmp_path / "large"
    large.touch()
    os.truncate(large, 10**12)  # a hole: it has no bytes on disk
    for path, said in (
        (Path("/dev/zero"), "no regular file"),
        (tmp_path / "pipe", "no regular file"),
        (tmp_path, "Is a directory"),
        (large, "at most 8 GiB is read"),
        (tmp_path / "none", "no such file"),
        (Path("a\0b"), "cannot be opened"),
    ):
        with pytest.raises(UnreadableError, match=said):
            files.read_bytes(path)


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, bz2.compress])
def test_what_unpacks_to_far_more_than_it_is_is_refused(
    tmp_path: Path, pack: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "ALWAYS_BYTES", 2**21)
    (tmp_path / "a.csv").write_bytes(pack(b"TIMESTAMP,ContextTokens\n" * 40_000))
    assert len(read_head(tmp_path / "a.csv")[0]) == 960_000
    (tmp_path / "b.csv").write_bytes(pack(bytes(2**23)))
    with pytest.raises(TraceError, match="unpack to more than 2 MiB"):
        read_head(tmp_path / "b.csv")


def test_a_trace_of_zeros_is_no_text(tmp_path: Path) -> None:
    from moeprof.sources.formats.file import open_source

    (tmp_path / "zeros.csv").write_bytes(bytes(1000))
    with pytest.raises(TraceError, match="binary data of an unknown kind, not text"):
        open_source(tmp_path / "zeros.csv")


# -- JSON --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 1500, "nested deeper than 64 levels"),
        ("[" * 65 + "]" * 65, "nested deeper than 64 levels"),
        ("1" * 4301, "a whole number of 4,301 digits"),
        ("-" + "1" * 41, "a whole number of 41 digits"),
        ("[" + "0," * 1_000_001 + "0]", "more than 1,000,000 values"),
        ("{", "Expecting property name"),
    ],
)
def test_json_that_python_refuses_in_any_words_is_refused_in_ours(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(RecordError, match=said):
        files.read_json(tmp_path / "a.json")


def test_numbers_that_are_none_are_null_or_kept_and_large_ones_no_figures(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": NaN, "b": [Infinity, -Infinity, 1e400, 1.5], "c": 7}')
    assert files.read_json(path) == {"a": None, "b": [None, None, None, 1.5], "c": 7}
    assert files.read_json_value(path, non_finite="keep")["b"][0] == float("inf")
    path.write_text(json.dumps({"a": [1, 2**63]}))
    assert files.read_json_value(path)["a"][1] == 2**63
    with pytest.raises(RecordError, match="a whole number of 19 digits"):
        files.read_json(path)


def test_a_safetensors_header_that_lies_is_no_header(tmp_path: Path) -> None:
    whole = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    for head, found in (
        (len(whole).to_bytes(8, "little") + whole, True),
        ((2**40).to_bytes(8, "little") + whole, False),
        ((len(whole) + 1).to_bytes(8, "little") + whole, False),
        ((4).to_bytes(8, "little") + b"\xff\xfe\x00\x00", False),
        ((1500).to_bytes(8, "little") + b"[" * 1500, False),
    ):
        (tmp_path / "w.safetensors").write_bytes(head)
        assert (files.safetensors_header(tmp_path / "w.safetensors") is not None) is found


# -- arrays and tables -------------------------------------------------------------------------------------------------


def patched(content: bytes, bit: int) -> bytes:
    """One bit of the flags of the first member, in both of its headers."""
    data = bytearray(content)
    data[6] |= bit
    data[data.index(b"PK\x01\x02") + 8] |= bit
    return bytes(data)


def lying(shape: str) -> bytes:
    """An npz whose array says that it has another shape."""
    out, inside = io.BytesIO(), io.BytesIO()
    np.save(inside, np.zeros(3, dtype=np.int64))
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(
            "a.npy", inside.getvalue().replace(b"(3,), }" + b" " * (len(shape) - 4), f"{shape}, }}".encode())
        )
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lying("(10000000000000,)"), "a.npy says it has 80,000,000,000,000 bytes and has 24"),
        (patched(npz(a=np.arange(9)), 0x20), "patched"),
        (patched(npz(a=np.arange(9)), 0x01), "encrypted"),
        (npz(a=np.zeros(2 * 2**27 // 8 + 1)), "arrays of more than 128 MiB in"),
        (npz(a=np.zeros(3, dtype=complex)), "a.npy holds complex128"),
        (npz(a=np.array([{}], dtype=object)), "a.npy holds object"),
        (npz(a=np.arange(9))[:-30], "not a zip file"),
        (b"PK\x03\x04", "not a zip file"),
    ],
    ids=["shape", "patched", "encrypted", "bomb", "complex", "pickle", "cut", "head"],
)
def test_arrays_are_measured_by_their_headers(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    for given in (None, content):
        with pytest.raises(UnreadableError, match=said):
            files.read_arrays(tmp_path / "a.npz", given)


def test_every_damaged_npz_is_one_error(tmp_path: Path) -> None:
    whole, rng = npz(a=np.arange(50), b=np.array(["x", "y"])), np.random.default_rng(0)
    assert files.read_arrays(tmp_path / "a.npz", whole)["b"].tolist() == ["x", "y"]
    for _ in range(400):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), size=rng.integers(1, 4)):
            data[place] = int(rng.integers(256))
        try:
            files.read_arrays(tmp_path / "a.npz", bytes(data))
        except UnreadableError as error:
            assert str(error)


def parquet(table: pa.Table, **options: object) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, **options)
    return out.getvalue()


def test_a_table_is_measured_by_its_footer(tmp_path: Path) -> None:
    small = pa.table({"a": [1, None], "b": ["x", "y"], "c": [[1.0], []]})
    assert files.read_parquet(tmp_path / "t.parquet", parquet(small)).equals(small)
    rows = 20_000_000
    empty = pa.table({"a": pa.nulls(rows, pa.int64())})
    with pytest.raises(UnreadableError, match="20,000,000 values in"):
        files.read_parquet(tmp_path / "t.parquet", parquet(empty))
    long = pa.table({"a": pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), ["x" * 100_000])})
    with pytest.raises(UnreadableError, match="text of more than 128 MiB in"):
        files.read_parquet(tmp_path / "t.parquet", parquet(long))
    with pytest.raises(UnreadableError, match="DELTA_BYTE_ARRAY"):
        plain = long.cast(pa.schema([("a", pa.string())]))
        packed = parquet(plain, use_dictionary=False, column_encoding={"a": "DELTA_BYTE_ARRAY"})
        files.read_parquet(tmp_path / "t.parquet", packed)


def test_text_of_a_column_that_might_be_long_is_the_same_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "ALWAYS_BYTES", 2**18)
    table = pa.table({"a": ["x" * 100, None, "y"] * 500, "n": range(1500)})
    assert files.read_parquet(tmp_path / "t.parquet", parquet(table)).equals(table)


def test_a_stream_with_more_rows_than_bytes_is_refused(tmp_path: Path) -> None:
    schema = pa.schema([("a", pa.null())])
    with (tmp_path / "s.arrows").open("wb") as file, pa.ipc.new_stream(file, schema) as writer:
        writer.write_batch(pa.record_batch([pa.nulls(10**9)], schema=schema))
    with pytest.raises(UnreadableError, match="rows of more than"):
        files.read_stream(tmp_path / "s.arrows", schema)


# -- writing -----------------------------------------------------------------------------------------------------------


def test_writing_follows_no_link_and_leaves_nothing_behind(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "a.json.tmp").symlink_to(victim)
    (tmp_path / "b.json").symlink_to(victim)
    files.write_json(tmp_path / "a.json", {"a": 1})
    files.write_json(tmp_path / "b.json", {"b": 1})
    files.write_arrays(tmp_path / "c.npz", {"a": np.arange(3)})
    assert victim.read_text() == "precious"
    assert not (tmp_path / "b.json").is_symlink()
    assert files.read_arrays(tmp_path / "c.npz")["a"].tolist() == [0, 1, 2]
    with pytest.raises(ZeroDivisionError), files.replacing(tmp_path / "d.json"):
        _ = 1 / 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json", "c.npz", "victim"]


def test_a_folder_is_made_once_and_the_next_one_is_called_otherwise(tmp_path: Path) -> None:
    made = [files.made_anew(tmp_path / "reports" / "x").name for _ in range(3)]
    assert made == ["x", "x-2", "x-3"]


def test_a_small_file_needs_memory_for_what_it_holds_and_not_for_what_it_may_hold(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"ten bytes.")
    code = (
        "import resource, sys; from pathlib import Path; from moeprof.core.files import MOST_BYTES, read_bytes; "
        "resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES // 4, MOST_BYTES // 4)); "
        "print(len(read_bytes(Path(sys.argv[1]))))"
    )
    ran = subprocess.run([sys.executable, "-c", code, tmp_path / "small"], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout.strip()) == (0, "10"), ran.stderr
