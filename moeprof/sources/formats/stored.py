"""The bytes of a file: its head in memory, the rest read when someone asks for it, in pieces or as a whole."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moeprof.core.errors import TraceError
from moeprof.sources.formats.packing import BYTE_ORDER_MARK, PARQUET_MAGIC, UTF16_MARKS, as_text, read_head

PIECE_BYTES = 2**24
SCAN_BYTES = 2**22


class Stored:
    """Text that is known to be UTF-8 and not empty, or a parquet file.

    Attributes:
        path: for messages, and where the rest stands.
        head: the first bytes, without a byte order mark; a whole line at least, where the text has lines.
        is_whole: True when ``head`` is all.
        has_quotes: True when a double quote stands anywhere in it.
    """

    def __init__(self, path: Path, head: bytes, *, is_whole: bool) -> None:
        self.path = path
        self.head = head
        self.is_whole = is_whole
        self.has_quotes = b'"' in head

    @staticmethod
    def open(path: Path) -> Stored:
        """Look at a file.

        Raises:
            TraceError: as ``read_head``; or it is neither parquet nor text.
        """
        head, is_whole = read_head(path)
        stored = Stored(path, head, is_whole=is_whole)
        if stored.is_parquet:
            return stored
        if not is_whole and (head.startswith((*UTF16_MARKS, BYTE_ORDER_MARK)) or not head.strip() or b"\n" not in head):
            stored.head, stored.is_whole = stored._read(), True
        if stored.is_whole:
            return Stored(path, as_text(path, stored.head), is_whole=True)
        stored._scan()
        return stored

    @property
    def is_parquet(self) -> bool:
        """True for parquet."""
        return self.head.startswith(PARQUET_MAGIC)

    def whole(self) -> bytes:
        """All bytes; kept, so that asking again costs nothing."""
        if not self.is_whole:
            self.head, self.is_whole = self._read(), True
        return self.head

    def for_arrow(self) -> Any:
        """What pyarrow reads: the path, or the bytes."""
        return io.BytesIO(self.head) if self.is_whole else str(self.path)

    def pieces(self) -> Iterator[bytes]:
        """The text in pieces of whole lines, so that a large file is never in memory as a whole."""
        with io.BytesIO(self.head) if self.is_whole else self.path.open("rb") as file:
            rest = b""
            while piece := file.read(PIECE_BYTES):
                end = piece.rfind(b"\n") + 1
                if end:
                    yield rest + piece[:end]
                    rest = piece[end:]
                else:
                    rest += piece
            if rest:
                yield rest

    def _read(self) -> bytes:
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise TraceError(f"{self.path}: cannot be read ({error.strerror or error})") from error

    def _scan(self) -> None:
        """Hold that the text is UTF-8, and look for quotes, without keeping it.

        Raises:
            TraceError: bytes that are no UTF-8, with their line.
        """
        decoder = codecs.getincrementaldecoder("utf-8")()
        line = 1
        with self.path.open("rb") as file:
            while piece := file.read(SCAN_BYTES):
                self.has_quotes = self.has_quotes or b'"' in piece
                if piece.isascii() and not decoder.getstate()[0]:
                    line += piece.count(b"\n")
                    continue
                line = self._decoded(decoder, piece, line)
        self._decoded(decoder, b"", line, final=True)

    def _decoded(self, decoder: codecs.IncrementalDecoder, piece: bytes, line: int, *, final: bool = False) -> int:
        """The line after a piece."""
        try:
            decoder.decode(piece, final)
        except UnicodeDecodeError as error:
            found: bytes = error.object  # the bytes left over from the piece before stand in front
            line += found[: error.start].count(b"\n")
            raise TraceError(
                f"{self.path}:{line}: not UTF-8 text (byte 0x{found[error.start]:02x}); save the file as UTF-8"
            ) from error
        return line + piece.count(b"\n")
