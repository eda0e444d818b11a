"""Counted models as Markdown, the cells that a terminal shares with it, and the built-in list.

What the figures are (published, counted from a config, an unconfirmed rumour) stands in every form.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moeprof.analysis.params import NOT_SAID, Figure, Question
from moeprof.analysis.report.result import Counted, CountedColumn
from moeprof.core.known_models import Convention, System, convention_of, system_facts
from moeprof.core.model_facts import ModelFacts
from moeprof.core.text import printable
from moeprof.core.units import NOT_AVAILABLE, count, display, percent, scaled

# Gaps that explain themselves: dense models have no experts, a rumour no embedding.
_PLAIN = ("dense model", "not in the built-in list", "nothing published", NOT_SAID)
_FLOP = [(1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"), (1.0, "FLOP")]


def cell(figure: Figure) -> str:
    """A figure for people: ``46.7 B``, ``87 GiB``, ``+0.4 %``."""
    value = figure.value
    if value is None:
        return NOT_AVAILABLE
    if isinstance(value, str):
        return value
    if figure.name.endswith("_error_ratio"):
        return f"{100 * value:+.1f} %"
    if figure.unit == "ratio":
        return percent(value)
    if figure.unit == "FLOP":
        return scaled(value, _FLOP)
    if figure.unit in ("experts", "devices", "layers"):
        return display(value, "")
    return display(value, figure.unit)


def footnotes(columns: Sequence[CountedColumn], question: Question) -> list[tuple[str, list[str]]]:
    """Under a heading each: every model's notes and the reasons for what is not there, then the rules."""
    found = []
    for column in columns:
        lines = list(column.notes)
        reasons: dict[str, list[str]] = {}
        for figure in column.figures:
            explained = any(note.endswith(figure.remark) for note in column.notes)
            if figure.remark and not explained and figure.remark not in _PLAIN:
                reasons.setdefault(figure.remark, []).append(f"{figure.section.lower()}: {figure.label}")
        lines += [f"{'; '.join(dict.fromkeys(labels))}: {reason}" for reason, labels in reasons.items()]
        found.append((column.head, lines))
    return [*found, ("How", list(question.rules))]


def markdown(counted: Counted) -> str:
    """One table with a column per model, then the notes."""
    columns, question = counted.columns, counted.question
    shown = [column for column in columns if column.has_figures]
    lines = []
    if shown:
        lines += [
            "| |" + "|".join(_md(column.head) for column in shown) + "|",
            "|:--|" + "--:|" * len(shown),
            "|figures are|" + "|".join(_md(column.status) for column in shown) + "|",
        ]
    section = ""
    for row in zip(*(column.figures for column in shown), strict=True):
        if row[0].section != section:
            section = row[0].section
            lines.append(f"|**{section}**|" + "|" * len(shown))
        lines.append(f"|{_md(row[0].label)}|" + "|".join(_md(cell(figure)) for figure in row) + "|")
    for heading, notes in footnotes(columns, question):
        lines += ["", f"**{_md(heading)}**", "", *(f"- {_md(note)}" for note in notes)]
    return "\n".join(lines).lstrip("\n") + "\n"


def _md(text: str) -> str:
    return printable(text).replace("|", "\\|")


_MARKS = {"rumour": "UNCONFIRMED RUMOUR: ", "scheme": "SCHEME: "}
LEGEND = (
    "Total and active parameters as published, ours beside them. as: how the vendor counts active ones (A all but "
    "idle experts, B without the input embedding, C without the head too; ~ is only the nearest)."
)


def list_records(rows: Sequence[System]) -> list[dict[str, Any]]:
    """Raw numbers, None where nothing is published or counted."""
    return [_record(row) for row in rows]


def _record(row: System) -> dict[str, Any]:
    counted = system_facts(row)
    follows = _convention(row, counted)
    return {
        "name": row.name,
        "title": row.title,
        "status": row.status,
        "published_total_params": _whole(row.published_total_params),
        "total_params": counted.total_params if counted else None,
        "published_active_params": _whole(row.published_active_params),
        "active_params": counted.active_params if counted else None,
        "active_params_no_embedding": counted.active_params_no_embedding if counted else None,
        "active_params_no_embedding_no_head": counted.active_params_no_embedding_no_head if counted else None,
        "published_convention": follows.letter if follows else None,
        "published_convention_settled": follows.is_settled if follows else None,
        "published_as": row.published_as,
        "hub_id": row.hub_id,
        "source": row.source,
        "note": row.note,
    }


def _whole(value: float | None) -> int | None:
    """Parameters are whole: ``46700000000``, not ``4.67e10``."""
    return None if value is None else round(value)


def shown_records(rows: Sequence[System]) -> list[dict[str, Any]]:
    """The same for people: few columns, ``published / ours``, so that a row fits 80 characters."""
    shown = []
    for row in rows:
        counted = system_facts(row)
        follows = _convention(row, counted)
        letter = "" if follows is None else follows.letter if follows.is_settled else f"~{follows.letter}"
        shown.append(
            {
                "name": row.name,
                "total": _short(row.published_total_params),
                "ours": _short(counted.total_params if counted else None),
                "active": _short(row.published_active_params),
                "ours (A)": _short(counted.active_params if counted else None),
                "as": letter,
                "source": _MARKS.get(row.kind, "") + row.source,
            }
        )
    return shown


def _convention(row: System, counted: ModelFacts | None) -> Convention | None:
    return None if counted is None else convention_of(row, counted)


def _short(value: float | None) -> str:
    return "" if value is None else count(value)
