"""A Document as Markdown for a pull request: headline, first table, doubts; the rest folded."""

from __future__ import annotations

from moeprof.analysis.document import (
    Block,
    Chart,
    Document,
    FactTable,
    GateTable,
    HeatMap,
    MetricTable,
    Paragraph,
    RatioTable,
    Row,
    Section,
    StackedBars,
    Timeline,
    Waterfall,
)
from moeprof.core import units
from moeprof.render.cells import full_text, interval_text, row_reasons, short_text
from moeprof.render.markdown_compare import gate_table, ratio_table, waterfall_table
from moeprof.render.markdown_text import escape as escape
from moeprof.render.markdown_text import html_text


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
