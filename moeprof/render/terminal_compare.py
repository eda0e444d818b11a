"""Comparisons on a terminal: ratios beside values where they fit, under them where not, and waterfalls of blocks.

Layouts of one table, the first that fits: one line a metric; the ratio under its value, with ever less beside it; the
models under the metric. Numbers are never cut.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from moeprof.analysis.document import (
    Block,
    Document,
    GateTable,
    Paragraph,
    RatioRow,
    RatioTable,
    Section,
    Waterfall,
)
from moeprof.core.plaintext import one_line, printable
from moeprof.render.cells import interval_text, short_text
from moeprof.render.cells_compare import (
    CANNOT_TELL,
    block_bars,
    block_character,
    ratio_interval,
    ratio_notes,
    ratio_text,
    shown_ratio,
    step_interval,
    step_text,
    tone,
)
from moeprof.render.cells_gates import gate_notes
from moeprof.render.terminal_gates import gate_table

GAP = 2  # columns between two columns
WIDEST_HEAD, TIGHT_HEAD = 24, 15  # a longer model name is folded
NARROW = 70  # below this, a waterfall's intervals go under their values
LONGEST_BAR, WANTED_BAR, SHORTEST_BAR = 60, 24, 6
LEAST_LABEL = 16  # a metric's name gets so many columns before its words are folded
STYLES = {"better": "bold green", "worse": "bold red", "open": "dim"}
TABLES = RatioTable | GateTable
COMPARING = TABLES | Waterfall


def print_sections(document: Document, console: Console, *, folded: bool = False) -> None:
    """Print the comparing blocks: the first section's tables, of the others what is said and drawn.

    Tables that a page would fold, and those of later sections, only where ``folded``: a terminal has no fold.
    """
    comparing = [s for s in document.sections if any(isinstance(b, COMPARING) for b in s.blocks)]
    left_out = 0
    for section in comparing:
        shown = [b for b in section.blocks if folded or not isinstance(b, TABLES) or _is_first(b, section, comparing)]
        left_out += len(section.blocks) - len(shown)  # all of them tables
        blocks = [block for block in shown if isinstance(block, Paragraph | COMPARING)]
        if not blocks:
            continue
        console.print()
        console.print(Text(printable(section.title), style="bold underline"))
        for n, block in enumerate(blocks):
            if n and isinstance(blocks[n - 1], GateTable):
                console.print()
            _print_block(block, console, section.title)
    if left_out:
        console.print()
        more = "1 more table" if left_out == 1 else f"{left_out} more tables"
        console.print(Text(f"{more} with --all, or in the files that --write makes", style="dim"))


def _is_first(block: RatioTable | GateTable, section: Section, comparing: Sequence[Section]) -> bool:
    return section is comparing[0] and not block.folded


def _print_block(block: Block, console: Console, heading: str) -> None:
    if isinstance(block, Paragraph):
        console.print(Text(printable(block.text)))
    elif isinstance(block, RatioTable):
        if block.title and block.title != heading:
            console.print(Text(printable(block.title), style="bold"))
        console.print(ratio_table(block, console.width))
        for note in ratio_notes(block):
            console.print(Text(printable(note), style="dim"))
    elif isinstance(block, GateTable):
        if block.title != heading:
            console.print(Text(printable(block.title), style="bold"))
        console.print(gate_table(block, console.width))
        for note in gate_notes(block):
            console.print(Text(one_line(note), style="dim"))
    elif isinstance(block, Waterfall):
        _print_waterfall(block, console)


# -- tables of ratios --------------------------------------------------------------------------------------------------


def ratio_table(table: RatioTable, width: int) -> RenderableType:
    """The table in the first of its layouts that fits into ``width``."""
    labels = [Text(printable(row.label)) for row in table.rows]
    heads = [_head(table, i) for i in range(len(table.columns))]
    longest = max((cell_len(word) for text in labels for word in text.plain.split()), default=1)
    layouts = ((_wide_cells, "left"), (_stacked_cells, "right"), (_tight_cells, "right"))
    for make, justify in layouts:
        widest_head = TIGHT_HEAD if make is _tight_cells else WIDEST_HEAD
        columns = [make(table, i) for i in range(len(table.columns))]
        widths = [
            max(_longest_line(cells), min(_longest_line([head]), widest_head))
            for head, cells in zip(heads, columns, strict=True)
        ]
        room = width - sum(widths) - GAP * len(widths)
        full = _longest_line(labels)
        least = full if make is _wide_cells else max(longest, min(full, LEAST_LABEL))
        if room >= least:
            found = Table(box=None, pad_edge=False, show_edge=False, padding=(0, GAP, 0, 0))
            found.add_column("", overflow="fold", width=min(full, room))
            for head, wanted in zip(heads, widths, strict=True):
                found.add_column(head, justify=justify, overflow="fold", width=wanted)  # type: ignore[arg-type]
            for n, label in enumerate(labels):
                found.add_row(label, *(cells[n] for cells in columns))
            return found
    return _one_under_another(table, labels, width)


def _head(table: RatioTable, i: int) -> Text:
    head = Text(printable(table.columns[i]), style="bold")
    return head.append("\nreference", style="dim") if table.has_ratios and i == table.reference else head


def _wide_cells(table: RatioTable, i: int) -> list[Text]:
    """Value, ratio, interval and verdict on one line, each under its like."""
    rows = [_parts(row, i) for row in table.rows]
    widths = [max((cell_len(row[n].plain) for row in rows), default=0) for n in range(4)]
    cells = []
    for row in rows:
        line = Text()
        for n, part in enumerate(row):
            if widths[n]:
                room = " " * (widths[n] - cell_len(part.plain))
                line.append("  " if line.plain else "")
                line.append_text(Text.assemble(room, part) if n < 2 else Text.assemble(part, room))
        line.rstrip()
        cells.append(line)
    return cells


def _stacked_cells(table: RatioTable, i: int) -> list[Text]:
    """Verdict and value on one line, ratio and interval under them."""
    cells = []
    for row in table.rows:
        value, ratio, interval, verdict = _parts(row, i)
        first = _joined("  ", verdict, value)
        second = _joined(" ", ratio, interval)
        cells.append(_joined("\n", first, second))
    return cells


def _tight_cells(table: RatioTable, i: int) -> list[Text]:
    """As stacked, but a long verdict stands on a line of its own, and the reference's interval is left out."""
    rows = [_parts(row, i) for row in table.rows]
    if i == table.reference:
        return [value for value, *_ in rows]
    widest = max((cell_len(_joined(" ", ratio, interval).plain) for _, ratio, interval, _ in rows), default=0)
    cells = []
    for value, ratio, interval, verdict in rows:
        first = _joined("  ", verdict, value)
        fits = cell_len(first.plain) <= widest
        second = _joined(" ", ratio, interval)
        cells.append(_joined("\n", first, second) if fits else _joined("\n", value, second, verdict))
    return cells


