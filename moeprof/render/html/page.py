"""report.html: a Document as one file that works offline, in light and dark, on paper and without a script.

The page is a template, a style and a small script, all inlined; charts are drawn here as SVG. Everything that comes
from a record is data: the template escapes it, markup is made only by ``Markup.format``, and a Content-Security-Policy
lets no script run but ours, named by its hash. Same Document, same bytes: no clock, no random numbers.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from itertools import groupby

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from moeprof.analysis.compare.tables import RatioRow, RatioTable
from moeprof.analysis.doubt import Doubt
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
from moeprof.core.metric import Card
from moeprof.render.html.charts.bars import draw_bars
from moeprof.render.html.charts.heatmap import draw_heatmap
from moeprof.render.html.charts.lines import NUM_MODEL_COLOURS, draw_chart
from moeprof.render.html.charts.timeline import draw_timeline
from moeprof.render.html.tables import (
    ModelCard,
    anchor,
    cell,
    compare_table,
    drawn_gates,
    main_row,
    per_what,
    table_row,
    waterfall_drawing,
)

LAST_SECTIONS = ("workload", "machine", "environment")  # reference matter, after the doubts
SEVERITIES = ("error", "warning", "note")
NUM_FACTS = 3
FOLD_FROM = 16  # a section's tables with this many rows together start folded, with a filter
Item = tuple[str, dict[str, object]]


def render_html(document: Document) -> str:
    """The whole page as text, self-contained: nothing is loaded from anywhere."""
    environment = _environment()
    script = _source("script.js")
    colours = {m.name: f"m{i % NUM_MODEL_COLOURS}" for i, m in enumerate(document.models)}
    sections = [(s, _groups(s, document, colours)) for s in document.sections]
    return environment.get_template("report.html.j2").render(
        doc=document,
        style=Markup(_source("style.css")),
        dark=Markup(_source("dark.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        model_cards=_model_cards(document),
        first_rows=[table_row(row) for row in document.first_screen],
        sections=[pair for pair in sections if pair[0].name not in LAST_SECTIONS],
        last_sections=[pair for pair in sections if pair[0].name in LAST_SECTIONS],
        doubts=sorted(document.doubts, key=lambda d: SEVERITIES.index(d.severity)),
        doubt_counts=_doubt_counts(document.doubts),
        cards=_cards(document),
        colours=colours,
        compares=any(isinstance(b, RatioTable | GateTable) for s in document.sections for b in s.blocks),
    )


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


def _groups(section: Section, document: Document, colours: dict[str, str]) -> list[Item]:
    """The blocks of a section as (kind, what the template needs); neighbouring charts and tables join."""
    items: list[Item] = []
    names = [m.name for m in document.models]
    for kind, group in groupby(section.blocks, key=_kind):
        if kind == "metrics":
            tables = [(b.title, [table_row(row) for row in b.rows]) for b in group if isinstance(b, MetricTable)]
            num_rows = sum(len(rows) for _, rows in tables)
            about = {"tables": tables, "num_rows": num_rows, "folded": num_rows >= FOLD_FROM, "title": section.title}
            items.append(("metrics", about))
        elif kind == "figures":
            items.append(("figures", {"figures": [_item(block, names) for block in group]}))
        elif kind == "ratios":
            subtitles = {m.name: m.subtitle for m in document.models}
            drawn = [compare_table(b, subtitles, colours) for b in group if isinstance(b, RatioTable)]
            items += [("ratios", {"table": table, "title": table.title or section.title}) for table in drawn]
        else:
            items += [_item(block, names) for block in group]
    return items


def _kind(block: Block) -> str:
    kinds = {
        Chart: "figures",
        Timeline: "figures",
        StackedBars: "figures",
        Waterfall: "figures",
        MetricTable: "metrics",
    }
    return {**kinds, RatioTable: "ratios"}.get(type(block), "other")


def _item(block: Block, models: Sequence[str]) -> Item:
    if isinstance(block, Chart):
        return "chart", {"block": block, "drawing": draw_chart(block, models)}
    if isinstance(block, Timeline):
        return "chart", {"block": block, "drawing": draw_timeline(block)}
    if isinstance(block, StackedBars):
        return "bars", {"block": block, "drawing": draw_bars(block)}
    if isinstance(block, Waterfall):
        return "waterfall", {"block": block, "drawing": waterfall_drawing(block)}
    if isinstance(block, HeatMap):
        return "heat", {"block": block, "drawing": draw_heatmap(block)}
    if isinstance(block, GateTable):
        return "gates", {"table": drawn_gates(block), "title": block.title}
    if isinstance(block, FactTable):
        return "facts", {"block": block}
    assert isinstance(block, Paragraph)
    return "paragraph", {"text": block.text}


def _model_cards(document: Document) -> list[ModelCard]:
    """The answer per model: the large figure, and the next rows of the first screen as small ones."""
    large = main_row(document.first_screen)
    others = [row for row in document.first_screen if row is not large][:NUM_FACTS]
    figures = [None if large is None else large.values[i] for i in range(len(document.models))]
    lengths = [None if figure is None else figure.value for figure in figures]
    highest = max((length for length in lengths if length is not None), default=None)
    return [
        ModelCard(
            index=i,
            name=model.name,
            subtitle=model.subtitle,
            status=model.status,
            error=model.error,
            main=None if large is None else (_title(large), cell(figures[i], large.card.unit)),
            share=_share(lengths[i], highest),
            facts=tuple((_title(row), cell(row.values[i], row.card.unit)) for row in others),
        )
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


def _cards(document: Document) -> list[tuple[str, list[Card]]]:
    """Every card that any table refers to, by section, each once."""
    tables = [b for s in document.sections for b in s.blocks if isinstance(b, MetricTable | RatioTable | GateTable)]
    rows: list[Row | RatioRow | GateRow] = [*document.first_screen, *(row for table in tables for row in table.rows)]
    cards = {card.name: card for card in (*document.cards, *(row.card for row in rows))}
    order = {section: i for i, section in enumerate(dict.fromkeys(card.section for card in cards.values()))}
    ordered = sorted(cards.values(), key=lambda card: order[card.section])
    return [(section, list(group)) for section, group in groupby(ordered, key=lambda card: card.section)]
