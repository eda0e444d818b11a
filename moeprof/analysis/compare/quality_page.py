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
    """What each model's figure is, whether all are of the same text, and why others have none."""
    said, counted = [], set()
    lacking: dict[str, list[str]] = {}
    for model, value in zip(summary.models, values, strict=True):
        if value is not None and value.value is not None:
            said.append(f"{model.name} {units.significant(float(value.value))}")
            counted.add(value.n)
        else:
            reason = "; ".join(value.reasons) if value is not None else ""
            lacking.setdefault(reason or "not measured", []).append(model.name)
    rest = "".join(f" Without a figure: {', '.join(names)} ({reason})." for reason, names in lacking.items())
    if not said:
        return f"Cost stands here without quality.{rest}"
    which = (
        "the same text" if len(counted) == 1 else "the first requests that each had time for, which are not the same"
    )
    return f"Bits per byte of {which}, fewer is better: {', '.join(said)}.{rest}"
