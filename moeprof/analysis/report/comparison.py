"""What a comparison says, before it is a Document or data."""

from __future__ import annotations

from dataclasses import dataclass

from moeprof.analysis.compare.tables import RatioTable
from moeprof.analysis.doubt import Doubt
from moeprof.analysis.metrics.cards import all_cards, card_for
from moeprof.analysis.report.document import Document, MetricTable, ModelColumn, Section
from moeprof.core.metric import MetricValue


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A comparison.

    Attributes:
        title: of the page.
        run: name of the run, or of the runs.
        status: of the worst of them.
        started_at: of the first.
        headline: the verdict in a sentence.
        subtitle: device, price, traffic.
        notes: sentences under the headline.
        banners: what changes how everything must be read.
        columns: models or runs.
        reference: what ratios are to.
        tables: metrics side by side; the first stands on the first screen.
        sections: the rest of the page.
        doubts: reasons to distrust it.
        metrics: figures that only a comparison has, with the model that they are about.
        workload_text: the YAML of the run.
    """

    title: str
    run: str
    status: str
    started_at: str
    headline: str
    subtitle: str
    notes: tuple[str, ...]
    banners: tuple[str, ...]
    columns: tuple[ModelColumn, ...]
    reference: str
    tables: tuple[RatioTable, ...]
    sections: tuple[Section, ...]
    doubts: tuple[Doubt, ...]
    metrics: tuple[tuple[str, MetricValue], ...] = ()
    workload_text: str = ""

    def document(self) -> Document:
        """As a Document for the renderers."""
        first = tuple(table for table in self.tables if not table.folded)
        folded = tuple(table for table in self.tables if table.folded)
        sections = [Section(name="verdicts", title="Side by side", blocks=first), *self.sections]
        if folded:
            sections.append(Section(name="all", title="Every metric", blocks=folded))
        return Document(
            title=self.title,
            run=self.run,
            status=self.status,
            started_at=self.started_at,
            headline=self.headline,
            subtitle=self.subtitle,
            notes=self.notes,
            banners=self.banners,
            models=self.columns,
            first_screen=(),
            sections=tuple(sections),
            doubts=self.doubts,
            cards=tuple(card for card in all_cards() if card.name in _used(sections)),
            workload_text=self.workload_text,
        )


def _used(sections: list[Section]) -> set[str]:
    """Names of the cards whose metrics stand on the page."""
    tables = [block for section in sections for block in section.blocks if isinstance(block, RatioTable | MetricTable)]
    return {card_for(row.name).name for table in tables for row in table.rows}
