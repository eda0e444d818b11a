"""A Document on one terminal screen: headline, the first table, what compares, reasons to doubt.

Rich lays it out; every text from the record is printed as data, never as markup. On a pipe the same without colour.

A table takes the first of its layouts that fits: one line a row, then ever more lines, at last one column under
another. Numbers are never cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from moeprof.analysis.doubt import Doubt
from moeprof.analysis.metrics.labels import from_to
from moeprof.analysis.report.document import (
    Chart,
    Document,
    HeatMap,
    ModelColumn,
    Paragraph,
    Row,
    StackedBars,
    Table,
    Timeline,
    Waterfall,
)
from moeprof.analysis.report.result import Counted, CountedColumn, Listing, Result, RunReport
from moeprof.core.text import one_line, printable
from moeprof.render.cells import (
    ABSENT,
    CANNOT_TELL,
    block_bars,
    block_character,
    footnotes,
    interval_text,
    plain,
    ratio_interval,
    ratio_text,
    reasons,
    shares,
    short_text,
    shown_ratio,
    step_interval,
    step_text,
    tone,
)
from moeprof.render.params import cell
from moeprof.render.params import footnotes as notes_of

TONES = {"better": "bold green", "worse": "bold red", "open": "dim"}
WIDEST_HEAD, TIGHT_HEAD = 24, 15  # a longer model name is folded
LEAST_LABEL, LEAST_GATE_LABEL = 16, 24  # a row's name gets so many columns before its words are folded
NARROW = 70  # below this, a waterfall's intervals go under their values
LONGEST_BAR, WANTED_BAR, SHORTEST_BAR = 60, 24, 6


def print_sections(document: Document, console: Console, *, folded: bool = False) -> None:
    """Print the comparing blocks: the first section's tables, of the others what is said and drawn.

    Tables that a page would fold, and those of later sections, only where ``folded``: a terminal has no fold.
    """
    comparing = [section for section in document.sections if section.compares]
    left_out = 0
    for section in comparing:
        drawn = [b for b in section.blocks if DRAW[type(b)] is not None and (not isinstance(b, Table) or b.compares)]
        shown = [b for b in drawn if not isinstance(b, Table) or folded or (section is comparing[0] and not b.folded)]
        left_out += len(drawn) - len(shown)
        if not shown:
            continue
        console.print()
        console.print(Text(printable(section.title), style="bold underline"))
        for before, block in zip((None, *shown), shown, strict=False):
            if isinstance(before, Table) and before.judged is not None:
                console.print()
            draw = DRAW[type(block)]
            if draw is not None:
                draw(block, console, section.title)
    if left_out:
        console.print()
        more = "1 more table" if left_out == 1 else f"{left_out} more tables"
        console.print(Text(f"{more} with --all, or in the files that --write makes", style="dim"))


def _print_paragraph(block: Paragraph, console: Console, heading: str) -> None:
    console.print(Text(printable(block.text)))


def _print_table(table: Table, console: Console, heading: str) -> None:
    if table.title and table.title != heading:
        console.print(Text(printable(table.title), style="bold"))
    console.print(laid_out(table, console.width))
    for note in footnotes(table):
        console.print(Text(one_line(note), style="dim"))


# -- tables ------------------------------------------------------------------------------------------------------------


Column = tuple[Text, Literal["left", "right"], Sequence[Text]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One way to lay a table out.

    Attributes:
        labels: what stands in the first column.
        columns: (head, alignment, cells) of the others.
        least: columns that the labels need at least; None: as many as the longest.
        widest_head: a longer head is folded.
    """

    labels: Sequence[Text]
    columns: Sequence[Column]
    least: int | None = None
    widest_head: int | None = None


def laid_out(table: Table, width: int) -> RenderableType:
    """The table in the first of its layouts that fits into ``width``."""
    judged = table.judged is not None
    for layout in _gate_layouts(table) if judged else _side_layouts(table):
        widths = [max(_longest_line(*cells), _head_width(head, layout)) for head, _, cells in layout.columns]
        room = width - sum(widths) - GAP * len(widths)
        full = _longest_line(*layout.labels)
        if room >= (full if layout.least is None else max(_longest_word(layout.labels), min(full, layout.least))):
            return _drawn(layout, (min(full, room), *widths))
    return _gates_under_another(table, width) if judged else _sides_under_another(table, width)


def _head_width(head: Text, layout: Layout) -> int:
    longest = _longest_line(head)
    return longest if layout.widest_head is None else min(longest, layout.widest_head)


