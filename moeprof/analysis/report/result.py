"""What a command found, as every output format is given it.

``page`` and ``data`` begin the names of the files: report.md, summary.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from moeprof.core.metric import MetricValue
from moeprof.core.text import printable

if TYPE_CHECKING:
    from moeprof.analysis.metrics.summary import Summary
    from moeprof.analysis.params import Figure, Question
    from moeprof.analysis.regress.result import Regression
    from moeprof.analysis.report.document import Document, Table

Kind = Literal["run", "audit", "compare", "regress", "params", "list"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """One run and its page."""

    kind: ClassVar[Kind] = "run"
    page: ClassVar[str] = "report"
    data: ClassVar[str] = "summary"
    summary: Summary
    document: Document


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """One run and its page for a decision."""

    kind: ClassVar[Kind] = "audit"
    page: ClassVar[str] = "audit"
    data: ClassVar[str] = "audit"
    summary: Summary
    document: Document


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Models of a run, or runs, beside each other.

    Attributes:
        document: the page.
        reference: what ratios are to.
        tables: metrics side by side, in the order of the data; all of them stand on a page of ``compare``.
        metrics: figures that only a comparison has, with the model that they are about.
    """

    kind: ClassVar[Kind] = "compare"
    page: ClassVar[str] = "compare"
    data: ClassVar[str] = "compare"
    document: Document
    reference: str
    tables: tuple[Table, ...]
    metrics: tuple[tuple[str, MetricValue], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A judged check for regressions and its page."""

    kind: ClassVar[Kind] = "regress"
    page: ClassVar[str] = "regress"
    data: ClassVar[str] = "regress"
    regression: Regression
    document: Document


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedColumn:
    """One model of ``moeprof params``.

    Attributes:
        name: what to call it.
        status: ``published``, ``counted from its config``, ``unconfirmed rumour``...
        is_marked: True when the status has to stand beside the name.
        title: what people call it.
        figures: the same ones in the same order for every model of a table.
        notes: what a reader should know.
    """

    name: str
    status: str
    is_marked: bool
    title: str
    figures: tuple[Figure, ...]
    notes: tuple[str, ...]

    @property
    def has_figures(self) -> bool:
        """False for a routing scheme: it has notes and no column of a table."""
        return any(figure.value is not None for figure in self.figures)

    @property
    def head(self) -> str:
        """Name, and the status where it must not be missed."""
        return printable(f"{self.name} ({self.status.upper()})" if self.is_marked else self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """Models counted without their weights, and what was asked."""

    kind: ClassVar[Kind] = "params"
    page: ClassVar[str] = "params"
    data: ClassVar[str] = "params"
    columns: tuple[CountedColumn, ...]
    question: Question


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """Rows of plain values, all with the same keys.

    Attributes:
        rows: raw.
        shown: the same for people; None: they read the raw ones.
        whole: what JSON says instead of a list of rows.
    """

    kind: ClassVar[Kind] = "list"
    page: ClassVar[str] = "list"
    data: ClassVar[str] = "list"
    rows: Sequence[Mapping[str, Any]]
    shown: Sequence[Mapping[str, Any]] | None = None
    whole: Mapping[str, Any] | None = None


Result = RunReport | Audit | Comparison | Check | Counted | Listing
