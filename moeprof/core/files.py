"""The door: files that somebody else may have written are read here, and files of a record are written here.

A record, a trace, a profile, a checkpoint's config or a baseline may come from a stranger, damaged or made to do harm.
So a file is looked at before it is read: it is a regular file of a size that its kind may have, what it unpacks to is
bounded by what it is (:func:`allowed_bytes`), nesting and numbers of JSON are bounded, and tables and arrays are
measured by their own headers before memory is asked for. Whatever a decoder says of damaged bytes becomes one kind of
error, an :class:`UnreadableError`; readers put it into their own words. What is written goes into a temporary file
that is made anew, never through a link that lies there, and takes its name when it is whole.

Packaged data, ``/proc`` and what a process of ours has just written for us are read without; a test holds that nothing
else is.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, TypeVar

from moeprof.core.errors import InputError, RecordError
from moeprof.core.units import num_bytes

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

MIB = 2**20
MOST_BYTES = 8 * 2**30  # of any file that is read whole
ANY_SIZE = 2**62  # of weights, of which parts are read
MOST_TEXT_BYTES = 64 * MIB  # of JSON, a template, a list of prompts
ALWAYS_BYTES = 128 * MIB  # that any file may unpack to
MOST_RATIO = 32  # unpacked to packed beyond that; counts of real runs reach 12, logs of requests 20
MOST_VALUES = 1_000_000  # of a JSON file: about 100 bytes of memory each
MOST_DEPTH = 64
MOST_DIGITS = 40  # of a whole number: 10^30 stands in tokenizer configs and means "no limit"
LARGEST = 2**63  # of a whole number in a record
MOST_HEADER_BYTES = 32 * MIB  # of safetensors

T = TypeVar("T")
Arrays = dict[str, "npt.NDArray[Any]"]


class UnreadableError(InputError):
    """A file that cannot be used.

    Attributes:
        path: of the file.
        why: without the path.
    """

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path = path
        self.why = why


class NoSuchFileError(UnreadableError):
    """It is not there."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "no such file")


def allowed_bytes(packed: int) -> int:
    """What so many bytes may unpack to: memory is in proportion to what a reader was given."""
    return max(ALWAYS_BYTES, MOST_RATIO * packed)


# -- bytes and text ----------------------------------------------------------------------------------------------------