def _drawn(layout: Layout, widths: Sequence[int]) -> RichTable:
    found = _grid()
    found.add_column("", overflow="fold", width=widths[0])
    for (head, justify, _), width in zip(layout.columns, widths[1:], strict=True):
        found.add_column(head, justify=justify, overflow="fold", width=width)
    for n, label in enumerate(layout.labels):
        found.add_row(label, *(cells[n] for _, _, cells in layout.columns))
    return found


def _grid(*, head: bool = True) -> RichTable:
    return RichTable(box=None, pad_edge=False, show_edge=False, show_header=head, padding=(0, GAP, 0, 0))


# -- gates: every part of a cell has its column ------------------------------------------------------------------------

INTERVAL, SPAN, ALLOWED = "95 % interval", "reference \u2192 new", "allowed"
# What each column holds, one entry a line of the cell; the last resort is lines of their own for each gate.
ONE_LINE = (("gate",), ("reference",), ("new",), ("change",), (INTERVAL,), ("verdict",), ("n",), ("limit",))
SPANS = (("gate",), (SPAN,), ("change",), (INTERVAL,), ("verdict",), ("n",), ("limit",))
STACKED = (("gate",), ("reference", "new"), ("change", INTERVAL), ("verdict", "n"), ("limit",))
TIGHT = (("gate", SPAN), ("change", INTERVAL), ("verdict", "n", ALLOWED))
RIGHT = {"reference", "new", "change"}
UNNAMED = {"gate", SPAN, ALLOWED}  # columns without a head


def _gate_layouts(table: Table) -> Iterator[Layout]:
    rows = [_gate_parts(table, row) for row in table.rows]
    shown = {name for row in rows for name, text in row.items() if text.plain}
    for names in (ONE_LINE, SPANS, STACKED, TIGHT):
        columns: list[Column] = []
        for column in ([name for name in column if name in shown] for column in names):
            if column:
                head = "\n".join("" if name in UNNAMED else name for name in column).rstrip("\n")
                cells = [_joined("\n", *(row[name] for name in column)) for row in rows]
                columns.append((Text(head, style="bold"), "right" if column[0] in RIGHT else "left", cells))
        least = None if names in (ONE_LINE, SPANS) else LEAST_GATE_LABEL
        yield Layout(labels=columns[0][2], columns=columns[1:], least=least)


def _gate_parts(table: Table, row: Row) -> dict[str, Text]:
    """Every part by its name; the verdict's word stands beside its colour."""
    cells = dict(zip(table.columns, row.cells, strict=True))
    change = cells["change"]
    values = [short_text(cell.value, row.unit) if cell.text is None else "" for cell in row.cells[:2]]
    look = tone(change.ratio)
    parts = {
        "gate": (row.label, ""),
        "reference": (values[0], "dim"),
        "new": (values[1], ""),
        "change": (change.text or "", "" if look == "open" else "bold"),
        INTERVAL: (change.interval, "dim"),
        "verdict": ((change.ratio and change.ratio.verdict) or ABSENT, TONES[look]),
        "n": (cells["n"].text or "", "dim"),
        "limit": (cells["limit"].text or "", "dim"),
        SPAN: (from_to([text for text in values if text and text != ABSENT]), ""),
    }
    found = {name: Text(one_line(text), style=style) for name, (text, style) in parts.items()}
    return {**found, ALLOWED: Text.assemble("limit ", found["limit"], style="dim")}


def _gates_under_another(table: Table, width: int) -> Group:
    """For narrow terminals: the gate, under it what it shows, under that what it rests on."""
    found = []
    for n, row in enumerate(_gate_parts(table, row) for row in table.rows):
        text = Text("\n" if n else "").append(row["gate"].plain, style="bold")
        for line in ((row["verdict"], row["change"], row[INTERVAL]), (row[SPAN], row["n"], row[ALLOWED])):
            text.append("\n")
            text.append_text(_filled([part for part in line if part.plain], width))
        found.append(text)
    return Group(*found)


def _filled(parts: Sequence[Text], width: int) -> Text:
    """Parts beside each other, on a new line where the next would not fit."""
    text, used = Text(), 0
    for part in parts:
        fits = used and used + 2 + cell_len(part.plain) <= width
        text.append("  " if fits or not used else "\n  ")
        used = (used if fits else 0) + 2 + cell_len(part.plain)
        text.append_text(part)
    return text


