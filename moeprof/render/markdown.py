"""A Document as Markdown for a pull request: headline, first table, doubts; the rest folded.

Text from a record is escaped; ratios stand under their values, waterfalls are bars of block characters.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from moeprof.analysis.report.document import (
    Block,
    Cell,
    Chart,
    Document,
    HeatMap,
    Paragraph,
    Section,
    StackedBars,
    Table,
    Timeline,
    Waterfall,
)
from moeprof.analysis.report.result import Counted, Listing, Result
from moeprof.core import units
from moeprof.core.text import printable
from moeprof.render import params
from moeprof.render.cells import (
    ABSENT,
    CANNOT_TELL,
    bare_values,
    block_bars,
    block_character,
    footnotes,
    full_text,
    interval_text,
    plain,
    ratio_interval,
    ratio_text,
    reasons,
    short_text,
    shown_ratio,
    step_interval,
    step_text,
    tone,
)

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~])")


def html_text(text: str) -> str:
    """Text from a record where GitHub reads HTML and no Markdown, such as a line that begins with a block's tag."""
    return html.escape(printable(" ".join(text.split())), quote=False)


def escape(text: str) -> str:
    """Text from a record as text: no markup, no HTML, one line."""
    return _SPECIAL.sub(r"\\\1", printable(" ".join(text.split())))


BAR_WIDTH = 24
SPACE = "\u00a0"  # Markdown would run ordinary spaces together


def table_lines(table: Table) -> list[str]:
    """The table as lines; a folded one stands closed."""
    columns = [column for i in range(len(table.columns)) for column in _columns(table, i)]
    lines = [_line([escape(table.head) or " ", *(head for head, _, _ in columns)])]
    lines.append(_line([":--", *(alignment for _, alignment, _ in columns)]))
    lines += [_line([escape(row.label), *(cells[n] for _, _, cells in columns)]) for n, row in enumerate(table.rows)]
    notes = footnotes(table) if table.compares else bare_values(table.rows)
    lines += [f"\n{_small(note)}" for note in notes]
    if table.folded:
        return [f"<details><summary><b>{html_text(table.title)}</b></summary>", "", *lines, "", "</details>", ""]
    return [*([f"**{escape(table.title)}**", ""] if table.title else []), *lines, ""]


def _line(cells: Sequence[str]) -> str:
    return f"|{'|'.join(cells)}|"


def _small(text: str) -> str:
    return f"<sub>{escape(text)}</sub>"


def _columns(table: Table, i: int) -> Iterator[tuple[str, str, list[str]]]:
    """Head, alignment and cells; a column of verdicts alone is two, so that figures stand under each other."""
    head, cells = escape(table.columns[i]) or " ", [row.cells[i] for row in table.rows]
    if i == table.judged:
        yield head, "--:", [_figure(cell) for cell in cells]
        yield "verdict", ":--", [_toned((cell.ratio and cell.ratio.verdict) or ABSENT, cell) for cell in cells]
    elif any(cell.text for cell in cells):
        yield head, ":--", [escape(cell.text or "") for cell in cells]
    elif table.judged is not None:
        values = (("" if c.text == "" else short_text(c.value, r.unit)) for c, r in zip(cells, table.rows, strict=True))
        yield head, "--:", [escape(value) for value in values]
    elif table.compares:
        note = f"<br>{_small('reference')}" if i == table.reference else ""
        yield head + note, "--:", [side_cell(cell, row.unit) for cell, row in zip(cells, table.rows, strict=True)]
    else:
        yield head, "--:", [escape(full_text(c.value, row.unit)) for c, row in zip(cells, table.rows, strict=True)]


def _figure(cell: Cell) -> str:
    """``**1.112x**`` with its interval under it, which is not to be broken."""
    interval = f"<br>{_small(cell.interval)}".replace(" ", SPACE) if cell.interval else ""
    return _toned(cell.text or "", cell) + interval


def _toned(text: str, cell: Cell) -> str:
    """Bold where a difference was shown."""
    return f"**{escape(text)}**" if text and tone(cell.ratio) != "open" else escape(text)


def side_cell(cell: Cell, unit: str) -> str:
    """A value, under it its ratio and verdict, or its interval where it has no ratio."""
    ratio = shown_ratio(cell)
    words = "" if ratio is None else " ".join(part for part in (ratio_text(ratio), ratio.verdict_text) if part)
    interval = interval_text(cell.value, unit) if ratio is None else ratio_interval(ratio)
    parts = (escape(short_text(cell.value, unit)), _toned(words, cell), _small(interval) if interval else "")
    return "<br>".join(part for part in parts if part)


