"""The header of a GGUF file, llama.cpp's format: its metadata, and name, shape, type and bytes of every tensor.

Layout (ggml's docs/gguf.md, versions 2 and 3): magic, version, number of tensors and of key-value pairs; the pairs; the
tensors' descriptions; then, aligned, their data. Only the header is read, with bounds on everything that it counts, and
checked against the size of the file: whatever does not fit is one :class:`ModelError`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from moeprof.core.errors import ModelError
from moeprof.core.files import ANY_SIZE, UnreadableError, opened

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_PAIRS, MOST_TENSORS = 2**16, 2**18
MOST_ITEMS = 2**22  # of an array: vocabularies have up to 300 thousand tokens
MOST_TEXT = 2**24  # of one string: chat templates have up to 100 kB
MOST_NESTED = 2
MOST_HEADER = 2**29  # bytes: those of the largest public models have about 20 MB
KEPT_ITEMS = 4096  # of an array: one item per layer is kept, a vocabulary is passed over
MOST_DIMS, MOST_DIM = 4, 2**40
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
# Number of a type -> its name, values in a block, bytes of a block (ggml-common.h; gguf-py's GGML_QUANT_SIZES).
TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2),
    26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor.

    Attributes:
        name: llama.cpp's, such as ``blk.0.ffn_down_exps.weight``.
        shape: its dimensions, the row first: a matrix is [inputs, outputs], stacked experts [inputs, outputs, E].
        kind: of its values, such as ``Q4_K``.
        size: bytes of its data, blocks whole.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    size: int

    @property
    def params(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)

    @property
    def outputs(self) -> int:
        """Rows of a matrix."""
        return math.prod(self.shape[1:])


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """What the file says of itself: scalars, texts and short arrays by key (None for arrays passed over)."""

    values: dict[str, Any]
    tensors: tuple[Tensor, ...]


def is_gguf(file: Path) -> bool:
    """True for a file that begins as GGUF does."""
    try:
        with opened(file, ANY_SIZE) as stream:
            return stream.read(len(MAGIC)) == MAGIC
    except UnreadableError:
        return False


def read_header(file: Path) -> GgufHeader:
    """Read the header.

    Raises:
        ModelError: no GGUF, damaged, cut short, or of a version or tensor type that is not known.
    """
    try:
        with opened(file, ANY_SIZE) as stream:
            return _Reader(stream, file.stat().st_size, str(file)).header()
    except UnreadableError as fault:
        raise ModelError(str(fault)) from fault
    except (OSError, OverflowError) as error:
        raise ModelError(f"{file}: cannot be read ({type(error).__name__}: {error})") from error


class _Reader:
    """Reads on from where it stands; never past the end of the file, never more than the file can hold."""

    def __init__(self, stream: BinaryIO, size: int, name: str) -> None:
        self._stream, self._size, self._name, self._order = stream, size, name, "<"
        self._at = 0

    def header(self) -> GgufHeader:
        if self._take(4) != MAGIC:
            raise self._error("no GGUF file: it does not begin with GGUF")
        self._order = self._byte_order()
        tensors, pairs = self._number("Q"), self._number("Q")
        self._at_most(pairs, MOST_PAIRS, "key-value pairs", least_bytes=13)
        self._at_most(tensors, MOST_TENSORS, "tensors", least_bytes=32)
        values: dict[str, Any] = {}
        for _ in range(pairs):
            key = self._text()
            if key in values:
                raise self._error(f"the key {key!r} stands twice")
            values[key] = self._value(self._number("I"))
        described = [self._described() for _ in range(tensors)]
        return GgufHeader(values=values, tensors=tuple(self._placed(described, values)))

    def _byte_order(self) -> str:
        raw = self._take(4)
        for order in "<>":
            version = struct.unpack(f"{order}I", raw)[0]
            if version in VERSIONS:
                return order
        raise self._error(f"GGUF of version {struct.unpack('<I', raw)[0]}; versions 2 and 3 are read")

    def _described(self) -> tuple[str, tuple[int, ...], int, int]:
        """(name, shape, number of the type, offset) of the next tensor."""
        name = self._text()
        dims = self._number("I")
        if not 1 <= dims <= MOST_DIMS:
            raise self._error(f"tensor {name!r} has {dims} dimensions; 1 to {MOST_DIMS} are allowed")
        shape = tuple(self._number("Q") for _ in range(dims))
        if not all(1 <= dim <= MOST_DIM for dim in shape):
            raise self._error(f"tensor {name!r} has shape {list(shape)}; 1 to {MOST_DIM} are allowed")
        return name, shape, self._number("I"), self._number("Q")

    def _placed(
        self, described: list[tuple[str, tuple[int, ...], int, int]], values: dict[str, Any]
    ) -> Iterator[Tensor]:
        """The tensors, once it is sure that the file has room for all of their data."""
        alignment = values.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 2**20 or alignment & (alignment - 1):
            raise self._error(f"general.alignment: found {alignment!r}; a power of two is allowed")
        start = -(-self._at // alignment) * alignment
        names: set[str] = set()
        end = 0
        for name, shape, number, offset in sorted(described, key=lambda one: one[3]):
            if name in names:
                raise self._error(f"the tensor {name!r} stands twice")
            names.add(name)
            kind, block, block_bytes = self._kind(name, number)
            if shape[0] % block:
                raise self._error(f"tensor {name!r} of type {kind} has rows of {shape[0]}, no multiple of {block}")
            size = math.prod(shape) // block * block_bytes
            if offset < end:
                raise self._error(f"the data of tensor {name!r} lies over that of another")
            end = offset + size
            yield Tensor(name=name, shape=shape, kind=kind, size=size)
        if start + end > self._size and described:
            raise self._error(
                f"it has {self._size} bytes and its header describes {start + end}: cut short; fetch it again"
            )

    def _kind(self, name: str, number: int) -> tuple[str, int, int]:
        if number not in TYPES:
            raise self._error(f"tensor {name!r} is of type {number}, which this version of moeprof does not know")
        return TYPES[number]

    def _value(self, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self._text()
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind != _ARRAY:
            raise self._error(f"a value of type {kind}, which GGUF does not have")
        if depth >= MOST_NESTED:
            raise self._error(f"arrays nested more than {MOST_NESTED} deep")
        return self._array(depth)

    def _array(self, depth: int) -> list[Any] | None:
        kind, count = self._number("I"), self._number("Q")
        width = struct.calcsize(f"={_SCALARS[kind]}") if kind in _SCALARS else 8
        self._at_most(count, MOST_ITEMS, "items of an array", least_bytes=width)
        if kind in _SCALARS and count > KEPT_ITEMS:
            self._skip(count * width)
            return None
        skipped = self._skip_text if kind == _STRING and count > KEPT_ITEMS else None
        read = skipped or partial(self._value, kind, depth + 1)
        items = [read() for _ in range(count)]
        return None if skipped else items

    def _text(self) -> str:
        return self._take(self._text_length()).decode("utf-8", errors="replace")

    def _skip_text(self) -> None:
        self._skip(self._text_length())

    def _text_length(self) -> int:
        length: int = self._number("Q")
        self._at_most(length, MOST_TEXT, "bytes of a text", least_bytes=1)
        return length

    def _number(self, code: str) -> Any:
        raw = self._take(struct.calcsize(f"={code}"))
        return struct.unpack(f"{self._order}{code}", raw)[0]

    def _at_most(self, found: int, most: int, what: str, *, least_bytes: int) -> None:
        if found > most:
            raise self._error(f"it speaks of {found} {what} at byte {self._at}; at most {most} are allowed")
        if found * least_bytes > self._size - self._at:
            left = self._size - self._at
            raise self._error(f"it speaks of {found} {what} and {left} bytes follow: damaged or cut short")

    def _take(self, count: int) -> bytes:
        found = self._stream.read(count)
        self._pass(count)
        return found

    def _skip(self, count: int) -> None:
        self._pass(count)
        self._stream.seek(count, 1)

    def _pass(self, count: int) -> None:
        if count > self._size - self._at:
            raise self._error(f"it ends within its header, after {self._size} bytes; fetch it again")
        self._at += count
        if self._at > MOST_HEADER:
            raise self._error(f"its header has more than {MOST_HEADER} bytes; that is no model's")

    def _error(self, message: str) -> ModelError:
        return ModelError(f"{self._name}: {message}")
