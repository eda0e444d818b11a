"""The output formats: one literal table, for results of every kind.

A format is a file with a function that makes text of a result, and a row here. ``--format`` and ``--write`` offer what
stands in the table; nothing is imported before it is asked for.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moeprof.core.errors import InputError
from moeprof.core.files import write_text

if TYPE_CHECKING:
    from moeprof.analysis.report.result import Kind, Result

PAGES: tuple[Kind, ...] = ("run", "audit", "compare", "regress")
EVERY: tuple[Kind, ...] = (*PAGES, "params", "list")
CHECKS: tuple[Kind, ...] = ("regress",)
TABLE = "table"  # what --format calls the terminal


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One output format.

    Attributes:
        files: name of each of its files -> ``module:function`` that makes its text, or None where there is nothing to
            write; ``{page}`` and ``{data}`` are the result's (report and summary of a run).
        serves: kinds of results.
        part: the attribute of the result that the function takes; empty: the result itself.
        printed: whether --format offers it too.
    """

    files: Mapping[str, str]
    serves: tuple[Kind, ...]
    part: str = ""
    printed: bool = False


FORMATS: dict[str, Format] = {
    "md": Format(files={"{page}.md": "moeprof.render.markdown:render"}, serves=EVERY, printed=True),
    "html": Format(files={"{page}.html": "moeprof.render.html.page:render_html"}, serves=PAGES, part="document"),
    "json": Format(files={"{data}.json": "moeprof.render.data:render_json"}, serves=EVERY, printed=True),
    "csv": Format(files={"{data}.csv": "moeprof.render.data:render_csv"}, serves=EVERY, printed=True),
    "comment": Format(files={"comment.md": "moeprof.render.ci.comment:render"}, serves=CHECKS),
    "junit": Format(
        files={"regress.junit.xml": "moeprof.render.ci.junit:render_junit"}, serves=CHECKS, part="regression"
    ),
    "github": Format(
        files={"annotations.txt": "moeprof.render.ci.github_annotations:render_annotations"},
        serves=CHECKS,
        part="regression",
    ),
    "benchmark-action": Format(
        files={
            "benchmark-smaller-is-better.json": "moeprof.render.ci.benchmark_action:render_smaller_is_better",
            "benchmark-bigger-is-better.json": "moeprof.render.ci.benchmark_action:render_bigger_is_better",
        },
        serves=CHECKS,
        part="regression",
    ),
    "bmf": Format(files={"regress.bmf.json": "moeprof.render.ci.bencher:render_bmf"}, serves=CHECKS, part="regression"),
    "codequality": Format(
        files={"gl-code-quality-report.json": "moeprof.render.ci.gitlab:render_code_quality"},
        serves=CHECKS,
        part="regression",
    ),
    "metrics": Format(
        files={"metrics.txt": "moeprof.render.ci.gitlab:render_metrics"}, serves=CHECKS, part="regression"
    ),
}


def written(kind: Kind) -> tuple[str, ...]:
    """What --write offers for results of this kind."""
    return tuple(name for name, form in FORMATS.items() if kind in form.serves)


def printed(kind: Kind) -> tuple[str, ...]:
    """What --format offers for results of this kind."""
    return (TABLE, *(name for name in written(kind) if FORMATS[name].printed))


def parse_formats(text: str, kind: Kind) -> tuple[str, ...]:
    """``md,html`` -> ("md", "html").

    Raises:
        InputError: no such format for results of this kind.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    allowed = written(kind)
    for name in names:
        if name not in allowed:
            close = difflib.get_close_matches(name, allowed, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise InputError(f"--write {text!r}: unknown format {name!r}; allowed: {', '.join(allowed)}{hint}")
    return names


def texts(result: Result, name: str) -> dict[str, str | None]:
    """File name -> text of each file of a format; None where there is nothing to write."""
    form, found = FORMATS[name], {}
    for file, place in form.files.items():
        module, function = place.split(":")
        render = getattr(importlib.import_module(module), function)
        found[file.format(page=result.page, data=result.data)] = render(
            getattr(result, form.part) if form.part else result
        )
    return found


def write(result: Result, folder: Path, formats: Sequence[str]) -> list[Path]:
    """Write the files of these formats into ``folder``, which is made where it is missing; returns their paths.

    What has nothing to say is not written, and a file of an earlier result is removed.

    Raises:
        InputError: the folder cannot be written.
    """
    found = {file: text for name in formats for file, text in texts(result, name).items()}
    paths = []
    for file, text in found.items():
        path = folder / file
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if text is None:
                path.unlink(missing_ok=True)
                continue
            write_text(path, text)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror}); choose another --output-dir") from error
        paths.append(path)
    return paths
