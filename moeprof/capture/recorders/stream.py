"""Tables that survive a kill: Arrow streams flushed about once a second, parquet when the pass ends.

Parquet cannot be appended to; an Arrow IPC stream can, and is readable up to the last whole batch.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from moeprof.core.files import opened, replacing
from moeprof.core.record.owner import Witness
from moeprof.core.record.tables import arrow_schema

FLUSH_EVERY_S = 1.0


class TableStream:
    """One table of one pass. ``append`` is cheap; rows go to disk about once a second."""

    def __init__(self, folder: Path, table: str) -> None:
        self._folder, self._table = folder, table
        self._schema = arrow_schema(table)
        self._columns: dict[str, list[Any]] = {name: [] for name in self._schema.names}
        self._path, self._witness = folder / f"{table}.arrows", Witness.of(folder)
        self._path.unlink(missing_ok=True)  # of a process that was killed
        self._file = self._path.open("xb")
        self._writer = pa.ipc.new_stream(self._file, self._schema)
        self._flushed_at = time.monotonic()

    def append(self, row: dict[str, Any]) -> None:
        """Add a row; columns that are not named are null."""
        for name, column in self._columns.items():
            column.append(row.get(name))

    def flush_if_due(self) -> None:
        """Write to disk when a second has passed since the last time."""
        if time.monotonic() - self._flushed_at >= FLUSH_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Write what is buffered."""
        self._flushed_at = time.monotonic()
        self._witness.check()
        if next(iter(self._columns.values())):
            self._writer.write_batch(pa.record_batch(self._columns, schema=self._schema))
            for column in self._columns.values():
                column.clear()
        self._file.flush()

    def close(self) -> None:
        """Turn the stream into parquet."""
        self.flush()
        self._writer.close()
        self._file.close()
        with opened(self._path) as file:
            table = pa.ipc.open_stream(file).read_all()
        with replacing(self._folder / f"{self._table}.parquet") as file:
            pq.write_table(table, file, compression="zstd")
        self._path.unlink()
