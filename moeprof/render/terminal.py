"""A Document on one terminal screen: headline, the first table, reasons to doubt.

Rich lays it out; every text from the record is printed as data, never as markup. On a pipe the same without colour.

Comparisons on a terminal: ratios beside values where they fit, under them where not, and waterfalls of blocks.

Layouts of one table, the first that fits: one line a metric; the ratio under its value, with ever less beside it; the
models under the metric. Numbers are never cut.

Gates on a terminal: one line each where they fit, two where not, and one under another on narrow ones.

Numbers are never cut: a layout is taken only where its longest words fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from moeprof.analysis.compare.tables import RatioRow, RatioTable
from moeprof.analysis.doubt import Doubt
from moeprof.analysis.report.document import Block, Document, GateTable, ModelColumn, Paragraph, Row, Section, Waterfall
from moeprof.core.text import one_line, printable
from moeprof.render.cells import (
    CANNOT_TELL,
    HEADS,
    INTERVAL_HEAD,
    SPAN,
    block_bars,
    block_character,
    gate_cells,
    gate_notes,
    interval_text,
    ratio_interval,
    ratio_notes,
    ratio_text,
    row_reasons,
    short_text,
    shown_ratio,
    step_interval,
    step_text,
    tone,
)

LEAST_GATE_LABEL = 24  # a gate's name gets so many columns before its words are folded
GATE_STYLES = {"better": "bold green", "worse": "bold red", "open": "dim"}
# What each column holds, one entry a line of the cell, for the layouts that are tables.
GATES_WIDE = (("gate",), ("reference",), ("new",), ("change",), (INTERVAL_HEAD,), ("verdict",), ("n",), ("limit",))
MEDIUM = (("gate",), (SPAN,), ("change",), (INTERVAL_HEAD,), ("verdict",), ("n",), ("limit",))
STACKED = (("gate",), ("reference", "new"), ("change", INTERVAL_HEAD), ("verdict", "n"), ("limit",))
TIGHT = (("gate", SPAN), ("change", INTERVAL_HEAD), ("verdict", "n", "allowed"))
RIGHT = {"reference", "new", "change"}
Cells = Mapping[str, Text]


def gate_table(table: GateTable, width: int) -> RenderableType:
    """The table in the first of its layouts that fits into ``width``."""
    rows = [_texts(row) for row in (gate_cells(row) for row in table.rows)]
    shown = {name for row in rows for name, text in row.items() if text.plain}
    for layout in (GATES_WIDE, MEDIUM, STACKED, TIGHT):
        columns = [tuple(name for name in column if name in shown) for column in layout]
        columns = [column for column in columns if column]
        widths = [_width(column, rows) for column in columns[1:]]
        room = width - sum(widths) - GAP * len(widths)
        full = _width(columns[0], rows)
        words = max(cell_len(word) for row in rows for name in columns[0] for word in row[name].plain.split())
        if room >= (full if layout in (GATES_WIDE, MEDIUM) else max(words, min(full, LEAST_GATE_LABEL))):
            return _drawn(columns, (min(full, room), *widths), rows)
    return Group(*(_one(row, width, first=n == 0) for n, row in enumerate(rows)))


def _texts(cells: Mapping[str, str]) -> dict[str, Text]:
    """Cells with their styles; the verdict's word stands beside its colour."""
    look = tone(cells["verdict"])
    styles = {"verdict": GATE_STYLES[look], "change": "" if look == "open" else "bold"}
    styles |= dict.fromkeys((INTERVAL_HEAD, "n", "limit", "reference"), "dim")
    found = {name: Text(one_line(text), style=styles.get(name, "")) for name, text in cells.items()}
    found["allowed"] = Text.assemble("limit ", found["limit"], style="dim")
    return found


def _width(column: Sequence[str], rows: Sequence[Cells]) -> int:
    cells = max((cell_len(row[name].plain) for row in rows for name in column), default=1)
    return max(cells, *(cell_len(_gates_head(name)) for name in column))


def _gates_head(name: str) -> str:
    return "" if name in (HEADS[0], SPAN, "allowed") else name


def _drawn(columns: Sequence[Sequence[str]], widths: Sequence[int], rows: Sequence[Cells]) -> Table:
    found = Table(box=None, pad_edge=False, show_edge=False, padding=(0, GAP, 0, 0))
    for column, width in zip(columns, widths, strict=True):
        head = Text("\n".join(_gates_head(name) for name in column).rstrip("\n"), style="bold")
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


WIDEST_HEAD, TIGHT_HEAD = 24, 15  # a longer model name is folded
NARROW = 70  # below this, a waterfall's intervals go under their values
LONGEST_BAR, WANTED_BAR, SHORTEST_BAR = 60, 24, 6
LEAST_LABEL = 16  # a metric's name gets so many columns before its words are folded
RATIO_STYLES = {"better": "bold green", "worse": "bold red", "open": "dim"}
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
    heads = [_table_head(table, i) for i in range(len(table.columns))]
    longest = max((cell_len(word) for text in labels for word in text.plain.split()), default=1)
    layouts = ((_wide_cells, "left"), (_stacked_cells, "right"), (_tight_cells, "right"))
    for make, justify in layouts:
        widest_head = TIGHT_HEAD if make is _tight_cells else WIDEST_HEAD
        columns = [make(table, i) for i in range(len(table.columns))]
        widths = [
            max(_longest_cell_line(cells), min(_longest_cell_line([head]), widest_head))
            for head, cells in zip(heads, columns, strict=True)
        ]
        room = width - sum(widths) - GAP * len(widths)
        full = _longest_cell_line(labels)
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


def _table_head(table: RatioTable, i: int) -> Text:
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
    style = RATIO_STYLES[tone(ratio.verdict)]
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


def _longest_cell_line(texts: Sequence[Text]) -> int:
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
    figure = min(_longest_cell_line(values), max(width // 2, 1))
    label_width = min(_longest_cell_line(labels), max(width - figure - WANTED_BAR - 2 * GAP, width // 3))
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
