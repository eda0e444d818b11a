"""The page of ``moeprof regress``: one sentence, the gates, and everything that explains or weakens them."""

from __future__ import annotations

from collections.abc import Sequence

from moeprof.analysis.cards import CARDS, card_for
from moeprof.analysis.compare.comparable import banners
from moeprof.analysis.document import Block, Document, GateTable, MetricTable, ModelColumn, RatioTable, Section
from moeprof.analysis.regress.page_details import (
    changed_figures,
    differences_section,
    every_figure,
    launches_section,
    noise_matters,
)
from moeprof.analysis.regress.page_gates import gate_tables
from moeprof.analysis.regress.page_headline import headline
from moeprof.analysis.regress.page_names import names_of
from moeprof.analysis.regress.result import Mode, Regression
from moeprof.analysis.regress.routing_blocks import routing_section
from moeprof.analysis.regress.trend import Trend
from moeprof.analysis.regress.trend_page import trend_section

MODES: dict[Mode, str] = {
    "stored": "against a stored baseline",
    "pairs": "lock-step pairs in one process",
    "processes": "lock-step pairs in two processes",
}


def regress_document(regression: Regression, *, trend: Trend | None = None, all_metrics: bool = False) -> Document:
    """The page: what changed stands open, what holds and every other figure stand closed.

    Args:
        regression: the check.
        trend: of the figures over earlier baselines, for the page with charts.
        all_metrics: open what would be closed.
    """
    first: tuple[Block, ...] = (*gate_tables(regression, all_metrics=all_metrics), *changed_figures(regression))
    sections = [
        Section(name="verdicts", title=_first_title(first), blocks=first),
        routing_section(regression.routing),
        None if trend is None else trend_section(trend, judged=(regression.other, regression.other_at)),
        launches_section(regression),
        differences_section(regression),
        every_figure(regression, folded=not all_metrics),
    ]
    kept = tuple(section for section in sections if section is not None and section.blocks)
    return Document(
        title=f"{regression.workload}: {regression.other} against {regression.reference}",
        run=regression.other,
        status="done",
        started_at=regression.other_at,
        headline=headline(regression),
        subtitle=_subtitle(regression),
        banners=banners(regression.differences, regression.allow),
        models=tuple(ModelColumn(name=name, status="done", subtitle="") for name in names_of(regression).models),
        first_screen=(),
        sections=kept,
        doubts=regression.doubts,
        cards=tuple(card for card in CARDS if card.name in _used(kept)),
        notes=_notes(regression),
    )


def _first_title(blocks: Sequence[Block]) -> str:
    """The open table's own, so that it is said once."""
    first = blocks[0] if blocks else None
    return first.title if isinstance(first, GateTable) and not first.folded else "Gates"


def _subtitle(regression: Regression) -> str:
    """Which runs, where, and how they were set against each other."""
    when = " ".join(regression.reference_at[:16].split("T"))
    of = f"{regression.other} against {regression.reference}" + (f" of {when}" if when else "")
    launches = sorted(set(regression.launches.values()) - {0})
    one, several = ("launch", "launches") if regression.mode == "stored" else ("launch pair", "launch pairs")
    counted = f", {' or '.join(map(str, launches))} {one if launches == [1] else several}" if launches else ""
    return f"{of}. {regression.workload} on {regression.device}; {MODES[regression.mode]}{counted}."


def _notes(regression: Regression) -> tuple[str, ...]:
    """What routing did, where it changed, then what the check says of itself."""
    moved = [change for change in regression.routing if change.verdict in ("changed", "collapsed") and change.sentences]
    several = len(regression.routing) > 1
    routing = [f"{change.model}: {change.sentences[0]}" if several else change.sentences[0] for change in moved]
    noise = (regression.noise.text,) if regression.noise is not None and noise_matters(regression) else ()
    return (*routing, *regression.notes, *noise)


def _used(sections: Sequence[Section]) -> set[str]:
    """Names of the cards whose metrics stand on the page."""
    blocks = [block for section in sections for block in section.blocks]
    rows = [row for block in blocks if isinstance(block, RatioTable | MetricTable) for row in block.rows]
    gates = [row.card.name for block in blocks if isinstance(block, GateTable) for row in block.rows]
    return {card_for(row.name).name for row in rows} | set(gates)
