"""The columns of a parquet file, read when someone asks for them, and only those."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from moeprof.core.errors import TraceError

FEW_ROWS = 1_000_000
MIN_BYTES_PER_ROW = 0.25  # rows of real times and lengths need several bytes, packed as they may be


class Columns:
    """A table on disk or in memory. Times are text, so that times of CSV, JSON and parquet are read in one way."""

    def __init__(self, table: pa.Table | None, file: pq.ParquetFile | None = None, path: Path = Path()) -> None:
        self._table = table
        self._file = file
        self._path = path
        whole = table if file is None else file
        assert whole is not None
        self.names: tuple[str, ...] = tuple((whole.schema if file is None else whole.schema_arrow).names)
        self.num_rows: int = whole.num_rows if file is None else whole.metadata.num_rows

    def __len__(self) -> int:
        return self.num_rows

    @staticmethod
    def open(path: Path, data: bytes | None) -> Columns:
        """Look at the footer of a file, or of its bytes.

        Raises:
            TraceError: damaged, without rows, or of far more rows than so few bytes can tell apart.
        """
        try:
            file = pq.ParquetFile(str(path) if data is None else pa.BufferReader(data))
        except (OSError, pa.ArrowException) as error:
            raise _damaged(path) from error
        rows, size = file.metadata.num_rows, path.stat().st_size if data is None else len(data)
        if not rows:
            raise TraceError(f"{path}: a parquet file without rows; a trace has at least one request")
        if rows > FEW_ROWS and size < MIN_BYTES_PER_ROW * rows:
            raise TraceError(
                f"{path}: a parquet file of {size:,} bytes that claims {rows:,} rows; no trace is like that"
            )
        return Columns(None, file, path)

    def typed(self, name: str) -> pa.ChunkedArray:
        """One column as it is stored.

        Raises:
            TraceError: damaged.
        """
        return self._read([name]).column(0)

    def select(self, names: Sequence[str]) -> pa.Table:
        """Some columns, times as text.

        Raises:
            TraceError: damaged.
        """
        table = self._read(list(names))
        for i, kind in enumerate(table.schema.types):
            if pa.types.is_temporal(kind):
                table = table.set_column(i, table.schema.names[i], table.column(i).cast(pa.string()))
        return table

    def rows(self, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """All rows as objects."""
        rows: list[dict[str, Any]] = self.select(names or self.names).to_pylist()
        return rows

    def take(self, rows: Sequence[int]) -> Columns:
        """Some rows, in memory."""
        if self._table is None:
            self._table, self._file = self.select(self.names), None
        return Columns(self._table.take(list(rows)))

    def first(self) -> dict[str, Any]:
        """The first row."""
        table = self._table
        if self._file is not None:
            try:
                table = next(iter(self._file.iter_batches(batch_size=1)), None)
            except (OSError, pa.ArrowException) as error:
                raise _damaged(self._path) from error
        if table is None:
            raise _damaged(self._path)
        return dict(table.slice(0, 1).to_pylist()[0])

    def _read(self, names: list[str]) -> pa.Table:
        if self._table is not None:
            return self._table.select(names)
        assert self._file is not None
        try:
            return self._file.read(names)
        except (OSError, pa.ArrowException) as error:
            raise _damaged(self._path) from error


def _damaged(path: Path) -> TraceError:
    return TraceError(f"{path}: damaged parquet file; its columns cannot be read")