def _parts(row: RatioRow, i: int) -> tuple[Text, Text, Text, Text]:
    """Value, ratio, interval and verdict of one model; the reference shows the interval of its value."""
    ratio = shown_ratio(row.values[i], row.ratios[i])
    value = Text(printable(short_text(row.values[i], row.card)))
    if ratio is None:
        return value, Text(), Text(printable(interval_text(row.values[i], row.card)), style="dim"), Text()
    style = STYLES[tone(ratio.verdict)]
    bold = "bold" if tone(ratio.verdict) != "open" else ""
    return (
        value,
        Text(ratio_text(ratio), style=bold),
        Text(ratio_interval(ratio), style="dim"),
        Text(printable(ratio.verdict), style=style),
    )


def _one_under_another(table: RatioTable, labels: Sequence[Text], width: int) -> Group:
    """For narrow terminals and many models: the metric, and under it a line or two per model."""
    names = max((cell_len(printable(name)) for name in table.columns), default=1) + 2
    names = min(names, max(width // 3, 6))
    parts: list[RenderableType] = []
    for n, (row, label) in enumerate(zip(table.rows, labels, strict=True)):
        found = Table(box=None, pad_edge=False, show_edge=False, show_header=False, padding=(0, GAP, 0, 0))
        found.add_column(overflow="fold", width=names)
        found.add_column(overflow="fold", width=max(width - names - GAP, 1))
        parts += [Text.assemble("\n" if n else "", (label.plain, "bold")), found]
        for i, name in enumerate(table.columns):
            value, ratio, interval, verdict = _parts(row, i)
            reference = Text("reference" if table.has_ratios and i == table.reference and not n else "", style="dim")
            first = _joined("  ", value, verdict, reference)
            fits = cell_len(ratio.plain) + cell_len(interval.plain) + 1 <= width - names - GAP
            second = _joined(" " if fits else "\n", ratio, interval)
            found.add_row(Text(printable(name)), _joined("\n", first, second))
    return Group(*parts)


def _joined(between: str, *parts: Text) -> Text:
    return Text(between).join(part for part in parts if part.plain)


def _longest_line(texts: Sequence[Text]) -> int:
    return max((cell_len(line) for text in texts for line in text.plain.split("\n")), default=1)


# -- waterfalls --------------------------------------------------------------------------------------------------------


def _print_waterfall(waterfall: Waterfall, console: Console) -> None:
    console.print(Text(printable(waterfall.title), style="bold"))
    if waterfall.caption:
        console.print(Text(printable(waterfall.caption), style="dim"))
    console.print(waterfall_table(waterfall, console.width))
    for step in waterfall.steps:
        if step.text and not step.told:  # what the others are stands above, once
            text = Text.assemble((printable(step.label), "bold"), ": ", printable(step.text))
            console.print(Padding(text, (0, 0, 0, 1)))


def waterfall_table(waterfall: Waterfall, width: int) -> Table:
    """Label, figure and bar of every step; a change that cannot be told from 0 is pale and says so."""
    labels, values = [], []
    for step in waterfall.steps:
        label = Text("" if step.kind == "level" else "  ").append(printable(step.label))
        labels.append(label if step.told else label.append(f"\n  {CANNOT_TELL}", style="dim"))
        value = Text(step_text(step, waterfall.unit), style="bold" if step.kind == "level" else "")
        interval = Text(step_interval(step, waterfall.unit), style="dim")
        values.append(_joined("\n" if width < NARROW else "  ", value, interval))
    figure = min(_longest_line(values), max(width // 2, 1))
    label_width = min(_longest_line(labels), max(width - figure - WANTED_BAR - 2 * GAP, width // 3))
    bar = min(LONGEST_BAR, width - figure - label_width - 2 * GAP)
    table = Table(box=None, pad_edge=False, show_edge=False, show_header=False, padding=(0, GAP, 0, 0))
    table.add_column(overflow="fold", width=label_width)
    table.add_column(overflow="fold", width=figure)
    if bar >= SHORTEST_BAR:
        table.add_column(width=bar, no_wrap=True)
    bars = block_bars(waterfall, bar) if bar >= SHORTEST_BAR else ()
    for n, (step, label, value) in enumerate(zip(waterfall.steps, labels, values, strict=True)):
        drawn = [Text(" " * bars[n][0] + block_character(step) * bars[n][1])] if bars else []
        table.add_row(label, value, *drawn)
    return table