def waterfall_table(waterfall: Waterfall) -> list[str]:
    """Label, figure, interval and a bar per step; what the steps are stands under the table."""
    bars = block_bars(waterfall, BAR_WIDTH)
    lines = [f"**{escape(waterfall.title)}**", ""]
    lines += [escape(waterfall.caption), ""] if waterfall.caption else []
    lines += ["| | | |bar|", "|:--|--:|--:|:--|"]
    for step, (before, filled) in zip(waterfall.steps, bars, strict=True):
        label = escape(step.label) if step.kind == "change" else f"**{escape(step.label)}**"
        figure = escape(step_text(step, waterfall.unit)) + ("" if step.told else f"<br><sub>{CANNOT_TELL}</sub>")
        drawn = SPACE * before + block_character(step) * filled
        lines.append(f"|{label}|{figure}|{escape(step_interval(step, waterfall.unit))}|`{drawn}`|")
    lines.append("")
    lines += [f"- {escape(step.label)}: {escape(step.text)}" for step in waterfall.steps if step.text]
    return [*lines, ""]


def render_markdown(document: Document) -> str:
    """The whole report as GitHub-flavoured Markdown."""
    lines = [f"# {escape(document.title)}", "", *_answer(document), ""]
    lines += [*(escape(note) for note in document.notes), "", escape(document.subtitle), ""]
    lines += [f"> **Note** {escape(banner)}\n" for banner in document.banners]
    lines += [f"- {escape(m.name)}: **{escape(m.status)}** {escape(m.error)}" for m in document.models if m.error]
    lines += _first_table(document)
    first = document.sections[:1]
    answer = first if not document.first_screen and any(section.compares for section in first) else ()
    for section in answer:
        lines += _section(section)
    lines += ["", "## Reasons to doubt this", ""]
    lines += [f"- {'**' + escape(d.model) + '**: ' if d.model else ''}{escape(d.text)}" for d in document.doubts] or [
        "None of the checks found one."
    ]
    for section in document.sections[len(answer) :]:
        lines += _section(section)
    lines += ["", f"Record: {escape(document.run)}, {escape(document.status)}, started {escape(document.started_at)}."]
    return "\n".join(lines) + "\n"


def _answer(document: Document) -> list[str]:
    """The answer in a paragraph and question by question; without one the headline."""
    answer = document.answer
    if answer is None:
        return [f"**{escape(document.headline)}**"]
    rows = [_line([escape(found.question), f"**{found.outcome}**", escape(found.text)]) for found in answer.findings]
    first = f"**{escape(answer.advice)}** " if answer.advice else ""
    rest = " ".join(part for part in (answer.facts, answer.why, answer.change) if part)
    return [first + escape(rest), "", "| | | |", "|:--|:--|:--|", *rows, "", escape(document.headline)]


def _section(section: Section) -> list[str]:
    """A section, closed at first; one that compares stands open, because it is the answer."""
    body = [line for block in section.blocks for line in block_lines(block)]
    if not body:
        return []
    if section.compares:
        return ["", f"## {escape(section.title)}", "", *body]
    return ["", f"<details><summary><b>{html_text(section.title)}</b></summary>", "", *body, "", "</details>"]


def _first_table(document: Document) -> list[str]:
    if not document.first_screen:
        return []
    heads = [f"{escape(m.name)}<br>{_small(m.subtitle)}" for m in document.models]
    lines = [_line([" ", *heads]), _line([":--", *("--:" for _ in heads)])]
    for row in document.first_screen:
        lines.append(_line([escape(row.label), *(side_cell(cell, row.unit) for cell in row.cells)]))
    notes = reasons(document.first_screen, [model.name for model in document.models])
    return lines + [f"\n{_small(note)}" for note in notes]


def _paragraph(block: Paragraph) -> list[str]:
    return [escape(block.text), ""]


def _elsewhere(block: Chart | HeatMap | Timeline) -> list[str]:
    return [f"*{escape(block.title)}*: see the HTML page", ""]


def _bars(bars: StackedBars) -> list[str]:
    lines = [f"**{escape(bars.title)}**", "", _line([" ", *(escape(bar) for bar in bars.bars)])]
    lines.append(_line([":--", *("--:" for _ in bars.bars)]))
    lines += [_line([escape(part), *(units.display(v, bars.unit) for v in values)]) for part, values in bars.parts]
    return [*lines, ""]


DRAW: dict[type, Callable[[Any], list[str]]] = {
    Paragraph: _paragraph,
    Table: table_lines,
    Chart: _elsewhere,
    Timeline: _elsewhere,
    HeatMap: _elsewhere,
    StackedBars: _bars,
    Waterfall: waterfall_table,
}


def block_lines(block: Block) -> list[str]:
    """One block as lines."""
    return DRAW[type(block)](block)


def render(result: Result) -> str:
    """A result of any kind."""
    if isinstance(result, Counted):
        return params.markdown(result)
    if isinstance(result, Listing):
        rows = result.rows if result.shown is None else result.shown
        heads = list(rows[0]) if rows else []
        return "\n".join([_line(heads), _line([":--"] * len(heads)), *(_listed(row) for row in rows)]) + "\n"
    return render_markdown(result.document)


def _listed(row: Mapping[str, Any]) -> str:
    return _line([plain(value).replace("|", "\\|") for value in row.values()])
