"""report.html: a Document as one file that works offline, in light and dark, on paper and without a script.

The page is a template, a style and a small script, all inlined; charts are drawn here as SVG. Everything that comes
from a record is data: the template escapes it, markup is made only by ``Markup.format``, and a Content-Security-Policy
lets no script run but ours, named by its hash. Same Document, same bytes: no clock, no random numbers.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from moeprof.analysis.doubt import Doubt
from moeprof.analysis.metrics.cards import all_cards, card_for
from moeprof.analysis.report.document import (
    Block,
    Chart,
    Document,
    HeatMap,
    Paragraph,
    Row,
    Section,
    StackedBars,
    Table,
    Timeline,
    Waterfall,
)
from moeprof.core.metric import Card
from moeprof.core.text import unturned
from moeprof.render.html.charts.bars import draw_bars
from moeprof.render.html.charts.heatmap import draw_heatmap
from moeprof.render.html.charts.lines import NUM_MODEL_COLOURS, draw_chart
from moeprof.render.html.charts.timeline import draw_timeline
from moeprof.render.html.charts.waterfall import draw_waterfall
from moeprof.render.html.tables import (
    anchor,
    cell,
    drawn,
    main_row,
    per_what,
    waterfall_lines,
)

LAST_SECTIONS = ("workload", "machine", "environment")  # reference matter, after the doubts
SEVERITIES = ("error", "warning", "note")
NUM_FACTS = 3
FOLD_FROM = 16  # a section's tables with this many rows together start folded, with a filter


def render_html(document: Document) -> str:
    """The whole page as text, self-contained: nothing is loaded from anywhere."""
    environment = _environment()
    script = _source("script.js")
    page = Page.of(document)
    sections = [(section, _section(section, page)) for section in document.sections]
    text = environment.get_template("report.html.j2").render(
        doc=document,
        style=Markup(_source("style.css")),
        dark=Markup(_source("dark.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        model_cards=_model_cards(document),
        summary=_summary(document, page) if document.first_screen else "",
        sections=[pair for pair in sections if pair[0].name not in LAST_SECTIONS],
        last_sections=[pair for pair in sections if pair[0].name in LAST_SECTIONS],
        doubts=sorted(document.doubts, key=lambda d: SEVERITIES.index(d.severity)),
        doubt_counts=_doubt_counts(document.doubts),
        cards=(cards := glossary(document)),
        defined=_defined(document, cards),
        compares=any(isinstance(b, Table) and b.compares for s in document.sections for b in s.blocks),
    )
    return unturned(text)


def _defined(document: Document, cards: Sequence[tuple[str, Sequence[Card]]]) -> dict[str, str]:
    """Names that the answer rests on, each with the card that the page defines it by."""
    shown = {card.name for _, group in cards for card in group}
    names = [name for found in (document.answer.findings if document.answer else ()) for name in found.figures]
    return {name: card_for(name).name for name in names if card_for(name).name in shown}


def _summary(document: Document, page: Page) -> Markup:
    first = Table(title="", columns=page.models, rows=document.first_screen)
    return _macro("grid_table")(drawn([first], {}, page.colours), "Summary")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("moeprof.render"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["anchor"] = anchor
    return environment


@cache
def _source(name: str) -> str:
    """A style or script, without the indentation that only we need."""
    environment = _environment()
    assert environment.loader is not None
    text = environment.loader.get_source(environment, name)[0]
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("//"))


FIGURES = (Chart, Timeline, StackedBars, Waterfall)  # neighbours stand beside each other


def _section(section: Section, page: Page) -> Markup:
    """The blocks of a section; neighbouring figures join, and so do tables that do not compare."""
    drawn = [_join(kind, list(group), section, page) for kind, group in groupby(section.blocks, key=_kind)]
    return Markup("").join(drawn)


def _kind(block: Block) -> str:
    if isinstance(block, FIGURES):
        return "figures"
    return "metrics" if isinstance(block, Table) and block.head and not block.compares else "other"


def _join(kind: str, blocks: Sequence[Block], section: Section, page: Page) -> Markup:
    if kind == "metrics":
        return _metrics([block for block in blocks if isinstance(block, Table)], section.title, page)
    figures = [DRAW[type(block)](block, section, page) for block in blocks]
    return _macro("figures")(figures) if kind == "figures" else Markup("").join(figures)


def _metrics(tables: Sequence[Table], title: str, page: Page) -> Markup:
    """Tables of a section as one, closed with a filter where it is long."""
    num_rows = sum(len(table.rows) for table in tables)
    summary = f"{title} in figures" if num_rows >= FOLD_FROM else ""
    return _macro("table")(drawn(tables, {}, page.colours), title, summary=summary, num_rows=num_rows)


def _table(table: Table, section: Section, page: Page) -> Markup:
    if not table.head:
        return _macro("facts")(table)
    title = table.title or section.title
    return _macro("table")(
        drawn([table], page.subtitles, page.colours),
        title,
        heading=table.title if table.title != section.title else "",
        summary=title if table.folded else "",
        num_rows=0 if table.judged is not None else len(table.rows),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What blocks know of the page that they stand on: its models in order, and by name their subtitle and colour."""

    models: tuple[str, ...]
    subtitles: dict[str, str]
    colours: dict[str, str]

    @staticmethod
    def of(document: Document) -> Page:
        """Of a document."""
        return Page(
            models=tuple(m.name for m in document.models),
            subtitles={m.name: m.subtitle for m in document.models},
            colours={m.name: f"m{i % NUM_MODEL_COLOURS}" for i, m in enumerate(document.models)},
        )


