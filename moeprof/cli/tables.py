"""Rows of plain values as a table, JSON, CSV or Markdown, for commands that list things."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from moeprof.core.plaintext import printable


def print_records(rows: Sequence[Mapping[str, Any]], form: str) -> None:
    """Print ``rows`` (all with the same keys) to stdout."""
    if form == "json":
        sys.stdout.write(json.dumps([dict(row) for row in rows], indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    elif form == "csv":
        out = io.StringIO()
        writer = csv.DictWriter(out, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        sys.stdout.write(out.getvalue())
    elif form == "md":
        heads = list(rows[0]) if rows else []
        lines = ["|" + "|".join(heads) + "|", "|" + ":--|" * len(heads)]
        lines += ["|" + "|".join(_cell(row[h]).replace("|", "\\|") for h in heads) + "|" for row in rows]
        sys.stdout.write("\n".join(lines) + "\n")
    else:
        _table(rows)


def _table(rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in rows[0] if rows else ():
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row.values()))
    Console(highlight=False).print(table)


def _cell(value: Any) -> str:
    return "" if value is None else printable(str(value))