# -- models or runs side by side: all parts of a cell in its side's column ---------------------------------------------

Parts = tuple[Text, Text, Text, Text]  # value, ratio, interval and verdict


def _side_layouts(table: Table) -> Iterator[Layout]:
    labels = [Text(printable(row.label)) for row in table.rows]
    heads = [_side_head(table, i) for i in range(len(table.columns))]
    sides = [[_parts(row, i) for row in table.rows] for i in range(len(table.columns))]
    columns: list[Column] = [(head, "left", _wide_cells(rows)) for head, rows in zip(heads, sides, strict=True)]
    yield Layout(labels=labels, columns=columns, widest_head=WIDEST_HEAD)
    columns = [(head, "right", [_stacked(*parts) for parts in rows]) for head, rows in zip(heads, sides, strict=True)]
    yield Layout(labels=labels, columns=columns, least=LEAST_LABEL, widest_head=WIDEST_HEAD)
    columns = [
        (head, "right", [value for value, *_ in rows] if i == table.reference else _tight_cells(rows))
        for i, (head, rows) in enumerate(zip(heads, sides, strict=True))
    ]
    yield Layout(labels=labels, columns=columns, least=LEAST_LABEL, widest_head=TIGHT_HEAD)


def _side_head(table: Table, i: int) -> Text:
    head = Text(printable(table.columns[i]), style="bold")
    return head.append("\nreference", style="dim") if i == table.reference else head


def _wide_cells(rows: Sequence[Parts]) -> list[Text]:
    """Value, ratio, interval and verdict on one line, each under its like."""
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


def _stacked(value: Text, ratio: Text, interval: Text, verdict: Text) -> Text:
    """Verdict and value on one line, ratio and interval under them."""
    return _joined("\n", _joined("  ", verdict, value), _joined(" ", ratio, interval))


def _tight_cells(rows: Sequence[Parts]) -> list[Text]:
    """As stacked, but a long verdict stands on a line of its own."""
    widest = max((cell_len(_joined(" ", ratio, interval).plain) for _, ratio, interval, _ in rows), default=0)
    cells = []
    for value, ratio, interval, verdict in rows:
        fits = cell_len(_joined("  ", verdict, value).plain) <= widest
        under = _joined("\n", value, _joined(" ", ratio, interval), verdict)
        cells.append(_stacked(value, ratio, interval, verdict) if fits else under)
    return cells


def _parts(row: Row, i: int) -> Parts:
    """Of one side; the reference shows the interval of its value."""
    cell = row.cells[i]
    ratio = shown_ratio(cell)
    value = Text(printable(short_text(cell.value, row.unit)))
    if ratio is None:
        return value, Text(), Text(printable(interval_text(cell.value, row.unit)), style="dim"), Text()
    look = tone(ratio)
    return (
        value,
        Text(ratio_text(ratio), style="" if look == "open" else "bold"),
        Text(ratio_interval(ratio), style="dim"),
        Text(printable(ratio.verdict_text), style=TONES[look]),
    )


