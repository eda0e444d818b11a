"""Workflow commands that GitHub Actions shows as annotations: print the file's lines in a step.

    ::error title=worse step_mean_s (moe),file=workloads/ci.yaml,line=14::worse: ratio 1.100 [1.070, 1.130], 6 pairs

GitHub shows ten of a kind per step and drops the rest without a word, so the tenth says how many more there are.

Sources: https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands,
https://github.com/actions/toolkit/blob/main/packages/core/src/command.ts (what is escaped),
https://github.com/actions/toolkit/blob/main/docs/problem-matchers.md (how many are shown).
"""

from __future__ import annotations

from dataclasses import dataclass

from moeprof.analysis.regress.result import GateResult, Regression
from moeprof.render.ci.words import case_names, headline, place, sentence

MAX_PER_LEVEL = 10
LEVELS = ("error", "warning", "notice")


@dataclass(frozen=True, slots=True)
class _Annotation:
    level: str
    title: str
    message: str
    place: tuple[str, int] | None = None


def render_annotations(regression: Regression) -> str:
    """The file as text."""
    return "".join(f"{line}\n" for line in annotation_lines(regression))


def annotation_lines(regression: Regression) -> tuple[str, ...]:
    """The lines: the verdict first in its kind, then each gate that says something; errors before warnings."""
    found = [_Annotation(_level(regression.verdict, regression) or "notice", "moeprof", headline(regression))]
    for gate, name in zip(regression.gates, case_names(regression.gates), strict=True):
        level = _level(gate.verdict, regression)
        if level is not None:
            found.append(_of_gate(gate, name, level))
    lines: list[str] = []
    for level in LEVELS:
        lines += [_line(annotation) for annotation in _shown([one for one in found if one.level == level])]
    return tuple(lines)


def escape_data(text: str) -> str:
    """A message: per cent sign and line ends."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def escape_property(text: str) -> str:
    """A title or file name: also what ends or separates properties."""
    return escape_data(text).replace(":", "%3A").replace(",", "%2C")


def _level(verdict: str, regression: Regression) -> str | None:
    if verdict == "cannot tell":
        return "notice" if regression.allow_undecided else "warning"
    return {"worse": "error", "better": "notice"}.get(verdict)


def _of_gate(gate: GateResult, name: str, level: str) -> _Annotation:
    return _Annotation(level, f"{gate.verdict}: {name} ({gate.model})", sentence(gate), place(gate.gate.source))


def _shown(found: list[_Annotation]) -> list[_Annotation]:
    if len(found) <= MAX_PER_LEVEL:
        return found
    rest = len(found) - MAX_PER_LEVEL + 1
    more = f"{rest} more gates are not shown here. The step summary and the report show all."
    return [*found[: MAX_PER_LEVEL - 1], _Annotation(found[0].level, "moeprof", more)]


def _line(annotation: _Annotation) -> str:
    properties = [f"title={escape_property(annotation.title)}"]
    if annotation.place is not None:
        file, line = annotation.place
        properties += [f"file={escape_property(file)}", f"line={line}"]
    return f"::{annotation.level} {','.join(properties)}::{escape_data(annotation.message)}"
