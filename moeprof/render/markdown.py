"""A Document as Markdown for a pull request: headline, first table, doubts; the rest folded.

Comparisons as GitHub tables: ratios under their values, waterfalls as bars of block characters.

Text from a record inside Markdown.
"""

from __future__ import annotations

import html
import re

from moeprof.analysis.compare.tables import RatioRow, RatioTable
from moeprof.analysis.report.document import (
    Block,
    Chart,
    Document,
    FactTable,
    GateRow,
    GateTable,
    HeatMap,
    MetricTable,
    Paragraph,
    Row,
    Section,
    StackedBars,
    Timeline,
    Waterfall,
)
from moeprof.analysis.stats.estimate import Ratio
from moeprof.core import units
from moeprof.core.text import printable
from moeprof.render.cells import (
    CANNOT_TELL,
    HEADS,
    INTERVAL_HEAD,
    block_bars,
    block_character,
    full_text,
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

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~])")


def html_text(text: str) -> str:
    """Text from a record where GitHub reads HTML and no Markdown, such as a line that begins with a block's tag."""
    return html.escape(printable(" ".join(text.split())), quote=False)


def escape(text: str) -> str:
    """Text from a record as text: no markup, no HTML, one line."""
    return _SPECIAL.sub(r"\\\1", printable(" ".join(text.split())))


BAR_WIDTH = 24
SPACE = "\u00a0"  # Markdown would run ordinary spaces together


def ratio_table(table: RatioTable) -> list[str]:
    """The table as lines; a folded one stands closed."""
    heads = [
        escape(name) + ("<br><sub>reference</sub>" if table.has_ratios and i == table.reference else "")
        for i, name in enumerate(table.columns)
    ]
    lines = ["|metric|" + "|".join(heads) + "|", "|:--|" + "--:|" * len(heads)]
    lines += [_row(row) for row in table.rows]
    lines += [f"\n<sub>{escape(note)}</sub>" for note in ratio_notes(table)]
    if table.folded:
        return [f"<details><summary><b>{html_text(table.title)}</b></summary>", "", *lines, "", "</details>", ""]
    return [*([f"**{escape(table.title)}**", ""] if table.title else []), *lines, ""]


def _row(row: RatioRow) -> str:
    cells = []
    for value, ratio in zip(row.values, row.ratios, strict=True):
        text = escape(short_text(value, row.card))
        kept = shown_ratio(value, ratio)
        if kept is None:
            interval = interval_text(value, row.card)
            cells.append(text + (f"<br><sub>{escape(interval)}</sub>" if interval else ""))
        else:
            cells.append("<br>".join(part for part in (text, _ratio(kept)) if part))
    return f"|{escape(row.label)}|" + "|".join(cells) + "|"


def _ratio(ratio: Ratio) -> str:
    """Number and verdict bold where a difference was shown, then the interval small."""
    parts = [escape(part) for part in (ratio_text(ratio), ratio.verdict) if part]
    text = " ".join(parts)
    if text and tone(ratio.verdict) != "open":
        text = f"**{text}**"
    interval = ratio_interval(ratio)
    return text + (f"<br><sub>{escape(interval)}</sub>" if interval else "")


def gate_table(table: GateTable) -> list[str]:
    """Gates as lines; a folded table stands closed."""
    lines = ["|" + "|".join(HEADS) + "|", "|:--|--:|--:|--:|:--|:--|:--|"]
    lines += [_gate(row) for row in table.rows]
    lines += [f"\n<sub>{escape(note)}</sub>" for note in gate_notes(table)]
    if table.folded:
        return [f"<details><summary><b>{html_text(table.title)}</b></summary>", "", *lines, "", "</details>", ""]
    return [*([f"**{escape(table.title)}**", ""] if table.title else []), *lines, ""]