def _sides_under_another(table: Table, width: int) -> Group:
    """For narrow terminals and many models: the metric, and under it a line or two per model."""
    names = max((cell_len(printable(name)) for name in table.columns), default=1) + 2
    names = min(names, max(width // 3, 6))
    parts: list[RenderableType] = []
    for n, row in enumerate(table.rows):
        found = _grid(head=False)
        found.add_column(overflow="fold", width=names)
        found.add_column(overflow="fold", width=max(width - names - GAP, 1))
        parts += [Text.assemble("\n" if n else "", (printable(row.label), "bold")), found]
        for i, name in enumerate(table.columns):
            value, ratio, interval, verdict = _parts(row, i)
            reference = Text("reference" if i == table.reference and not n else "", style="dim")
            first = _joined("  ", value, verdict, reference)
            fits = cell_len(ratio.plain) + cell_len(interval.plain) + 1 <= width - names - GAP
            found.add_row(Text(printable(name)), _joined("\n", first, _joined(" " if fits else "\n", ratio, interval)))
    return Group(*parts)


def _joined(between: str, *parts: Text) -> Text:
    return Text(between).join(part for part in parts if part.plain)


# -- waterfalls --------------------------------------------------------------------------------------------------------


def _print_waterfall(waterfall: Waterfall, console: Console, heading: str) -> None:
    console.print(Text(printable(waterfall.title), style="bold"))
    if waterfall.caption:
        console.print(Text(printable(waterfall.caption), style="dim"))
    console.print(waterfall_table(waterfall, console.width))
    for step in waterfall.steps:
        if step.text and not step.told:  # what the others are stands above, once
            text = Text.assemble((printable(step.label), "bold"), ": ", printable(step.text))
            console.print(Padding(text, (0, 0, 0, 1)))


def waterfall_table(waterfall: Waterfall, width: int) -> RichTable:
    """Label, figure and bar of every step; a change that is not distinguishable from 0 is pale and says so."""
    labels, values = [], []
    for step in waterfall.steps:
        label = Text("" if step.kind == "level" else "  ").append(printable(step.label))
        labels.append(label if step.told else label.append(f"\n  {CANNOT_TELL}", style="dim"))
        value = Text(step_text(step, waterfall.unit), style="bold" if step.kind == "level" else "")
        interval = Text(step_interval(step, waterfall.unit), style="dim")
        values.append(_joined("\n" if width < NARROW else "  ", value, interval))
    figure = min(_longest_line(*values), max(width // 2, 1))
    label_width = min(_longest_line(*labels), max(width - figure - WANTED_BAR - 2 * GAP, width // 3))
    bar = min(LONGEST_BAR, width - figure - label_width - 2 * GAP)
    table = _grid(head=False)
    table.add_column(overflow="fold", width=label_width)
    table.add_column(overflow="fold", width=figure)
    if bar >= SHORTEST_BAR:
        table.add_column(width=bar, no_wrap=True)
    bars = block_bars(waterfall, bar) if bar >= SHORTEST_BAR else ()
    for n, (step, label, value) in enumerate(zip(waterfall.steps, labels, values, strict=True)):
        drawn = [Text(" " * bars[n][0] + block_character(step) * bars[n][1])] if bars else []
        table.add_row(label, value, *drawn)
    return table


DRAW: dict[type, Callable[[Any, Console, str], None] | None] = {  # None: a terminal does not draw it
    Paragraph: _print_paragraph,
    Table: _print_table,
    Waterfall: _print_waterfall,
    Chart: None,
    Timeline: None,
    HeatMap: None,
    StackedBars: None,
}

WIDE = 100  # below this, intervals go under their value
GAP = 2  # columns between two columns
MAX_DOUBTS = 8
SCREEN_ROWS, SCREEN_DOUBTS, FEW_MODELS = 10, 3, 3  # under an answer; --all prints the rest
OUTCOMES = {"yes": "bold green", "no": "bold red", "depends": "bold yellow", "cannot tell": "dim"}
STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def print_document(document: Document, console: Console, *, sections: bool = False, folded: bool = False) -> None:
    """Print the first screen to ``console``.

    Args:
        document: what to print.
        console: where.
        sections: also print what the sections compare: ratio tables and waterfalls.
        folded: of these, also the tables that a page would fold.
    """
    whole = folded or sections or document.answer is None
    shown = document if whole else _first_screen(document)
    _print_answer(document, console, whole=whole)
    if document.subtitle:
        console.print(Text(printable(document.subtitle), style="dim"))
    for banner in document.banners:
        console.print(Text(printable(f"! {banner}"), style="bold yellow"))
    if document.first_screen:
        for table in _tables(shown, console.width):
            console.print(table)
    for model in document.models:
        if model.error:
            console.print(Text(printable(f"{model.name}: {model.status}: {model.error}"), style="red"))
    names = [model.name for model in shown.models]
    for note in (*(reasons(shown.first_screen, names) if whole else ()), *shares(shown.first_screen, names)):
        console.print(Text(printable(note), style="dim"))
    if sections:
        print_sections(document, console, folded=folded)
        console.print()
    if whole:
        _print_doubts(document.doubts, console)
        return
    by_code = {doubt.code: doubt for doubt in reversed(document.doubts)}
    first = tuple(doubt for doubt in document.doubts if by_code[doubt.code] is doubt)[:SCREEN_DOUBTS]
    _print_doubts(first, console)
    left = len(document.doubts) - len(first)
    more = f"{left} more doubts, every figure, question by question: moeprof report RUN --all, or report.html"
    console.print(Text(more, style="dim"))


def _first_screen(document: Document) -> Document:
    """The rows that are asked for first; of many models those that the answer speaks of."""
    names = [model.name for model in document.models]
    spoken = document.answer.models if document.answer is not None and len(names) > FEW_MODELS else names
    kept = [i for i, name in enumerate(names) if name in spoken]
    told = [row for row in document.first_screen if any(v is not None and v.value is not None for v in row.values)]
    rows = [replace(row, cells=tuple(row.cells[i] for i in kept)) for row in told[:SCREEN_ROWS]]
    models = tuple(replace(document.models[i], subtitle="") for i in kept)
    return replace(document, models=models, first_screen=tuple(rows))


def _print_answer(document: Document, console: Console, *, whole: bool) -> None:
    """The answer in plain words; with ``whole`` its evidence, question by question, and the notes."""
    answer = document.answer
    if answer is not None:
        rest = " ".join(part for part in (answer.facts, answer.why, answer.change) if part)
        console.print(_joined(" ", Text(printable(answer.advice), style="bold"), Text(printable(rest))))
    if answer is not None and whole:
        asked = _grid(head=False)
        for found in answer.findings:
            outcome = Text(found.outcome, style=OUTCOMES[found.outcome])
            asked.add_row(Text(found.question), outcome, Text(printable(found.text)))
        console.print(asked)
    if whole:
        console.print(Text(printable(document.headline), style="bold" if answer is None else ""))
    for note in document.notes if whole else ():
        console.print(Text(printable(note)))


def _tables(document: Document, width: int) -> list[RichTable]:
    """The first screen as one table, or as several with fewer models each where a number would be cut otherwise."""
    rows = [(Text(printable(row.label)), _cells(row, width)) for row in document.first_screen]
    heads = [_head(model) for model in document.models]
    label = _longest_word(text for text, _ in rows)
    number = _longest_word(cell for _, cells in rows for cell in cells)
    each = max(1, min(len(heads), (width - label) // (number + GAP)))
    return [_table(rows, heads, slice(i, i + each), (label, number), width) for i in range(0, len(heads), each)]


def _table(
    rows: list[tuple[Text, list[Text]]], heads: list[Text], part: slice, least: tuple[int, int], width: int
) -> RichTable:
    """Widths are set here, because a layout that shrinks columns by itself cuts numbers. ``least``: label, number."""
    columns = heads[part]
    room = width - GAP * len(columns)
    wanted = max(_longest_line(text) for text in (*columns, *(cell for _, cells in rows for cell in cells[part])))
    label = min(_longest_line(*(text for text, _ in rows)), max(2 * width // 5, room - wanted * len(columns)))
    label = max(least[0], min(label, room - least[1] * len(columns)))
    table = _grid()
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
        cell = Text(printable(short_text(value, row.unit)))
        interval = interval_text(value, row.unit)
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


def print_result(result: Result, console: Console, *, folded: bool = False) -> None:
    """A result of any kind; ``folded``: also the tables that a page would fold."""
    if isinstance(result, Counted):
        _print_counted(result, console)
    elif isinstance(result, Listing):
        _print_listing(result.rows if result.shown is None else result.shown, console)
    else:
        print_document(result.document, console, sections=not isinstance(result, RunReport), folded=folded)


def _print_listing(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    table = RichTable(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
    for number, name in enumerate(rows[0] if rows else ()):
        table.add_column(name, overflow="fold", no_wrap=not number)  # a name is there to be copied: never broken
    for row in rows:
        table.add_row(*(Text(plain(value)) for value in row.values()))
    console.print(table)


LABEL_WIDTH, CELL_WIDTH = 29, 14


def _print_counted(counted: Counted, console: Console) -> None:
    """Print models side by side, in several tables where one is too wide, then the notes."""
    columns, question = counted.columns, counted.question
    shown = [column for column in columns if column.has_figures]
    width = max(CELL_WIDTH, min(24, max(len(column.head) for column in columns)))
    fit = max(1, (console.width - LABEL_WIDTH) // (width + GAP))
    if fit < len(shown):
        width, fit = CELL_WIDTH, max(1, (console.width - LABEL_WIDTH) // (CELL_WIDTH + GAP))
    for start in range(0, len(shown), fit):
        if start:
            console.print()
        console.print(_counted_table(shown[start : start + fit], width))
    for heading, notes in notes_of(columns, question):
        console.print()
        console.print(Text(heading, style="bold"))
        for note in notes:
            console.print(Padding(Text(printable(note), style="dim"), (0, 0, 0, 2)))


def _counted_table(columns: Sequence[CountedColumn], width: int) -> RichTable:
    table = RichTable(box=None, pad_edge=False, padding=(0, GAP, 0, 0), show_header=True)
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
