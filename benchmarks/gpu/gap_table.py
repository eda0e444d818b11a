"""What the distance to the roofline consists of, as a Markdown table per model, from the published roofline records."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.gpu.answers import NOT_YET, markdown_table
from benchmarks.gpu.goals import MODELS
from benchmarks.gpu.results import Results
from moeprof.analysis.metrics.resources.breakdown import ItemisedStep, Part, itemised_steps
from moeprof.analysis.report.sections.breakdown import word
from moeprof.core.errors import MoeprofError
from moeprof.core.model_facts import ModelFacts
from moeprof.core.record.launch import LaunchHeader
from moeprof.core.record.layout import open_record


def gap_tables(results: Results) -> str:
    """One table per model: each part's milliseconds over its own floor, by size of step; and how the engine ran."""
    parts = [(title, _launch(results, model)) for model, title in MODELS.items()]
    return "\n\n".join(f"**{title}**\n\n{_ran(found)}{_table(_steps(found))}" for title, found in parts)


Launch = tuple[LaunchHeader, ModelFacts]


def _launch(results: Results, model: str) -> Launch | None:
    """launch.json and the facts of a roofline record; None where there is none (its own page says what is wrong)."""
    record = results.record(f"roofline-{model}")
    if record is None:
        return None
    try:
        found = open_record(record).models[0]
        return (found.launches[0].info, found.facts) if found.launches and found.facts is not None else None
    except (MoeprofError, IndexError, KeyError):
        return None


def _steps(launch: Launch | None) -> tuple[ItemisedStep, ...]:
    try:
        return () if launch is None else itemised_steps(*launch)
    except MoeprofError:
        return ()


def _ran(launch: Launch | None) -> str:
    """Which kernels ran and how steps were launched, in one line."""
    if launch is None or launch[0].engine.attention is None:
        return ""
    facts = launch[0].engine
    ran = [
        f"attention {facts.attention}",
        f"experts {facts.decode_experts or facts.experts} in decode, {facts.experts} in prefill",
        f"decode steps launched by {'a graph' if facts.decode == 'graph' else 'Python'}",
        *(["one step ahead"] if facts.run_ahead else []),
        *([f"compiled {facts.compiled}"] if facts.compiled else []),
    ]
    return f"Ran with {', '.join(ran)}.\n\n"


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