@contextmanager
def opened(path: Path, most: int = MOST_BYTES) -> Iterator[io.BufferedReader]:
    """A regular file of at most so many bytes, for reading.

    Raises:
        UnreadableError: not there, no regular file (a device or a pipe may have no end), too large, or unreadable.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NoSuchFileError(path) from error
    except OSError as error:
        raise UnreadableError(path, f"cannot be read ({error.strerror or error})") from error
    except ValueError as error:  # a zero byte in the name
        raise UnreadableError(path, f"cannot be opened ({error})") from error
    try:
        with os.fdopen(descriptor, "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise UnreadableError(path, "no regular file")
            if facts.st_size > most:
                raise UnreadableError(path, f"has {num_bytes(facts.st_size)}; at most {num_bytes(most)} is read")
            yield file
    except OSError as error:
        raise UnreadableError(path, f"cannot be read ({error.strerror or error})") from error


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """The content of a file.

    Raises:
        UnreadableError: see :func:`opened`.
    """
    with opened(path, most) as file:
        # Memory for what it has, not for what it may have; one that grows meanwhile ends there.
        return file.read(min(most, max(os.fstat(file.fileno()).st_size, MIB)))


def read_text(path: Path, most: int = MOST_TEXT_BYTES) -> str:
    """The content of a text file.

    Raises:
        UnreadableError: see :func:`opened`, or it is not UTF-8.
    """
    data = read_bytes(path, most)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableError(path, f"cannot be read as UTF-8 text ({error})") from error


def unpacked(path: Path, packed: int, stream: Any, name: str) -> bytes:
    """All that a decompressor (a stream) gives, as long as it is within what so many packed bytes may unpack to.

    Raises:
        UnreadableError: damaged, or it unpacks to more.
    """
    most, size, parts = allowed_bytes(packed), 0, []
    while part := _decoded(path, lambda: stream.read(MIB), f"damaged {name} file; it cannot be unpacked"):
        parts.append(part)
        size += len(part)
        if size > most:
            raise UnreadableError(
                path, f"{num_bytes(packed)} of {name} unpack to more than {num_bytes(most)}; unpack it"
            )
    return b"".join(parts)


def _decoded(path: Path, decode: Callable[[], T], why: str) -> T:
    """What decoders raise on damaged bytes is not listed anywhere: NotImplementedError, MemoryError, SyntaxError..."""
    try:
        return decode()
    except UnreadableError:
        raise
    except Exception as error:
        raise UnreadableError(path, why.format(error=error, kind=type(error).__name__)) from error


# -- JSON --------------------------------------------------------------------------------------------------------------


def parse_json(path: Path, text: str, *, non_finite: Literal["null", "keep"] = "null") -> Any:
    """JSON whose nesting, values and numbers are bounded.

    Args:
        path: for messages.
        text: the JSON.
        non_finite: what NaN, Infinity and 1e400 become: ``null``, as what was not measured, or ``keep``, for configs
            in which Infinity means that there is no limit.

    Raises:
        UnreadableError: no JSON, nested too deeply, too many values, or a number that is too long.
    """
    if sum(map(text.count, ",[{")) > MOST_VALUES:
        raise UnreadableError(path, f"more than {MOST_VALUES:,} values; a file of this kind has fewer")
    keep = non_finite == "keep"

    def number(digits: str) -> float | None:
        value = float(digits)
        return value if keep or math.isfinite(value) else None

    def whole(digits: str) -> int:
        if len(digits) > MOST_DIGITS:
            raise ValueError(f"a whole number of {len(digits.lstrip('-')):,} digits")
        return int(digits)

    try:
        value = json.loads(text, parse_float=number, parse_int=whole, parse_constant=number)
    except RecursionError as error:
        raise UnreadableError(path, f"nested deeper than {MOST_DEPTH} levels") from error
    except ValueError as error:  # a JSONDecodeError, no UTF-8, or a number
        raise UnreadableError(path, str(error)) from error
    _check_depth(path, value)
    return value


def _check_depth(path: Path, value: Any) -> None:
    """What reads the value may recurse, so it must not be deep."""
    level = [value]
    for _ in range(MOST_DEPTH):
        within = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [child for children in within for child in children if isinstance(child, dict | list)]
        if not level:
            return
    raise UnreadableError(path, f"nested deeper than {MOST_DEPTH} levels")


def read_json_value(path: Path, *, non_finite: Literal["null", "keep"] = "null", most: int = MOST_TEXT_BYTES) -> Any:
    """Any JSON value of a file.

    Raises:
        UnreadableError: see :func:`read_text` and :func:`parse_json`.
    """
    return parse_json(path, read_text(path, most), non_finite=non_finite)


def read_json(path: Path, *, non_finite: Literal["null", "keep"] = "null") -> dict[str, Any]:
    """Read a JSON object of a record, or (``keep``) of a baseline, which refuses NaN by its key.

    Raises:
        RecordError: unreadable, no JSON, not an object, or with a number that no figure can be.
    """
    try:
        value = read_json_value(path, non_finite=non_finite)
    except UnreadableError as fault:
        raise RecordError(f"{path}: damaged ({fault.why})") from fault.__cause__ or fault
    if not isinstance(value, dict):
        raise RecordError(f"{path}: damaged (a JSON object was expected)")
    if (number := _too_large(value)) is not None:
        raise RecordError(f"{path}: damaged (a whole number of {len(str(abs(number)))} digits)")
    return value


def _too_large(value: Any) -> int | None:
    """The first whole number beyond 64 bits, in which counts and bytes are worked out."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
        elif isinstance(one, int) and not -LARGEST <= one < LARGEST:
            return one
    return None


