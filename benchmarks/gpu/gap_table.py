"""What the distance to the roofline consists of, as a Markdown table per model, from the published roofline records."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.gpu.answers import NOT_YET, markdown_table
from benchmarks.gpu.goals import MODELS
from benchmarks.gpu.results import Results
from moeprof.analysis.metrics.gap import ItemisedStep, Part, itemised_steps
from moeprof.analysis.report_gap import word
from moeprof.core.errors import MoeprofError
from moeprof.core.modelfacts import ModelFacts
from moeprof.core.record import open_record


def gap_tables(results: Results) -> str:
    """One table per model: each part's milliseconds over its own floor, by size of step."""
    return "\n\n".join(f"**{title}**\n\n{_table(_steps(results, model))}" for model, title in MODELS.items())


def _steps(results: Results, model: str) -> tuple[ItemisedStep, ...]:
    record = results.record(f"roofline-{model}")
    if record is None:
        return ()
    try:
        found = open_record(record).models[0]
        return itemised_steps(found.launches[0].info, ModelFacts.from_json(found.facts)) if found.launches else ()
    except (MoeprofError, IndexError, KeyError):
        return ()  # the record's own page says what is wrong with it


def _table(steps: Sequence[ItemisedStep]) -> str:
    if not steps:
        return f"{NOT_YET.capitalize()}."
    names = list({part.name: part for step in steps for part in step.parts}.values())
    rows = [(word(part), *(_excess(step, part.name) for step in steps)) for part in names]
    totals = [
        ("the step, ms", *(f"{step.wall_s * 1e3:.2f}" for step in steps)),
        ("its roofline, ms", *("-" if not step.roofline_s else f"{step.roofline_s * 1e3:.2f}" for step in steps)),
    ]
    head = ("over its own floor, ms", *(_size(step) for step in steps))
    return markdown_table(head, [*totals, *rows])


def _excess(step: ItemisedStep, name: str) -> str:
    part: Part | None = next((part for part in step.parts if part.name == name), None)
    if part is None:
        return "-"
    return f"{part.seconds * 1e3:.2f} (no floor)" if part.excess_s is None else f"{part.excess_s * 1e3:.2f}"


def _size(step: ItemisedStep) -> str:
    point = step.point
    return f"{point.phase} of {point.sequences}" if point.phase == "decode" else f"prefill of {point.tokens:,} tokens"
