"""The page of ``moeprof compare``: models of one run beside each other, or runs against a reference run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moeprof.analysis.compare.comparable import refuse
from moeprof.analysis.compare.models_page import models_page
from moeprof.analysis.compare.page import Page
from moeprof.analysis.compare.runs import compare_runs
from moeprof.analysis.compare.runs_page import runs_page
from moeprof.analysis.compare.to_data import page_json, page_rows
from moeprof.analysis.document import Document
from moeprof.analysis.summary import Summary
from moeprof.core.errors import InputError
from moeprof.core.metric import MetricValue


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A comparison, ready to be shown.

    Attributes:
        document: the page.
        page: what it was made of, for data forms.
    """

    document: Document
    page: Page

    @property
    def metrics(self) -> tuple[tuple[str, MetricValue], ...]:
        """Figures that only a comparison has, with the model that they are about."""
        return self.page.metrics

    def to_json(self) -> dict[str, Any]:
        """As JSON types: every row of every table with its ratio and verdict, and every metric."""
        return page_json(self.document, self.page)

    def to_csv_rows(self) -> list[list[Any]]:
        """A header, then one row per metric and model."""
        return page_rows(self.page)


def compare_document(
    summaries: Sequence[Summary], *, reference: str | None, allow: frozenset[str] = frozenset()
) -> Comparison:
    """The page for one run of several models, or for several runs.

    Args:
        summaries: one per run.
        reference: a model of the run, or one of the runs (or a model of theirs): the denominators; None: chosen.
        allow: facts in which the runs may differ.

    Raises:
        InputError: nothing to compare, or no such reference.
        RecordError: the runs differ in facts that were not allowed to.
    """
    if len(summaries) == 1:
        page = models_page(summaries[0], reference)
        return Comparison(document=page.document(), page=page)
    runs = [summary.record.run for summary in summaries]
    first = next((s for s in summaries if reference == s.record.run), summaries[0])
    if reference is not None and reference not in runs:
        raise InputError(f"--reference {reference!r}: with several runs it names one of them: {', '.join(runs)}")
    found = [compare_runs(first, other, allow) for other in summaries if other is not first]
    for comparison in found:
        if not comparison.is_same_run:
            refuse(comparison.differences, allow)
        if not comparison.models:
            raise InputError(
                f"{comparison.reference} and {comparison.other} have no model in common "
                f"({', '.join(comparison.only_in_reference)}; {', '.join(comparison.only_in_other)}); "
                "run both models in one workload, or give them the same name"
            )
    page = runs_page(first, [s for s in summaries if s is not first], found)
    return Comparison(document=page.document(), page=page)
