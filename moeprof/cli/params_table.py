"""The table of ``moeprof params`` on a terminal: models as columns, as many side by side as the width allows."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from moeprof.analysis.params import Question
from moeprof.core.plaintext import printable
from moeprof.render.params import Column, cell, footnotes

LABEL_WIDTH, CELL_WIDTH, GAP = 29, 14, 2


def print_params(columns: Sequence[Column], question: Question, console: Console) -> None:
    """Print models side by side, in several tables where one is too wide, then the notes.

    Args:
        columns: one per model.
        question: what was asked, for the rules below.
        console: where to.
    """
    shown = [column for column in columns if column.has_figures]
    width = max(CELL_WIDTH, min(24, max(len(column.head) for column in columns)))
    fit = max(1, (console.width - LABEL_WIDTH) // (width + GAP))
    if fit < len(shown):
        width, fit = CELL_WIDTH, max(1, (console.width - LABEL_WIDTH) // (CELL_WIDTH + GAP))
    for start in range(0, len(shown), fit):
        if start:
            console.print()
        console.print(_table(shown[start : start + fit], width))
    for heading, notes in footnotes(columns, question):
        console.print()
        console.print(Text(heading, style="bold"))
        for note in notes:
            console.print(Padding(Text(printable(note), style="dim"), (0, 0, 0, 2)))


def _table(columns: Sequence[Column], width: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), show_header=True)
    table.add_column("", overflow="fold", max_width=LABEL_WIDTH, no_wrap=False)
    for column in columns:
        style = "bold yellow" if column.is_marked else "bold"
        table.add_column(Text(column.head, style=style), justify="right", overflow="fold", max_width=width)
    table.add_row(Text("figures are", style="dim"), *(Text(c.status, style="dim") for c in columns))
    section = ""
    for row in zip(*(column.figures for column in columns), strict=True):
        if row[0].section != section:
            section = row[0].section
            table.add_row(Text(section, style="bold"))
        table.add_row(Text(f"  {row[0].label}"), *(Text(cell(figure)) for figure in row))
    return table
