"""The forms by name, and the one way to write them."""

from __future__ import annotations

import csv
import difflib
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path

from moeprof.analysis.regress.result import Regression
from moeprof.analysis.report.data import regression_json, regression_rows
from moeprof.core.errors import InputError
from moeprof.render.ci.bencher import render_bmf
from moeprof.render.ci.benchmark_action import render_bigger_is_better, render_smaller_is_better
from moeprof.render.ci.github_annotations import render_annotations
from moeprof.render.ci.gitlab import render_code_quality, render_metrics
from moeprof.render.ci.junit import render_junit

Render = Callable[[Regression], str | None]


def render_json(regression: Regression) -> str:
    """regress.json as text."""
    return json.dumps(regression_json(regression), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def render_csv(regression: Regression) -> str:
    """regress.csv as text; an unknown value is an empty cell."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows(["" if cell is None else cell for cell in row] for row in regression_rows(regression))
    return out.getvalue()


# name of the form -> file name and what makes its text; None: there is nothing to write
CI_FORMATS: dict[str, tuple[tuple[str, Render], ...]] = {
    "junit": (("regress.junit.xml", render_junit),),
    "github": (("annotations.txt", render_annotations),),
    "benchmark-action": (
        ("benchmark-smaller-is-better.json", render_smaller_is_better),
        ("benchmark-bigger-is-better.json", render_bigger_is_better),
    ),
    "bmf": (("regress.bmf.json", render_bmf),),
    "codequality": (("gl-code-quality-report.json", render_code_quality),),
    "metrics": (("metrics.txt", render_metrics),),
    "json": (("regress.json", render_json),),
    "csv": (("regress.csv", render_csv),),
}


def check_ci_formats(names: Iterable[str]) -> tuple[str, ...]:
    """The names without doubles.

    Raises:
        InputError: no such form.
    """
    asked = tuple(dict.fromkeys(names))
    for name in asked:
        if name not in CI_FORMATS:
            close = difflib.get_close_matches(name, CI_FORMATS, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise InputError(f"--write: unknown format {name!r}; allowed: {', '.join(CI_FORMATS)}{hint}")
    return asked


def write_ci_files(regression: Regression, folder: Path, formats: Iterable[str]) -> list[Path]:
    """Write the files of these forms into the folder, which is made where it is missing.

    A list of github-action-benchmark without entries is not written, and one of an earlier check is removed.

    Returns:
        What was written, in the order of the forms.

    Raises:
        InputError: no such form.
    """
    texts = [(file, render(regression)) for name in check_ci_formats(formats) for file, render in CI_FORMATS[name]]
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for file, text in texts:
        path = folder / file
        if text is None:
            path.unlink(missing_ok=True)
        else:
            # half a surrogate (from a file name) has no UTF-8; backslashreplace writes what JSON calls it
            path.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
            written.append(path)
    return written
