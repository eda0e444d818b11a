"""What a file is by its first bytes: compressed text is unpacked, other things are called by their name."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from moeprof.core.errors import TraceError
from moeprof.core.files import UnreadableError, read_bytes, unpacked

PARQUET_MAGIC = b"PAR1"
ZIP_MAGIC = b"PK\x03\x04"
ZIP_HEAD_BYTES = 512


def _zstd(data: IO[bytes]) -> IO[bytes]:
    import pyarrow as pa

    stream: IO[bytes] = pa.CompressedInputStream(data, "zstd")
    return stream


# first bytes -> (name, what unpacks it)
PACKED: dict[bytes, tuple[str, Callable[[IO[bytes]], Any]]] = {
    b"\x1f\x8b": ("gzip", gzip.open),
    b"\xfd7zXZ\x00": ("xz", lzma.open),
    b"\x28\xb5\x2f\xfd": ("zstd", _zstd),
    b"BZh": ("bzip2", bz2.open),
}
# first bytes -> what it is, for what is no trace
NAMED = {
    ZIP_MAGIC: "a zip archive (Excel files are such archives, too); unpack it, or save it as CSV",
    b"ARROW1": "an Arrow (Feather) file; save it as parquet",
    b"SQLite format 3\x00": "an SQLite database; export the table as CSV",
    b"\x93NUMPY": "a NumPy array, not a trace; requests can be saved as CSV",
    b"\x89HDF": "an HDF5 file; export the table as CSV",
    b"GGUF": "a GGUF model, not a trace",
    b"%PDF": "a PDF document, not a trace",
    b"Obj\x01": "an Avro file; save it as parquet or JSON lines",
    b"ORC": "an ORC file; save it as parquet",
    b"\x80\x04": "a Python pickle, which is not opened; save it as JSON lines",
    b"\x80\x02": "a Python pickle, which is not opened; save it as JSON lines",
}
HEAD_BYTES = 2**16
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_packed(path: Path) -> bytes:
    """The bytes of a file, unpacked if it is gzip, xz, zstd or bzip2.

    Raises:
        TraceError: missing, a folder, unreadable, damaged, or a thing of another kind, which is named.
    """
    try:
        data = read_bytes(path)
        for magic, (name, unpack) in PACKED.items():
            if data.startswith(magic):
                with unpack(io.BytesIO(data)) as stream:
                    data = unpacked(path, len(data), stream, name)
                break
    except UnreadableError as fault:
        raise TraceError(str(fault)) from fault
    what = _other_thing(data)
    if what is not None:
        raise TraceError(f"{path}: this is {what}")
    return data


def _other_thing(data: bytes) -> str | None:
    """What binary data is that is certainly no trace; None where it may be one."""
    if data.startswith(ZIP_MAGIC) and b"data.pkl" in data[:ZIP_HEAD_BYTES]:
        return "a PyTorch file, not a trace (engines dump counts of routed experts in such files)"
    if data[8:10] == b'{"' and int.from_bytes(data[:8], "little") < len(data):
        return "a safetensors file: weights or arrays, not a trace"
    return next((what for magic, what in NAMED.items() if data.startswith(magic)), None)


def as_text(path: Path, data: bytes) -> bytes:
    """UTF-8 without a byte order mark; UTF-16 with its mark, as Windows tools write it, is translated.

    Raises:
        TraceError: not text, or empty.
    """
    try:
        if data.startswith(UTF16_MARKS):
            data = data.decode("utf-16").encode("utf-8")
        elif 0 in data[:HEAD_BYTES]:  # UTF-8 allows it; no trace has one, and disks give holes as zeros
            raise TraceError(f"{path}:1: not text (a zero byte stands in it); a trace is CSV, JSON or parquet")
        data = data.removeprefix(BYTE_ORDER_MARK)
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise TraceError(
            f"{path}:{line}: not UTF-8 text (byte 0x{data[error.start]:02x}); save the file as UTF-8"
        ) from error
    except UnicodeEncodeError as error:
        raise TraceError(f"{path}: broken UTF-16 text; save the file as UTF-8") from error
    if not data.strip():
        raise TraceError(f"{path}: empty; a trace has at least one request")
    return data
