"""How sure? What was repeated, and the gravest reason to doubt it."""

from __future__ import annotations

from moeprof.analysis.report.answer.sides import Sides
from moeprof.analysis.report.document import Finding, Outcome
from moeprof.analysis.report.doubts import disturbed, find_doubts

QUESTION = "sure enough to decide?"
STOPPED = {"started": "the run is still going", "interrupted": "the run was interrupted", "failed": "the run failed"}


def find(sides: Sides) -> Finding:
    """No where the run was cut off or its times are void; depends where warnings weaken it."""
    summary = sides.summary
    names = {None, *(m.name for m in (sides.model, sides.rival) if m is not None)}
    doubts = [doubt for doubt in find_doubts(summary) if doubt.model is None or _names(doubt.model) & names]
    grave = [doubt for doubt in doubts if doubt.severity == "error"]
    weak = [doubt for doubt in doubts if doubt.severity == "warning"]
    worst = next(iter((*grave, *weak)), None)
    text = _repeats(sides)
    if worst is not None:
        about = f"{worst.model}: " if worst.model else ""
        text += f"; the gravest of {len(grave) + len(weak)} reasons to doubt it: {about}{worst.text}"
    stopped, void = STOPPED.get(summary.record.status), disturbed(summary)
    outcome: Outcome = "no" if stopped or void or grave else "depends" if weak else "yes"
    aside = f"{stopped[:1].upper()}{stopped[1:]}." if stopped else (void or "")
    return Finding(question=QUESTION, outcome=outcome, text=text, aside=aside)


def _names(model: str) -> set[str | None]:
    return set(model.split(", "))


def _repeats(sides: Sides) -> str:
    launches = len(sides.model.record.launches)
    rounds = len(sides.model.rounds or sides.model.capacity)
    each = "round" if rounds == 1 else "rounds"
    return f"{rounds} {each} in {'one launch' if launches == 1 else f'{launches} launches'}"