def _gate(row: GateRow) -> str:
    cells = {name: escape(text) for name, text in gate_cells(row).items()}
    for name in ("change", "verdict"):
        if cells[name] and tone(row.ratio.verdict) != "open":
            cells[name] = f"**{cells[name]}**"
    if cells[INTERVAL_HEAD]:
        cells["change"] += f"<br><sub>{cells[INTERVAL_HEAD].replace(' ', SPACE)}</sub>"
    return "|" + "|".join(cells[name] for name in HEADS) + "|"


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
    lines = [f"# {escape(document.title)}", "", f"**{escape(document.headline)}**", ""]
    lines += [*(escape(note) for note in document.notes), "", escape(document.subtitle), ""]
    lines += [f"> **Note** {escape(banner)}\n" for banner in document.banners]
    lines += [f"- {escape(m.name)}: **{escape(m.status)}** {escape(m.error)}" for m in document.models if m.error]
    lines += _first_table(document)
    answer = document.sections[:1] if not document.first_screen and any(map(_is_open, document.sections[:1])) else ()
    for section in answer:
        lines += _section(section, document)
    lines += ["", "## Reasons to doubt this", ""]
    lines += [f"- {'**' + escape(d.model) + '**: ' if d.model else ''}{escape(d.text)}" for d in document.doubts] or [
        "None of the checks found one."
    ]
    for section in document.sections[len(answer) :]:
        lines += _section(section, document)
    lines += ["", f"Record: {escape(document.run)}, {escape(document.status)}, started {escape(document.started_at)}."]
    return "\n".join(lines) + "\n"


def _is_open(section: Section) -> bool:
    return any(isinstance(block, Waterfall | RatioTable | GateTable) for block in section.blocks)


def _section(section: Section, document: Document) -> list[str]:
    """A section, closed at first; one that compares stands open, because it is the answer."""
    body = [line for block in section.blocks for line in block_lines(block, document)]
    if not body:
        return []
    if _is_open(section):
        return ["", f"## {escape(section.title)}", "", *body]
    return ["", f"<details><summary><b>{html_text(section.title)}</b></summary>", "", *body, "", "</details>"]


def _first_table(document: Document) -> list[str]:
    if not document.first_screen:
        return []
    heads = [f"{escape(m.name)}<br><sub>{escape(m.subtitle)}</sub>" for m in document.models]
    lines = ["| |" + "|".join(heads) + "|", "|:--|" + "--:|" * len(heads)]
    for row in document.first_screen:
        cells = []
        for value in row.values:
            interval = interval_text(value, row.card)
            cells.append(
                escape(short_text(value, row.card)) + (f"<br><sub>{escape(interval)}</sub>" if interval else "")
            )
        lines.append(f"|{escape(row.label)}|" + "|".join(cells) + "|")
    return lines + [f"\n<sub>{escape(note)}</sub>" for note in row_reasons(document.first_screen)]


def block_lines(block: Block, document: Document) -> list[str]:
    """One block as lines; models of a MetricTable are those of the document."""
    if isinstance(block, Paragraph):
        return [escape(block.text), ""]
    if isinstance(block, FactTable):
        rows = [f"|{escape(key)}|{escape(value)}|" for key, value in block.rows]
        return [f"**{escape(block.title)}**", "", "| | |", "|:--|:--|", *rows, ""]
    if isinstance(block, MetricTable):
        heads = "|".join(escape(m.name) for m in document.models)
        lines = [f"**{escape(block.title)}**", "", f"|metric|{heads}|", "|:--|" + "--:|" * len(document.models)]
        return [*lines, *(_metric_row(row) for row in block.rows), ""]
    if isinstance(block, StackedBars):
        return _bars(block)
    if isinstance(block, RatioTable):
        return ratio_table(block)
    if isinstance(block, GateTable):
        return gate_table(block)
    if isinstance(block, Waterfall):
        return waterfall_table(block)
    assert isinstance(block, Chart | HeatMap | Timeline)
    return [f"*{escape(block.title)}*: see the HTML page", ""]


def _metric_row(row: Row) -> str:
    return f"|{escape(row.label)}|" + "|".join(escape(full_text(value, row.card)) for value in row.values) + "|"


def _bars(bars: StackedBars) -> list[str]:
    lines = [f"**{escape(bars.title)}**", "", "| |" + "|".join(escape(b) for b in bars.bars) + "|"]
    lines.append("|:--|" + "--:|" * len(bars.bars))
    for part, values in bars.parts:
        lines.append(f"|{escape(part)}|" + "|".join(units.display(v, bars.unit) for v in values) + "|")
    return [*lines, ""]
