"""What stands beside cost: how well each model predicts the text that all of them were fed."""

from __future__ import annotations

from moeprof.analysis.cards import card_for
from moeprof.analysis.document import MetricTable, Paragraph, Row, Section
from moeprof.analysis.pick import pick
from moeprof.analysis.summary import Summary
from moeprof.core import units
from moeprof.core.metric import MetricValue

NAME = "bits_per_byte"


def quality_section(summary: Summary) -> Section | None:
    """Bits per byte of the schedule's true continuations, per model; None when it was measured for none."""
    values = tuple(_value(summary, i) for i in range(len(summary.models)))
    if all(value is None for value in values):
        return None
    card = card_for(NAME)
    table = MetricTable(title="Quality", rows=(Row(label=card.title, card=card, name=NAME, values=values),))
    return Section(name="quality", title="Quality", blocks=(Paragraph(text=_sentence(summary, values)), table))


def _value(summary: Summary, index: int) -> MetricValue | None:
    model = summary.models[index]
    return pick(model, NAME) or next((v for v in model.metrics if v.name == NAME and "launch" not in v.labels), None)


def _sentence(summary: Summary, values: tuple[MetricValue | None, ...]) -> str:
    told = [(m.name, v.value) for m, v in zip(summary.models, values, strict=True) if v is not None and v.value]
    if not told:
        return "No model of this run is trained, so cost stands here without quality."
    said = ", ".join(f"{name} {units.significant(float(value))}" for name, value in told)
    text = f"Bits per byte of the text that every model was fed, fewer is better: {said}."
    others = len(values) - len(told)
    if others:
        what = "The other model has" if others == 1 else f"The {others} other models have"
        text += f" {what} random weights: their cost is measured, their quality means nothing."
    return text
