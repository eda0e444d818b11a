"""Should one serve this model? One question a file, one row here, and the paragraph that is made of their findings.

A new source of answers (a projection, a what-if) is one file with a function ``Sides -> Finding | None`` and a row of
``SOURCES``; None means that the run has nothing to say about it.
"""

from __future__ import annotations

from collections.abc import Callable

from moeprof.analysis.metrics.summary import Summary
from moeprof.analysis.report.answer import api, cheaper, faster, fits, loads, sure, text
from moeprof.analysis.report.answer.advice import advice, change
from moeprof.analysis.report.answer.sides import Sides, sides_of
from moeprof.analysis.report.answer.why import why
from moeprof.analysis.report.document import Answer, Finding

SOURCES: tuple[Callable[[Sides], Finding | None], ...] = (
    cheaper.find,
    faster.find,
    fits.find,
    text.find,
    loads.find,
    api.find,
    sure.find,
)


def answer_of(summary: Summary) -> Answer | None:
    """The answer of a run; None where no model has a price to speak of."""
    sides = sides_of(summary)
    if sides is None:
        return None
    findings = tuple(found for find in SOURCES if (found := find(sides)) is not None)
    return Answer(
        model=sides.model.name,
        rival=None if sides.rival is None else sides.rival.name,
        models=(sides.model.name, *(rival.name for rival in sides.priced_against)),
        facts=_facts(sides, findings),
        why=why(sides),
        advice=advice(sides, findings),
        change=change(sides, findings),
        findings=findings,
    )


def _facts(sides: Sides, findings: tuple[Finding, ...]) -> str:
    """All predicates in one sentence, then what has none."""
    clauses = [found.clause for found in findings if found.clause]
    sentence = f"On this traffic{sides.launch} {sides.model.name} {_listed(clauses)}." if clauses else ""
    return " ".join(part for part in (sentence, *(found.aside for found in findings)) if part)


def _listed(clauses: list[str]) -> str:
    """``a, b, and c``: clauses hold commas of their own, so the last ``and`` has one too."""
    return clauses[0] if len(clauses) == 1 else f"{', '.join(clauses[:-1])}, and {clauses[-1]}"
