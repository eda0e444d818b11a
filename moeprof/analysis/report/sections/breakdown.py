"""Where a step goes, as blocks of the report: per model a sentence, a bar per size of step, parts over their floors."""

from __future__ import annotations

from moeprof.analysis.metrics.resources.breakdown import HOST, LAUNCHES, PARTS, REST, ItemisedStep, Part, itemised_steps
from moeprof.analysis.metrics.summary import ModelSummary, Summary
from moeprof.analysis.report.document import Block, Paragraph, StackedBars, Table
from moeprof.analysis.report.tables import facts
from moeprof.core import units

TOLD_BATCH = 8  # the sentence speaks of the decode batch nearest to this one
TOLD_PARTS = 4
STRETCHED = 1.25  # a profiled step this much longer than a plain one is said
_WORDS = {
    "batch": "preparing the batch",
    "attention_projections": "attention projections",
    "attention": "attention",
    "mlp": "dense MLPs",
    "elementwise": "norms and residuals",
    "lm_head": "head",
    LAUNCHES: "launches",
    HOST: "host",
    REST: "not itemised",
}


def blocks(summary: Summary) -> list[Block]:
    """Every model whose steps were itemised; empty where none was."""
    found: list[Block] = []
    for model in summary.models:
        steps = () if model.facts is None else itemised_steps(model.launch, model.facts)
        if steps:
            found += [Paragraph(text=sentence(model.name, steps)), _bars(model.name, steps)]
            found += [_sizes(model.name, steps), *(_parts(model.name, step) for step in steps if step.roofline_s)]
            found += [Paragraph(text=text) for text in _notes(model)]
    return found


def findings(summary: Summary) -> tuple[str, ...]:
    """Sentences for the first screen: models that were held against a roofline."""
    found = []
    for model in summary.models:
        steps = () if model.facts is None else itemised_steps(model.launch, model.facts)
        if any(step.roofline_s for step in steps):
            found.append(sentence(model.name, steps))
    return tuple(found)


def sentence(name: str, steps: tuple[ItemisedStep, ...]) -> str:
    """``At batch 8 a decode step of moe takes 2.1x its roofline (2.5 ms). Above it: experts 0.6x, ...``."""
    decode = [step for step in steps if step.point.phase == "decode"] or list(steps)
    step = min(decode, key=lambda one: abs(one.point.sequences - TOLD_BATCH))
    size = f"At batch {step.point.sequences} a {step.point.phase} step of {name} takes"
    ratio = step.time_over_roofline_ratio
    if ratio is None or step.roofline_s is None:
        told = _largest([(part, part.seconds / step.wall_s) for part in step.parts])
        parts = ", ".join(f"{word(part)} {units.percent(share)}" for part, share in told)
        return f"{size} {units.seconds(step.wall_s)}: {parts}. It has no roofline: {step.reason}."
    excesses = [(part, part.excess_s / step.roofline_s) for part in step.parts if part.excess_s is not None]
    above = ", ".join(f"{word(part)} {_times(share)}" for part, share in _largest(excesses))
    return f"{size} {_times(ratio)} its roofline ({units.seconds(step.roofline_s)}). Above it: {above}."


def word(part: Part) -> str:
    """A part's name for people."""
    return _WORDS.get(part.name, part.name)


def _largest(shares: list[tuple[Part, float]]) -> list[tuple[Part, float]]:
    return sorted((pair for pair in shares if pair[1] > 0), key=lambda pair: -pair[1])[:TOLD_PARTS]


def _times(ratio: float) -> str:
    return f"{units.significant(ratio, 2 if ratio < 10 else 3)}x"


def _bars(name: str, steps: tuple[ItemisedStep, ...]) -> StackedBars:
    over = all(step.roofline_s for step in steps)
    scales = [step.roofline_s if over and step.roofline_s else step.wall_s for step in steps]
    shares = [
        {part.name: part.seconds / scale for part in step.parts} for step, scale in zip(steps, scales, strict=True)
    ]
    used = [part for part in PARTS if any(part in share for share in shares)]
    what = "multiples of its roofline" if over else "shares of its wall time"
    return StackedBars(
        name=f"gap-{name}",
        title=f"Where a step of {name} goes, in {what}",
        caption="Kernels on a device, operations on a CPU, by the part of the model that launched them; then launching "
        "(the device waits) and the host (Python, scheduling, waiting). The parts add up to the step.",
        bars=tuple(_size(step) for step in steps),
        parts=tuple((_WORDS.get(part, part), tuple(share.get(part) for share in shares)) for part in used),
        unit="ratio",
        colours=tuple(PARTS.index(part) for part in used),
    )


def _size(step: ItemisedStep) -> str:
    point = step.point
    return f"decode, batch {point.sequences}" if point.phase == "decode" else f"prefill, {point.tokens} tokens"


def _sizes(name: str, steps: tuple[ItemisedStep, ...]) -> Table:
    """What was timed and what was profiled, one line per size."""
    return facts(f"{name}: steps", [(_size(step), _timed(step)) for step in steps])


def _timed(step: ItemisedStep) -> str:
    text = f"{units.seconds(step.wall_s)} (median of {len(step.point.wall_S)})"
    if step.device_s is not None:
        text += f", on the device {units.seconds(step.device_s)}"
    if step.roofline_s is not None and step.gap_s is not None:
        text += f", roofline {units.seconds(step.roofline_s)}, gap {units.seconds(step.gap_s)}"
    if step.profiled is None:
        return f"{text}; not itemised: {step.point.reason or 'no step was profiled'}"
    profiled, what = units.seconds(step.profiled.wall_s), "operations" if step.device_s is None else "launches"
    return f"{text}; profiled {profiled} with {step.profiled.launches} {what}{_stretched(step)}"


def _parts(name: str, step: ItemisedStep) -> Table:
    """Each part against its own floor."""
    rows = tuple((word(part), _over_floor(part, step)) for part in step.parts)
    return facts(f"{name}: {_size(step)}", rows)


def _over_floor(part: Part, step: ItemisedStep) -> str:
    text = f"{units.seconds(part.seconds)}, {units.percent(part.seconds / step.wall_s)} of the step"
    if part.floor_s is None or part.excess_s is None or not step.roofline_s:
        return text
    over = units.significant(part.excess_s / step.roofline_s, 2)
    above = f"above it {units.seconds(part.excess_s)} ({over}x the roofline)"
    return f"{text}; least {units.seconds(part.floor_s)}, {above}"


def _stretched(step: ItemisedStep) -> str:
    """A doubt: on a CPU the profiler lengthens what it measures."""
    if step.profiled is None or step.profiled.wall_s < STRETCHED * step.wall_s:
        return ""
    times = _times(step.profiled.wall_s / step.wall_s)
    return f", {times} the plain one: its parts may be too long, and host too short"


def _notes(model: ModelSummary) -> list[str]:
    """Sizes left out, and what the itemised steps do not share with those of the run."""
    notes = [f"{model.name}: {note}." for note in (model.launch.gap.notes if model.launch.gap else ())]
    if model.launch.engine.compiled:
        text = "the itemised steps were not compiled, those of the run were; their kernels differ"
        notes.append(f"{model.name}: {text}.")
    return notes
