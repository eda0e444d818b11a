"""A Document on one terminal screen: headline, the first table, reasons to doubt.

Rich lays it out; every text from the record is printed as data, never as markup. On a pipe the same without colour.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from moeprof.analysis.document import Document, Doubt, ModelColumn, Row
from moeprof.core.plaintext import printable
from moeprof.render.cells import interval_text, row_reasons, short_text
from moeprof.render.terminal_compare import print_sections

WIDE = 100  # below this, intervals go under their value
GAP = 2  # columns between two columns
MAX_DOUBTS = 8
STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def print_document(document: Document, console: Console, *, sections: bool = False, folded: bool = False) -> None:
    """Print the first screen to ``console``.

    Args:
        document: what to print.
        console: where.
        sections: also print what the sections compare: ratio tables and waterfalls.
        folded: of these, also the tables that a page would fold.
    """
    console.print(Text(printable(document.headline), style="bold"))
    for note in document.notes:
        console.print(Text(printable(note)))
    if document.subtitle:
        console.print(Text(printable(document.subtitle), style="dim"))
    for banner in document.banners:
        console.print(Text(printable(f"! {banner}"), style="bold yellow"))
    if document.first_screen:
        for table in _tables(document, console.width):
            console.print(table)
    for model in document.models:
        if model.error:
            console.print(Text(printable(f"{model.name}: {model.status}: {model.error}"), style="red"))
    for note in row_reasons(document.first_screen):
        console.print(Text(printable(note), style="dim"))
    if sections:
        print_sections(document, console, folded=folded)
        console.print()
    _print_doubts(document.doubts, console)


def _tables(document: Document, width: int) -> list[Table]:
    """The first screen as one table, or as several with fewer models each where a number would be cut otherwise."""
    rows = [(Text(printable(row.label)), _cells(row, width)) for row in document.first_screen]
    heads = [_head(model) for model in document.models]
    label = _longest_word(text for text, _ in rows)
    number = _longest_word(cell for _, cells in rows for cell in cells)
    each = max(1, min(len(heads), (width - label) // (number + GAP)))
    return [_table(rows, heads, slice(i, i + each), (label, number), width) for i in range(0, len(heads), each)]


def _table(
    rows: list[tuple[Text, list[Text]]], heads: list[Text], part: slice, least: tuple[int, int], width: int
) -> Table:
    """Widths are set here, because a layout that shrinks columns by itself cuts numbers. ``least``: label, number."""
    columns = heads[part]
    room = width - GAP * len(columns)
    wanted = max(_longest_line(text) for text in (*columns, *(cell for _, cells in rows for cell in cells[part])))
    label = min(_longest_line(*(text for text, _ in rows)), max(2 * width // 5, room - wanted * len(columns)))
    label = max(least[0], min(label, room - least[1] * len(columns)))
    table = Table(box=None, pad_edge=False, show_edge=False, padding=(0, GAP, 0, 0))
    table.add_column("", overflow="fold", width=label)
    for head in columns:
        table.add_column(head, justify="right", overflow="fold", width=min(wanted, (room - label) // len(columns)))
    for text, cells in rows:
        table.add_row(text, *cells[part])
    return table


def _head(model: ModelColumn) -> Text:
    head = Text(printable(model.name), style="bold")
    return head.append(printable(f"\n{model.subtitle}"), style="dim") if model.subtitle else head


def _longest_word(texts: Iterable[Text]) -> int:
    return max((cell_len(word) for text in texts for word in text.plain.split()), default=1)


def _longest_line(*texts: Text) -> int:
    return max((cell_len(line) for text in texts for line in text.plain.split("\n")), default=1)


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
