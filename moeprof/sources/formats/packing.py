"""What a file is by its first bytes: compressed text is unpacked, other things are called by their name."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from moeprof.core.errors import TraceError
from moeprof.core.files import UnreadableError, unpacked

PARQUET_MAGIC = b"PAR1"
ZIP_MAGIC = b"PK\x03\x04"
ZIP_HEAD_BYTES = 512


HEAD_BYTES = 2**20
MAX_PIPED_BYTES = 2**30


def _zstd(stream: BinaryIO) -> Any:
    import pyarrow as pa

    return pa.CompressedInputStream(stream, "zstd")


# first bytes -> (name, how it is opened)
PACKED: dict[bytes, tuple[str, Callable[[Any], Any]]] = {
    b"\x1f\x8b": ("gzip", gzip.open),
    b"\xfd7zXZ\x00": ("xz", lzma.open),
    b"\x28\xb5\x2f\xfd": ("zstd", _zstd),
    b"BZh": ("bzip2", bz2.open),
}
PICKLE = "a Python pickle, which is not opened; save it as JSON lines"
# first bytes -> what it is, for what is no trace
NAMED = {
    ZIP_MAGIC: "a zip archive (Excel files are such archives, too); unpack it, or save it as CSV",
    b"PK\x05\x06": "an empty zip archive",
    b"ARROW1": "an Arrow (Feather) file; save it as parquet",
    b"\xff\xff\xff\xff": "an Arrow stream; save it as parquet",
    b"SQLite format 3\x00": "an SQLite database; export the table as CSV",
    b"\x93NUMPY": "a NumPy array, not a trace; requests can be saved as CSV",
    b"\x89HDF": "an HDF5 file; export the table as CSV",
    b"GGUF": "a GGUF model, not a trace",
    b"%PDF": "a PDF document, not a trace",
    b"Obj\x01": "an Avro file; save it as parquet or JSON lines",
    b"ORC": "an ORC file; save it as parquet",
    **{bytes([0x80, protocol]): PICKLE for protocol in range(2, 6)},
    **dict.fromkeys((b"(dp0\n", b"(lp0\n", b"}q\x00", b"]q\x00"), PICKLE),
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive; unpack it",
    b"Rar!\x1a\x07": "a RAR archive; unpack it",
    b"\x04\x22\x4d\x18": "an lz4 file; unpack it, or pack it as gzip, xz or zstd",
    b"\x7fELF": "a program, not a trace",
    b"MZ\x90\x00": "a program, not a trace",
    b"\x89PNG": "an image, not a trace",
    b"\xff\xd8\xff": "an image, not a trace",
    b"GIF8": "an image, not a trace",
    b"#!": "a script, not a trace",
    b"\xff\xfe\x00\x00": "UTF-32 text; save the file as UTF-8",
    b"\x00\x00\xfe\xff": "UTF-32 text; save the file as UTF-8",
}
# the same for documents, whose first bytes may be of either case and stand after blanks
DOCUMENTS = {
    b"<!doctype html": "an HTML page, not a trace (a download that went wrong?)",
    b"<html": "an HTML page, not a trace (a download that went wrong?)",
    b"<?xml": "an XML document, not a trace",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself; fetch it (`git lfs pull`)",
}
TAR_MAGIC, TAR_MAGIC_AT = b"ustar", 257
BINARY_HEAD_BYTES = 2**12
SAFETENSORS_HEADER_BYTES = 100_000_000  # the format's own bound
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_head(path: Path) -> tuple[bytes, bool]:
    """The first ``HEAD_BYTES`` of a file, or all that it holds, unpacked; and whether that is all.

    A pipe is read to its end, because it cannot be read twice.

    Raises:
        TraceError: missing, no file of bytes that end, unreadable, damaged, a thing of another kind, which is named, or
            packed so much smaller than it is that it is no log.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
                raise TraceError(f"{path}: this is a device; a file is expected")
            data = file.read(HEAD_BYTES)
            packing = next((found for magic, found in PACKED.items() if data.startswith(magic)), None)
            is_pipe = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
            if packing is not None or is_pipe:
                data += file.read(MAX_PIPED_BYTES if is_pipe else -1)
            is_whole = packing is not None or is_pipe or not (more := file.read(1))
    except FileNotFoundError as error:
        raise TraceError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise TraceError(f"{path}: this is a folder; give the file in it") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise TraceError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if is_pipe and len(data) > MAX_PIPED_BYTES:
        raise TraceError(f"{path}: a pipe of more than {MAX_PIPED_BYTES:,} bytes; write it into a file first")
    data = data if is_whole else data + more
    if packing is not None:
        data = _unpacked(path, data, *packing)
        if any(data.startswith(magic) for magic in PACKED):
            raise TraceError(f"{path}: packed twice; unpack it once")
    if (what := _other_thing(data)) is not None:
        raise TraceError(f"{path}: this is {what}")
    return data, is_whole


def _unpacked(path: Path, packed: bytes, name: str, opened: Callable[[Any], Any]) -> bytes:
    """What a packed file holds, as far as a log of its packed size may be."""
    try:
        with opened(io.BytesIO(packed)) as stream:
            return unpacked(path, len(packed), stream, name)
    except UnreadableError as fault:
        raise TraceError(str(fault)) from fault
    except (EOFError, OSError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise TraceError(f"{path}: damaged {name} file; it cannot be unpacked") from error


def _other_thing(data: bytes) -> str | None:
    """What binary data is that is certainly no trace; None where it may be one."""
    if data.startswith(ZIP_MAGIC) and b"data.pkl" in data[:ZIP_HEAD_BYTES]:
        return "a PyTorch file, not a trace (engines dump counts of routed experts in such files)"
    if data[8:10] == b'{"' and int.from_bytes(data[:8], "little") <= SAFETENSORS_HEADER_BYTES:
        return "a safetensors file: weights or arrays, not a trace"
    if data.startswith(ZIP_MAGIC) and b".npy" in data[:ZIP_HEAD_BYTES]:
        return "a NumPy archive of arrays, not a trace (routing is kept in such files); requests can be saved as CSV"
    if data[TAR_MAGIC_AT:].startswith(TAR_MAGIC):
        return "a tar archive; unpack it"
    begin = data[:BINARY_HEAD_BYTES].lstrip().lower()
    known = next((what for magic, what in NAMED.items() if data.startswith(magic)), None) or next(
        (what for words, what in DOCUMENTS.items() if begin.startswith(words)), None
    )
    if known is not None or data.startswith((PARQUET_MAGIC, *UTF16_MARKS)):
        return known
    head = data[:BINARY_HEAD_BYTES]
    if b"\x00" not in head:
        return None
    halves = (head[::2], head[1::2])
    if head.strip(b"\x00") and any(half.count(0) * 2 > len(half) for half in halves):
        return "UTF-16 text without its mark; save the file as UTF-8"
    return "binary data of an unknown kind, not text"


def as_text(path: Path, data: bytes) -> bytes:
    """UTF-8 without a byte order mark; UTF-16 with its mark, as Windows tools write it, is translated.

    Raises:
        TraceError: not text, or empty.
    """
    try:
        if data.startswith(UTF16_MARKS):
            data = data.decode("utf-16").encode("utf-8")
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