def safetensors_header(path: Path) -> dict[str, Any] | None:
    """The tensors that a safetensors file says it has, by name; None for a file without such a header."""
    try:
        with opened(path, ANY_SIZE) as file:
            size = int.from_bytes(file.read(8), "little")
            if not 2 <= size <= min(MOST_HEADER_BYTES, os.fstat(file.fileno()).st_size - 8):
                return None
            found = parse_json(path, file.read(size).decode("utf-8"))
    except (UnreadableError, UnicodeDecodeError):
        return None
    return {n: t for n, t in found.items() if n != "__metadata__"} if isinstance(found, dict) else None


# -- arrays and tables -------------------------------------------------------------------------------------------------


def read_arrays(path: Path, content: bytes | None = None) -> Arrays:
    """All arrays of an npz file; each is measured by its header before memory is asked for. No pickle is read.

    Args:
        path: of the file, or for messages.
        content: of the file, where it was read already.

    Raises:
        UnreadableError: damaged, larger than such a file may be, or arrays of something else than numbers and text.
    """
    if content is not None:
        return _decoded(path, lambda: _arrays_of(path, io.BytesIO(content), len(content)), "{error}")
    with opened(path) as file:
        return _decoded(path, lambda: _arrays_of(path, file, os.fstat(file.fileno()).st_size), "{error}")


def _arrays_of(path: Path, file: IO[bytes], packed: int) -> Arrays:
    from numpy.lib import format as npy

    arrays, most = {}, allowed_bytes(packed)
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > most:
            raise UnreadableError(path, f"arrays of more than {num_bytes(most)} in {num_bytes(packed)}")
        for member in members:
            with archive.open(member) as stream:
                _check_array(path, member, stream)
            with archive.open(member) as stream:
                arrays[member.filename.removesuffix(".npy")] = npy.read_array(stream, allow_pickle=False)
    return arrays


def _check_array(path: Path, member: zipfile.ZipInfo, stream: IO[bytes]) -> None:
    """The header's shape is that of the bytes that are there."""
    from numpy.lib import format as npy

    version = npy.read_magic(stream)
    head = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = head(stream)
    if dtype.kind not in "biufU":
        raise UnreadableError(path, f"{member.filename} holds {dtype}; numbers and text belong there")
    size, there = math.prod(shape) * dtype.itemsize, member.file_size - stream.tell()
    if size != there:
        raise UnreadableError(path, f"{member.filename} says it has {size:,} bytes and has {there:,}")


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[np.generic]], *, compress: bool = True) -> None:
    """Write an npz file; a reader never sees half of it."""
    import numpy as np

    with replacing(path) as file:
        (np.savez_compressed if compress else np.savez)(file, **dict(arrays))  # type: ignore[arg-type]


def numbered(paths: Iterable[Path]) -> list[Path]:
    """Files called ``...-<n>.<ending>``, in the order of n; others are not ours."""
    found = {path: path.stem.rpartition("-")[2] for path in paths}
    ours = [path for path, number in found.items() if number.isdecimal() and len(number) < 10]
    return sorted(ours, key=lambda path: int(found[path]))


def read_parquet(path: Path, content: bytes | None = None) -> pa.Table:
    """A parquet table; its footer says how many values it has before any is unpacked.

    Args:
        path: of the file, or for messages.
        content: of the file, where it was read already.

    Raises:
        UnreadableError: damaged, or larger than such a file may be.
    """
    import pyarrow as pa

    if content is not None:
        return _decoded(path, lambda: _parquet(path, pa.BufferReader(content), len(content)), "{error}")
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        return _decoded(path, lambda: _parquet(path, pa.PythonFile(file, mode="r"), size), "{error}")