DRAW: dict[type, Callable[[Any, Section, Page], Markup]] = {
    Paragraph: lambda block, section, page: _macro("paragraph")(block.text),
    Table: _table,
    Chart: lambda block, section, page: _macro("chart")(block, draw_chart(block, page.models)),
    Timeline: lambda block, section, page: _macro("chart")(block, draw_timeline(block)),
    HeatMap: lambda block, section, page: _macro("heat")(block, draw_heatmap(block)),
    StackedBars: lambda block, section, page: _macro("bars")(block, draw_bars(block)),
    Waterfall: lambda block, section, page: _macro("waterfall")(block, draw_waterfall(block), waterfall_lines(block)),
}


def _macro(name: str) -> Callable[..., Markup]:
    found: Callable[..., Markup] = getattr(_environment().get_template("macros.html.j2").module, name)
    return found


def _model_cards(document: Document) -> list[dict[str, Any]]:
    """The answer per model: the large figure, and the next rows of the first screen as small ones."""
    large = main_row(document.first_screen)
    others = [row for row in document.first_screen if row is not large][:NUM_FACTS]
    figures = [None if large is None else large.values[i] for i in range(len(document.models))]
    lengths = [None if figure is None else figure.value for figure in figures]
    highest = max((length for length in lengths if length is not None), default=None)
    return [
        {
            "index": i,
            "model": model,
            "main": None if large is None else (_title(large), cell(figures[i], large.unit)),
            "share": _share(lengths[i], highest),
            "facts": [(_title(row), cell(row.values[i], row.unit)) for row in others],
        }
        for i, model in enumerate(document.models)
    ]


def _title(row: Row) -> str:
    per = per_what(row)
    return f"{row.label}, per {per}" if per else row.label


def _share(value: float | None, highest: float | None) -> float | None:
    """Length of the bar under a large figure, in percent of the largest."""
    return None if value is None or not highest else round(100 * value / highest, 1)


def _doubt_counts(doubts: Sequence[Doubt]) -> list[tuple[str, int]]:
    counts = [(severity, sum(d.severity == severity for d in doubts)) for severity in SEVERITIES]
    return [pair for pair in counts if pair[1]]


def glossary(document: Document) -> list[tuple[str, list[Card]]]:
    """Every card that any table refers to, by section, each once."""
    tables = [b for section in document.sections for b in section.blocks if isinstance(b, Table)]
    rows = [*document.first_screen, *(row for table in tables for row in table.rows)]
    used = {row.card.name: row.card for row in rows if row.card is not None}
    known = [card.name for card in all_cards() if card.name in used]
    cards = [used[name] for name in dict.fromkeys((*known, *used))]
    order = {section: i for i, section in enumerate(dict.fromkeys(card.section for card in cards))}
    ordered = sorted(cards, key=lambda card: order[card.section])
    return [(section, list(group)) for section, group in groupby(ordered, key=lambda card: card.section)]
