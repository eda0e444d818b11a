"""Gates on a terminal: one line each where they fit, two where not, and one under another on narrow ones.

Numbers are never cut: a layout is taken only where its longest words fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from moeprof.analysis.document import GateTable
from moeprof.core.plaintext import one_line
from moeprof.render.cells_compare import tone
from moeprof.render.cells_gates import HEADS, INTERVAL_HEAD, SPAN, gate_cells

GAP = 2  # columns between two columns
LEAST_LABEL = 24  # a gate's name gets so many columns before its words are folded
STYLES = {"better": "bold green", "worse": "bold red", "open": "dim"}
# What each column holds, one entry a line of the cell, for the layouts that are tables.
WIDE = (("gate",), ("reference",), ("new",), ("change",), (INTERVAL_HEAD,), ("verdict",), ("n",), ("limit",))
MEDIUM = (("gate",), (SPAN,), ("change",), (INTERVAL_HEAD,), ("verdict",), ("n",), ("limit",))
STACKED = (("gate",), ("reference", "new"), ("change", INTERVAL_HEAD), ("verdict", "n"), ("limit",))
TIGHT = (("gate", SPAN), ("change", INTERVAL_HEAD), ("verdict", "n", "allowed"))
RIGHT = {"reference", "new", "change"}
Cells = Mapping[str, Text]


def gate_table(table: GateTable, width: int) -> RenderableType:
    """The table in the first of its layouts that fits into ``width``."""
    rows = [_texts(row) for row in (gate_cells(row) for row in table.rows)]
    shown = {name for row in rows for name, text in row.items() if text.plain}
    for layout in (WIDE, MEDIUM, STACKED, TIGHT):
        columns = [tuple(name for name in column if name in shown) for column in layout]
        columns = [column for column in columns if column]
        widths = [_width(column, rows) for column in columns[1:]]
        room = width - sum(widths) - GAP * len(widths)
        full = _width(columns[0], rows)
        words = max(cell_len(word) for row in rows for name in columns[0] for word in row[name].plain.split())
        if room >= (full if layout in (WIDE, MEDIUM) else max(words, min(full, LEAST_LABEL))):
            return _drawn(columns, (min(full, room), *widths), rows)
    return Group(*(_one(row, width, first=n == 0) for n, row in enumerate(rows)))


def _texts(cells: Mapping[str, str]) -> dict[str, Text]:
    """Cells with their styles; the verdict's word stands beside its colour."""
    look = tone(cells["verdict"])
    styles = {"verdict": STYLES[look], "change": "" if look == "open" else "bold"}
    styles |= dict.fromkeys((INTERVAL_HEAD, "n", "limit", "reference"), "dim")
    found = {name: Text(one_line(text), style=styles.get(name, "")) for name, text in cells.items()}
    found["allowed"] = Text.assemble("limit ", found["limit"], style="dim")
    return found


def _width(column: Sequence[str], rows: Sequence[Cells]) -> int:
    cells = max((cell_len(row[name].plain) for row in rows for name in column), default=1)
    return max(cells, *(cell_len(_head(name)) for name in column))


def _head(name: str) -> str:
    return "" if name in (HEADS[0], SPAN, "allowed") else name


def _drawn(columns: Sequence[Sequence[str]], widths: Sequence[int], rows: Sequence[Cells]) -> Table:
    found = Table(box=None, pad_edge=False, show_edge=False, padding=(0, GAP, 0, 0))
    for column, width in zip(columns, widths, strict=True):
        head = Text("\n".join(_head(name) for name in column).rstrip("\n"), style="bold")
        justify = "right" if column[0] in RIGHT else "left"
        found.add_column(head, justify=justify, overflow="fold", width=width)  # type: ignore[arg-type]
    for row in rows:
        cells = [Text("\n").join(row[name] for name in column if row[name].plain) for column in columns]
        found.add_row(*cells)
    return found


def _one(row: Cells, width: int, *, first: bool) -> Text:
    """For narrow terminals: the gate, under it what it shows, under that what it rests on."""
    lines = [(row["verdict"], row["change"], row[INTERVAL_HEAD]), (row[SPAN], row["n"], row["allowed"])]
    text = Text("" if first else "\n").append(row["gate"].plain, style="bold")
    for line in lines:
        text.append("\n")
        text.append_text(_filled([part for part in line if part.plain], width))
    return text


def _filled(parts: Sequence[Text], width: int) -> Text:
    """Parts beside each other, on a new line where the next would not fit."""
    text, used = Text(), 0
    for part in parts:
        fits = used and used + 2 + cell_len(part.plain) <= width
        text.append("  " if fits or not used else "\n  ")
        used = (used if fits else 0) + 2 + cell_len(part.plain)
        text.append_text(part)
    return text
