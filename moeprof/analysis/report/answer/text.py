"""Better text? Bits per byte of the same held-out outputs; fewer are better."""

from __future__ import annotations

from moeprof.analysis.metrics.summary import ModelSummary
from moeprof.analysis.report.answer.sides import Sides
from moeprof.analysis.report.answer.words import SETTLED, why
from moeprof.analysis.report.document import Finding
from moeprof.analysis.report.sections.lockstep import ratio_text
from moeprof.analysis.stats.estimate import Ratio
from moeprof.core import units

QUESTION, NAME = "better text?", "bits_per_byte"
ALIKE = 0.05  # texts that differ by less are no reason to pay more
TOLD = {"better": "writes better text", "worse": "writes worse text", "no difference shown": "writes no better text"}


def find(sides: Sides) -> Finding | None:
    """Weights drawn at random write no text to judge; None for a model alone."""
    if sides.rival is None:
        return None
    drawn = [model.name for model in (sides.model, sides.rival) if _is_random(model)]
    if drawn:
        verb = "has" if len(drawn) == 1 else "have"
        text = f"{' and '.join(drawn)} {verb} random weights: time and memory are real, text is not"
        return Finding(question=QUESTION, outcome="cannot tell", text=text, figures=(NAME,))
    own, other, ratio = sides.figure(NAME)
    if own is None or other is None or own.value is None or other.value is None or ratio is None:
        reasons = [value.reasons[0] for value in (own, other) if value is not None and value.reasons]
        aside = "Whose text is better was not measured."
        text = reasons[0] if reasons else "not measured"
        return Finding(question=QUESTION, outcome="cannot tell", text=text, figures=(NAME,), aside=aside)
    values = f"{units.significant(float(own.value))} against {units.significant(float(other.value))} bits per byte"
    evidence = f"{values}, fewer are better" + ("" if ratio.value is None else f": {ratio_text(ratio)}")
    if (apart := _apart(ratio)) is not None:
        clause = f"writes about as good a text ({values}, apart by {apart} at most)"
        return Finding(question=QUESTION, outcome="no", text=evidence, figures=(NAME,), clause=clause)
    if ratio.verdict not in TOLD:
        aside = f"Whose text is better cannot be said ({why(ratio)})."
        return Finding(question=QUESTION, outcome="cannot tell", text=evidence, figures=(NAME,), aside=aside)
    return Finding(
        question=QUESTION,
        outcome="yes" if ratio.verdict == "better" else "no",
        text=evidence,
        figures=(NAME,),
        clause=f"{TOLD[ratio.verdict]} ({values})",
        lean={"better": 1, "worse": -1}.get(ratio.verdict, 0),  # type: ignore[arg-type]
    )


def _is_random(model: ModelSummary) -> bool:
    return model.facts is not None and model.facts.weights == "random"


def _apart(ratio: Ratio) -> str | None:
    """The most by which texts can differ that no interval tells apart, where it is too little to choose by."""
    if ratio.verdict in SETTLED or ratio.low is None or ratio.high is None or ratio.low <= 0:
        return None
    most = max(ratio.high, 1 / ratio.low) - 1
    return units.percent(most) if most <= ALIKE else None