def _parquet(path: Path, source: Any, packed: int) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    most = allowed_bytes(packed)
    facts = pq.ParquetFile(source).metadata
    chunks = [facts.row_group(g).column(c) for g in range(facts.num_row_groups) for c in range(facts.num_columns)]
    values = max(sum(chunk.num_values for chunk in chunks), facts.num_rows * facts.num_columns)
    if max(8 * values, sum(chunk.total_uncompressed_size for chunk in chunks)) > most:
        raise UnreadableError(path, f"{values:,} values in {num_bytes(packed)}: more than {num_bytes(most)}")
    texts = {
        chunk.path_in_schema for chunk in chunks
        if chunk.physical_type == "BYTE_ARRAY" and chunk.num_values * chunk.total_uncompressed_size > most
    }  # fmt: skip
    source.seek(0)
    if not texts:
        return pq.ParquetFile(source).read()
    # One long text may stand in a dictionary once and in a million rows, so that such columns are measured first.
    if any("DELTA_BYTE_ARRAY" in chunk.encodings for chunk in chunks if chunk.path_in_schema in texts):
        raise UnreadableError(path, "its text is packed as DELTA_BYTE_ARRAY, whose size is not known; save it without")
    table = pq.ParquetFile(source, read_dictionary=sorted(texts)).read()
    if sum(_text_bytes(table.column(name)) for name in table.column_names) > most:
        raise UnreadableError(path, f"text of more than {num_bytes(most)} in {num_bytes(packed)}")
    plain = [pa.field(f.name, _plain(f.type), f.nullable, f.metadata) for f in table.schema]
    return table.cast(pa.schema(plain, metadata=table.schema.metadata))


def _plain(kind: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _text_bytes(column: pa.ChunkedArray) -> int:
    """Bytes of a column of texts once each row has its own."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_dictionary(column.type):
        return 0
    return sum(
        pc.sum(pc.binary_length(chunk.dictionary).cast(pa.int64()).take(chunk.indices)).as_py() or 0
        for chunk in column.chunks
    )


def read_stream(path: Path, schema: pa.Schema) -> pa.Table:
    """The whole batches of an Arrow stream, up to where its writer was killed.

    Raises:
        UnreadableError: larger than such a file may be.
    """
    import pyarrow as pa

    batches: list[Any] = []
    with opened(path) as file:
        most, size = allowed_bytes(os.fstat(file.fileno()).st_size), 0
        try:
            reader = pa.ipc.open_stream(file)
            while True:
                batch = reader.read_next_batch()
                size += max(batch.nbytes, 8 * batch.num_rows * batch.num_columns)
                if size > most:
                    raise UnreadableError(path, f"rows of more than {num_bytes(most)}")
                batches.append(batch)
        except (StopIteration, pa.ArrowException, OSError, ValueError, MemoryError):
            pass  # the tail that was being written
    return _decoded(path, lambda: pa.Table.from_batches(batches, schema=schema), "{error}")


# -- writing -----------------------------------------------------------------------------------------------------------


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write into, which takes the name of ``path`` at the end: a reader never sees half of it.

    What lies where the temporary file goes (of a writer that was killed, or a link that somebody put there) is removed,
    not followed; so is a link at ``path``.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(temporary, flags, 0o666), "w+b") as file:
            yield file
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def made_anew(folder: Path) -> Path:
    """A folder that nobody else has: of this name, or with ``-2``, ``-3``... behind it.

    Raises:
        OSError: it cannot be made.
    """
    for name in itertools.chain([folder.name], (f"{folder.name}-{number}" for number in itertools.count(2))):
        made = folder.with_name(name)
        try:
            made.mkdir(parents=True)
            return made
        except FileExistsError:
            continue
    raise AssertionError("there is always a next number")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8; half a surrogate (from a file name) has none, and is written as what JSON calls it."""
    with replacing(path) as file:
        file.write(text.encode("utf-8", errors="backslashreplace"))


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write JSON so that a reader never sees half a file."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
