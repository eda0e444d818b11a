"""Wrong and hostile files of every kind: one line that names the thing, or its right reading; quickly, and small."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import pickle
import random
import re
import resource
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moeprof.core.errors import TraceError
from moeprof.sources.formats import READERS, read_trace
from moeprof.sources.formats.file import Reading
from tests.sources.test_sources_formats import SAMPLES, WHOLE
from tests.sources.test_sources_fuzz import check

GOOD = "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00,5,1\n2024-05-10 00:00:01,6,2\n"
ROW = '{"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": [1]}\n'
# What a library or Python says, and people should not have to read.
INSIDE = re.compile(
    r"Traceback|ArrowInvalid|pyarrow|NoneType|dict\b|codec|straddl|block size|utf-8' |Errno|\w+Error\b|<\w+:"
)


def a_zip(name: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, b"x")
    return out.getvalue()


def parquet(**columns: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


def arrays() -> bytes:
    out = io.BytesIO()
    np.savez(out, counts=np.arange(3))
    return out.getvalue()


NO_TRACES: dict[str, tuple[bytes, str]] = {
    **{
        f"pickle {p}": (pickle.dumps({"a": [1, 2]}, protocol=p), "a Python pickle, which is not opened")
        for p in range(6)
    },
    "npz": (arrays(), "a NumPy archive of arrays, not a trace (routing is kept in such files)"),
    "xlsx": (a_zip("xl/workbook.xml"), "a zip archive (Excel files are such archives, too)"),
    "empty zip": (b"PK\x05\x06" + bytes(18), "an empty zip archive"),
    "html": (b"\n<!DOCTYPE HTML><html>404, not found</html>", "an HTML page, not a trace"),
    "xml": (b'<?xml version="1.0"?><a/>', "an XML document"),
    "script": (b"#!/bin/bash\necho 1,2\n", "a script"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(9), "an image"),
    "jpeg": (b"\xff\xd8\xff\xe0" + bytes(9), "an image"),
    "program": (b"\x7fELF" + bytes(40), "a program"),
    "tar": (b"a".ljust(257, b"\0") + b"ustar\x0000" + bytes(200), "a tar archive"),
    "7z": (b"7z\xbc\xaf'\x1c" + bytes(9), "a 7-Zip archive"),
    "lz4": (b'\x04"M\x18' + bytes(9), "an lz4 file"),
    "arrow stream": (b"\xff\xff\xff\xff\x10\0\0\0", "an Arrow stream; save it as parquet"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a pointer of Git LFS"),
    "zeros": (bytes(1000), "binary data of an unknown kind, not text"),
    "all bytes": (bytes(range(256)), "binary data of an unknown kind, not text"),
    "utf-16 without mark": (GOOD.encode("utf-16-le"), "UTF-16 text without its mark"),
    "utf-32": (GOOD.encode("utf-32"), "UTF-32 text"),
    "gzip in gzip": (gzip.compress(gzip.compress(GOOD.encode())), "packed twice"),
    "zip in gzip": (gzip.compress(a_zip("a.csv")), "a zip archive"),
    "latin-1": (GOOD.replace("5,1", "5,é").encode("latin-1"), ":2: not UTF-8 text (byte 0xe9)"),
    "empty": (b"", "empty; a trace has at least one request"),
    "blanks": (b" \n\t\n", "empty; a trace has at least one request"),
    "empty gzip": (gzip.compress(b""), "empty; a trace has at least one request"),
    "header alone": (GOOD.splitlines()[0].encode(), "no rows after the header"),
    "header and line end": (GOOD.splitlines()[0].encode() + b"\r\n", "no rows after the header"),
    "prose": (b"hello world\n", "text without columns; found first line hello world"),
    "an expert dump": (b'{"logical_count": [[1]]}', "an SGLang expert dump: routing, not a trace"),
    "routing rows": (b'{"layer": 0, "expert": 3, "count": 5}\n', "routing, not a trace"),
    "routing csv": (b"layer_id,expert_id,tokens\n0,1,2\n", "routing, not a trace"),
    "tokenizer": (b'{"model": {}, "added_tokens": []}', "a model's tokenizer"),
    "notebook": (b'{"cells": [], "nbformat": 4}', "a notebook"),
    "no rows": (b'{"data": []}', "the list data is empty; a trace has at least one request"),
    "no keys": (b"{}\n{}\n", "JSON objects without keys"),
    "no objects": (
        b'{"data": [{"prompt": "a", "output_tokens_count": 1}, 7]}',
        "item 2 of data is 7; an object is expected",
    ),
    "half an object": (b'{"a": [1, 2', "broken JSON at character 12"),
    "deep": (b'{"a":' * 100_000, "broken JSON (nested too deeply)"),
    "one cell more": (GOOD.encode() + b"1,2,3,4\n", ":4: 4 cells in this row, 3 are expected"),
    "open quote": (GOOD.encode() + b'"2024-05-10 00:00:02,5,1\n', ":4: 1 cells in this row, 3 are expected"),
    "long first line": (b"x" * 3_000_000, ":1: a first line of 3,000,000 characters"),
    "many columns": (b"," * 20_000, ":1: a line of 20,001 columns"),
    "parquet without rows": (parquet(a=pa.array([], pa.int64())), "a parquet file without rows"),
    "another parquet": (parquet(a=[1]), "a parquet file; found columns a"),
    "parquet of lists": (parquet(num_prefill_tokens=[[1]], num_decode_tokens=[1]), "num_prefill_tokens holds lists"),
    "a hole in parquet": (
        parquet(num_prefill_tokens=[1, None], num_decode_tokens=[1, 2]),
        ":2: num_prefill_tokens is empty",
    ),
    "half a parquet file": (parquet(a=[1])[:-20], "damaged parquet file"),
    "gzip bomb": (gzip.compress(bytes(150_000_000), 1), "of gzip unpack to more than 128 MiB"),
    "xz bomb": (lzma.compress(b" " * 150_000_000, preset=0), "of xz unpack to more than 128 MiB"),
    "parquet bomb": (
        parquet(num_prefill_tokens=np.ones(2_000_000, np.int8), num_decode_tokens=np.ones(2_000_000, np.int8)),
        "a parquet file of",
    ),
}


def refusal(path: Path) -> str:
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    return str(caught.value)


@pytest.mark.parametrize("name", NO_TRACES)
def test_what_is_no_trace_is_named_in_one_line_without_pythons_inside(tmp_path: Path, name: str) -> None:
    data, said = NO_TRACES[name]
    path = tmp_path / "file"
    path.write_bytes(data)
    begin = time.process_time()
    text = refusal(path)
    assert time.process_time() - begin < 2
    assert said in text
    assert "\n" not in text
    assert INSIDE.search(text.replace(str(path), "")) is None


def test_paths_that_are_no_files_are_refused(tmp_path: Path) -> None:
    assert "this is a folder; give the file in it" in refusal(tmp_path)
    assert "no such file" in refusal(tmp_path / "absent")
    assert "File name too long" in refusal(tmp_path / ("x" * 300))
    assert "cannot be read" in refusal(tmp_path / "a\0b")
    assert "this is a device; a file is expected" in refusal(Path("/dev/zero"))


@pytest.mark.parametrize(
    "data",
    [
        GOOD.encode("utf-16"),
        b"\xef\xbb\xbf" + GOOD.encode(),
        GOOD.replace("\n", "\r\n").encode(),
        GOOD.replace("\n", "\r").encode(),
        b"\n\n  \n" + GOOD.encode() + b"\n \n",
        gzip.compress(GOOD.encode()),
    ],
)
def test_marks_line_ends_and_packings_make_no_difference(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "t").write_bytes(data)
    assert read_trace(tmp_path / "t").input_tokens.tolist() == [5, 6]


def test_a_pipe_is_read(tmp_path: Path) -> None:
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    with subprocess.Popen([sys.executable, "-c", f"open({str(fifo)!r}, 'w').write({ROW * 3!r})"]):
        assert len(read_trace(fifo)) == 3


def test_a_data_set_in_one_object_gives_its_rows(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "output_tokens_count": 3}, {"prompt": "b", "output_tokens_count": 4}]
    (tmp_path / "t").write_text(json.dumps({"data": rows, "name": "mine"}))
    trace = read_trace(tmp_path / "t")
    assert (trace.source, trace.prompt_text, trace.output_tokens.tolist()) == ("guidellm", ("a", "b"), [3, 4])
    assert {"rows_of_list", "beside_the_list"} <= {note.code for note in trace.notes}


# -- every reader of the table, spoilt ---------------------------------------------------------------------------------

TIMES = re.compile(r"time|stamp", re.IGNORECASE)
PIECES = (b"\x00", b"\xff", b'"', b"\n", b"\r", b",", b";", b"{", b"[", b"]", b"}", b"\xef\xbb\xbf", b"1e400", b"NaN")
PIECES += (b"9" * 400, b"-1", b"null", b"\\ud800", b"\xe2\x80\xa8", b"true", b'""', b"[[[[", b"2024-13-01", b"0.1")


def whole_files(format: str) -> list[bytes]:
    """Files of a format: its samples, header lines with rows below them."""
    files = []
    for sample in (*SAMPLES[format], *(json.dumps(row) for row in WHOLE)):
        text = sample
        if not sample.startswith("{"):
            names = sample.strip().split(",")
            rows = (
                ",".join(f"2024-05-10 00:00:0{i}" if TIMES.search(name) else str(3 + i) for name in names)
                for i in range(3)
            )
            text = sample.strip() + "\n" + "\n".join(rows) + "\n"
        elif "\n" not in sample:
            text = "\n".join([sample] * 3)
        files.append(text.encode())
    return files


def spoilt(rng: random.Random, data: bytes) -> bytes:
    """One to four accidents: bytes lost, doubled, changed, put in or cut off; another encoding; packed."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1)
        to = min(len(out), at + rng.randint(1, 20))
        match rng.randrange(6):
            case 0:
                del out[at:to]
            case 1:
                out[at:at] = out[at:to] * rng.randint(1, 30)
            case 2 if out:
                out[at % len(out)] ^= 1 << rng.randrange(8)
            case 3:
                out[at:to] = rng.choice(PIECES)
            case 4:
                del out[rng.randint(len(out) // 2, len(out)) :]
            case _:
                out[at:at] = rng.choice(PIECES)
    if rng.random() < 0.1:
        return out.decode("utf-8", "replace").encode(rng.choice(("utf-16", "utf-16-le", "utf-32")))
    return gzip.compress(bytes(out))[: rng.choice((None, -5))] if rng.random() < 0.05 else bytes(out)


@pytest.mark.parametrize("format", READERS)
def test_spoilt_files_of_every_reader_are_a_reading_or_one_line_soon_and_small(format: str) -> None:
    rng = random.Random(format)
    files = whole_files(format)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    num_read = 0
    for i in range(150):
        data = spoilt(rng, files[i % len(files)])
        how = Reading(skip_bad_rows=rng.random() < 0.3, timestamp_unit=rng.choice((None, None, "s", "iso")))
        begin = time.process_time()
        num_read += check(data, rng.choice((None, format)), how) is not None
        assert time.process_time() - begin < 2, data
    assert num_read > 0  # some accidents leave a trace whole
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB
