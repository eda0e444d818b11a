"""A Document on one terminal screen: headline, the first table, reasons to doubt.

Rich lays it out; every text from the record is printed as data, never as markup. On a pipe the same without colour.
"""

from __future__ import annotations

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from moeprof.analysis.document import Document, Doubt, Row
from moeprof.core.plaintext import printable
from moeprof.render.cells import interval_text, row_reasons, short_text

WIDE = 100  # below this, intervals go under their value
MAX_DOUBTS = 8
STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def print_document(document: Document, console: Console) -> None:
    """Print the first screen to ``console``."""
    console.print(Text(printable(document.headline), style="bold"))
    for note in document.notes:
        console.print(Text(printable(note)))
    if document.subtitle:
        console.print(Text(printable(document.subtitle), style="dim"))
    for banner in document.banners:
        console.print(Text(printable(f"! {banner}"), style="bold yellow"))
    if document.first_screen:
        console.print(_table(document, console.width))
    for model in document.models:
        if model.error:
            console.print(Text(printable(f"{model.name}: {model.status}: {model.error}"), style="red"))
    for note in row_reasons(document.first_screen):
        console.print(Text(printable(note), style="dim"))
    _print_doubts(document.doubts, console)


def _table(document: Document, width: int) -> Table:
    table = Table(box=None, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for model in document.models:
        head = Text(printable(model.name), style="bold")
        if model.subtitle:
            head.append(printable(f"\n{model.subtitle}"), style="dim")
        table.add_column(head, justify="right")
    for row in document.first_screen:
        table.add_row(Text(printable(row.label)), *_cells(row, width))
    return table


def _cells(row: Row, width: int) -> list[Text]:
    cells = []
    for value in row.values:
        cell = Text(printable(short_text(value, row.card)))
        interval = interval_text(value, row.card)
        if interval:
            cell.append(("  " if width >= WIDE else "\n") + interval, style="dim")
        cells.append(cell)
    return cells


def _print_doubts(doubts: tuple[Doubt, ...], console: Console) -> None:
    if not doubts:
        return
    console.print(Text("Reasons to doubt this", style="bold"))
    for doubt in doubts[:MAX_DOUBTS]:
        where = f"{doubt.model}: " if doubt.model else ""
        console.print(Padding(Text(printable(f"- {where}{doubt.text}"), style=STYLES[doubt.severity]), (0, 0, 0, 1)))
    if len(doubts) > MAX_DOUBTS:
        console.print(Text(f"  and {len(doubts) - MAX_DOUBTS} more in the report", style="dim"))
