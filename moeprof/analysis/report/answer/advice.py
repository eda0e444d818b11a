"""What to do about it, and what would change it: rules over the findings, a sentence for each outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moeprof.analysis.compare.models import cost_ratio
from moeprof.analysis.report.answer import cheaper, faster, fits, loads, sure, text
from moeprof.analysis.report.answer.sides import Sides
from moeprof.analysis.report.document import Finding

NOUNS = {cheaper.QUESTION: "cost", faster.QUESTION: "speed", text.QUESTION: "text"}
DO_NOT = "Do not decide by this run."
NOTHING_DECIDES = "Nothing measured here decides between them."


def advice(sides: Sides, findings: Sequence[Finding]) -> str:
    """``Serve the dense one.``, or why that cannot be said; empty for a model alone."""
    if sides.rival is None:
        return ""
    found = {one.question: one for one in findings}
    if found[sure.QUESTION].outcome == "no":
        return DO_NOT
    if sides.is_twin:
        return _of_twins(sides)
    leans = {question: found[question].lean for question in NOUNS if question in found}
    model, rival = _called(sides)
    ahead, behind = ([NOUNS[q] for q, lean in leans.items() if lean == side] for side in (1, -1))
    if ahead and behind:
        return f"It depends on what counts: {_listed(ahead)} for {model}, {_listed(behind)} for {rival}."
    if not ahead and not behind:
        return _by_memory(found, model, rival)
    winner = model if ahead else rival
    if text.QUESTION in found and found[text.QUESTION].outcome == "cannot tell":
        return f"By {_listed(ahead or behind)} alone, serve {winner}."
    return f"Serve {winner}."


def _listed(nouns: Sequence[str]) -> str:
    return nouns[0] if len(nouns) == 1 else f"{', '.join(nouns[:-1])} and {nouns[-1]}"


def _called(sides: Sides) -> tuple[str, str]:
    assert sides.rival is not None
    return ("the MoE", "the dense one") if sides.is_moe_against_dense else (sides.model.name, sides.rival.name)


def _by_memory(found: Mapping[str, Finding], model: str, rival: str) -> str:
    lean = found[fits.QUESTION].lean if fits.QUESTION in found else 0
    is_told = all(found[question].outcome != "cannot tell" for question in NOUNS if question in found)
    return f"Serve {model if lean > 0 else rival}: it needs less memory." if lean and is_told else NOTHING_DECIDES


def _of_twins(sides: Sides) -> str:
    """Between its twins an MoE is a bargain or not by cost alone: they have no text of their own."""
    told = {m.name: cost_ratio(sides.summary, sides.model, m).verdict for m in sides.priced_against}
    total, active = (told.get(m.name) if m is not None else None for m in (sides.parts.total, sides.parts.active))
    if total == "worse":
        return "Its sparsity buys nothing here: a dense model of the same size is cheaper."
    if total == "better" and active == "worse":
        return (
            "Its sparsity pays against a dense model of the same total size; one of its active size would be cheaper "
            "still, if its text were good enough (the twins have none to judge)."
        )
    if total == "better":
        return "Its sparsity pays against a dense model of the same total size (the twins have no text to judge)."
    if active == "worse":
        return "It pays only if its text is better than that of a dense model of its active size."
    return NOTHING_DECIDES


def change(sides: Sides, findings: Sequence[Finding]) -> str:
    """What would change the answer, or what to run to get one."""
    found = {one.question: one for one in findings}
    if sides.rival is None:
        return "Whether that is cheap needs a model to hold it against (`models:`) or the prices of an API (`--api`)."
    told = []
    if found[cheaper.QUESTION].outcome == "cannot tell" and len(sides.model.rounds or sides.model.capacity) < 3:
        told.append("send 3 rounds or more")
    if found[sure.QUESTION].outcome == "no":
        told.append("mend what makes it doubtful (below) and repeat it")
    if text.QUESTION in found and found[text.QUESTION].outcome == "cannot tell" and not sides.is_twin:
        told.append("judge both models' text, here or by your own evaluation")
    if found[loads.QUESTION].text == loads.ONE_LOAD:
        told.append("measure other loads (`sweep:`)")
    return f"What could change this: {'; '.join(told)}." if told else ""
