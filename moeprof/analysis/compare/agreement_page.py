"""Two runs of one sparsity ladder on a page: every tax beside itself, and whether they agree."""

from __future__ import annotations

from collections.abc import Sequence

from moeprof.analysis.cards import card_for
from moeprof.analysis.compare.agreement import Agreement, same_taxes
from moeprof.analysis.compare.estimate import Estimate
from moeprof.analysis.compare.ladder import LadderResult
from moeprof.analysis.compare.ladder_page import ladder_results
from moeprof.analysis.compare.ladder_tables import load_text
from moeprof.analysis.document import FactTable, Paragraph, Section
from moeprof.analysis.summary import Summary
from moeprof.core import units

HOW = (
    "Taxes as shares of the step with recorded routing, reference first. They agree where the interval of their "
    "difference holds 0; intervals speak for one launch each."
)


def agreements(reference: Summary, other: Summary) -> dict[str, tuple[Agreement, ...]]:
    """What two runs' ladders say of each load and phase that both measured; empty where one has no ladder."""
    first = {_title(result): result for result in ladder_results(reference.record)}
    second = {_title(result): result for result in ladder_results(other.record)}
    return {title: same_taxes(first[title], second[title]) for title in first if title in second}


def agreement_sentence(found: dict[str, tuple[Agreement, ...]]) -> str | None:
    """How many taxes agree; None without two ladders."""
    told = [one for taxes in found.values() for one in taxes if one.agree is not None]
    if not told:
        return None
    apart = [
        f"{card_for(one.name).title} ({title})" for title, taxes in found.items() for one in taxes if one.agree is False
    ]
    tail = f"; apart are {', '.join(apart)}" if apart else ""
    return f"The two ladders agree in {len(told) - len(apart)} of {len(told)} figures{tail}."


def agreement_section(other: str, found: dict[str, tuple[Agreement, ...]]) -> Section | None:
    """Every tax of both runs; None without two ladders."""
    if not found:
        return None
    tables = [FactTable(title=title, rows=tuple(_row(one) for one in taxes)) for title, taxes in found.items()]
    return Section(
        name=f"ladders-{other}", title=f"The sparsity ladder, {other} beside the reference",
        blocks=(Paragraph(text=HOW), *tables),
    )  # fmt: skip


def _title(result: LadderResult) -> str:
    return f"{result.phase}, {load_text(result)}"


def _row(one: Agreement) -> tuple[str, str]:
    verdict = {True: "agree", False: "apart", None: f"cannot tell ({one.reason})"}[one.agree]
    return card_for(one.name).title, f"{_text(one.first)} and {_text(one.second)}: {verdict}"


def _text(share: Estimate) -> str:
    if share.value is None:
        return "n/a"
    ends: Sequence[float] = [100 * end for end in (share.low, share.high) if end is not None]
    between = f" [{', '.join(units.significant(end) for end in ends)}]" if ends else ""
    return f"{units.significant(100 * share.value)} %{between}"
