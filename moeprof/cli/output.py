"""Write the files of a report or a comparison, and print the first screen.

Rows of plain values as a table, JSON, CSV or Markdown, for commands that list things.

What ``moeprof regress`` prints and writes, and how it ends.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeprof.core.errors import EngineError, InputError, MoeprofError, RegressionFoundError, UndecidedError
from moeprof.core.text import printable
from moeprof.render import COMPARE_FILES, FILES

if TYPE_CHECKING:
    from moeprof.analysis.metrics.summary import Summary
    from moeprof.analysis.regress.check import Judged
    from moeprof.analysis.regress.result import Regression
    from moeprof.analysis.report.compare import Comparison
    from moeprof.analysis.report.document import Document
    from moeprof.core.pricing import Pricing
    from moeprof.core.record.layout import Record


def summarise_record(record: Record, pricing: Pricing) -> tuple[Summary, Document]:
    """Metrics and Document of a record."""
    from moeprof.analysis.metrics.summary import summarise
    from moeprof.analysis.report.run import build_document

    summary = summarise(record, pricing)
    return summary, build_document(summary)


def new_folder(asked: Path | None, name: str) -> Path:
    """Where to write: the asked folder, or ``reports/<name>`` with a number where that is taken.

    Nothing is overwritten.

    Raises:
        InputError: the folder is not empty or cannot be made.
    """
    folder = asked or Path("reports") / name
    number = 2
    while asked is None and folder.exists():
        folder = folder.with_name(f"{name}-{number}")
        number += 1
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: is there already and is not empty; nothing is overwritten, choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another --output-dir") from error
    return folder


def write_files(summary: Summary, document: Document, folder: Path, formats: Sequence[str]) -> list[Path]:
    """Write the asked files of a report into ``folder``; returns their paths.

    Raises:
        InputError: the folder cannot be written.
    """
    return [_write(folder / FILES[name], _text(name, summary, document)) for name in formats]


def write_comparison(comparison: Comparison, folder: Path, formats: Sequence[str]) -> list[Path]:
    """Write the asked files of a comparison into ``folder``; returns their paths.

    Raises:
        InputError: the folder cannot be written.
    """
    return [_write(folder / COMPARE_FILES[name], _compared_text(name, comparison)) for name in formats]


def _write(path: Path, text: str) -> Path:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another --output-dir") from error
    return path


def _text(name: str, summary: Summary, document: Document) -> str:
    if name in ("md", "html"):
        return _page(name, document)
    from moeprof.render.data import render_csv, render_json

    return render_json(summary, document.doubts) if name == "json" else render_csv(summary)


def _compared_text(name: str, comparison: Comparison) -> str:
    if name in ("md", "html"):
        return _page(name, comparison.document)
    if name == "json":
        return json.dumps(comparison.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    out = io.StringIO()
    rows = ([("" if cell is None else cell) for cell in row] for row in comparison.to_csv_rows())
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def _page(name: str, document: Document) -> str:
    """As Markdown or HTML; the page's library loads only where a page is asked for."""
    if name == "md":
        from moeprof.render.markdown import render_markdown

        return render_markdown(document)
    from moeprof.render.html.page import render_html

    return render_html(document)


def print_document(document: Document, summary: Summary, form: str = "table") -> None:
    """Print a report to stdout as ``table``, ``json``, ``csv`` or ``md``."""
    if form == "table":
        _print_table(document, sections=False, folded=False)
    else:
        sys.stdout.write(_text(form, summary, document))


def print_comparison(comparison: Comparison, form: str = "table", *, folded: bool = False) -> None:
    """Print a comparison to stdout as ``table``, ``json``, ``csv`` or ``md``; ``folded``: every metric too."""
    if form == "table":
        _print_table(comparison.document, sections=True, folded=folded)
    else:
        sys.stdout.write(_compared_text(form, comparison))


def print_page(document: Document, *, folded: bool) -> None:
    """Print a page on the terminal, sections included; ``folded``: what is closed at first too."""
    _print_table(document, sections=True, folded=folded)


def _print_table(document: Document, *, sections: bool, folded: bool) -> None:
    from rich.console import Console

    from moeprof.render.terminal import print_document as show

    class Terminal(Console):
        """rich ends the process with 1 when the reader goes away; that is no error here (see cli/main.py)."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    show(document, Terminal(highlight=False, soft_wrap=False), sections=sections, folded=folded)


def print_records(rows: Sequence[Mapping[str, Any]], form: str) -> None:
    """Print ``rows`` (all with the same keys) to stdout."""
    if form == "json":
        sys.stdout.write(json.dumps([dict(row) for row in rows], indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    elif form == "csv":
        out = io.StringIO()
        writer = csv.DictWriter(out, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        sys.stdout.write(out.getvalue())
    elif form == "md":
        heads = list(rows[0]) if rows else []
        lines = ["|" + "|".join(heads) + "|", "|" + ":--|" * len(heads)]
        lines += ["|" + "|".join(_cell(row[h]).replace("|", "\\|") for h in heads) + "|" for row in rows]
        sys.stdout.write("\n".join(lines) + "\n")
    else:
        _table(rows)


def _table(rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in rows[0] if rows else ():
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row.values()))
    Console(highlight=False).print(table)


def _cell(value: Any) -> str:
    return "" if value is None else printable(str(value))


PAGES = {"md": "regress.md", "html": "regress.html", "comment": "comment.md"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Where results go.

    Attributes:
        form: what to print.
        formats: files to write.
        folder: new folder for them; None: beside the run.
        all_metrics: everything, not only what changed.
        github: annotations and step summary.
        run: the judged run, for the folder's name.
    """

    form: str
    formats: tuple[str, ...]
    folder: Path | None
    all_metrics: bool
    github: bool
    run: Path | None

    @classmethod
    def checked(
        cls,
        *,
        form: str,
        write: str | None,
        folder: Path | None,
        all_metrics: bool,
        github: bool | None,
        run: Path | None,
    ) -> Output:
        """From the options.

        Raises:
            InputError: a format that nobody knows.
        """
        from moeprof.render.ci.files import CI_FORMATS

        asked = tuple(dict.fromkeys(part.strip() for part in (write or "").split(",") if part.strip()))
        allowed = (*PAGES, *CI_FORMATS)
        unknown = [name for name in asked if name not in allowed]
        if unknown:
            raise InputError(f"--write {unknown[0]!r}: allowed: {', '.join(allowed)}")
        on = os.environ.get("GITHUB_ACTIONS") == "true" if github is None else github
        return cls(form=form, formats=asked, folder=folder, all_metrics=all_metrics, github=on, run=run)

    def into(self, folder: Path) -> Output:
        """Files go into a folder that was just made."""
        return replace(self, folder=folder, run=None)


def show(judged: Judged, output: Output) -> None:
    """Print, write, and end with the verdict's exit code.

    Raises:
        RegressionFoundError: a gate found something worse.
        UndecidedError: a gate cannot tell, and that is not allowed.
        InputError: a folder cannot be written.
    """
    from moeprof.analysis.report.regress import regress_document

    regression = judged.regression
    document = regress_document(regression, trend=judged.trend, all_metrics=output.all_metrics)
    for path in _write_regress(regression, document, output):
        print(f"Wrote {path}", file=sys.stderr)
    try:
        _print(regression, document, output)
        if output.github:
            _tell_github(regression, document, output)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader went away, as `| head` does; that must not hide the verdict
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if regression.exit_code == RegressionFoundError.exit_code:
        raise RegressionFoundError(f"regression: {_counted(regression, 'worse')} worse")
    if regression.exit_code == UndecidedError.exit_code:
        said = f"cannot tell: {_counted(regression, 'cannot tell')} undecided"
        hint = "--allow-undecided makes this exit 0" if regression.is_whole else "a side is not a whole run"
        raise UndecidedError(f"{said} ({hint})")


@contextmanager
def telling(output: Output) -> Iterator[None]:
    """Inside, an error that leaves nothing judged is told to whoever reads the comment; then it goes on."""
    try:
        yield
    except (InputError, EngineError) as error:
        no_verdict(error, output)
        raise


def no_verdict(error: MoeprofError, output: Output) -> None:
    """Say in the comment and the step's summary why nothing was judged, so that no older verdict stays there."""
    from moeprof.render.ci.comment import render_no_verdict

    text = render_no_verdict(error.lines or (str(error),), error.exit_code)
    folder = output.folder
    if "comment" in output.formats and folder is not None and not (folder / PAGES["comment"]).exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PAGES["comment"]).write_text(text, encoding="utf-8")
        print(f"Wrote {folder / PAGES['comment']}", file=sys.stderr)
    if output.github:
        _append_summary(text)


def _append_summary(text: str) -> None:
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        try:
            with Path(summary).open("a", encoding="utf-8") as file:
                file.write(text + "\n")
        except OSError as error:
            raise InputError(f"GITHUB_STEP_SUMMARY {summary}: cannot be written ({error.strerror})") from error


def _counted(regression: Regression, verdict: str) -> str:
    num, of = len(regression.with_verdict(verdict)), len(regression.gates)
    return f"{num} of {of} gates {'is' if num == 1 else 'are'}"


def _write_regress(regression: Regression, document: Document, output: Output) -> list[Path]:
    from moeprof.render.ci.files import CI_FORMATS, write_ci_files

    if not output.formats:
        return []
    folder = output.folder
    if folder is None or output.run is not None:
        folder = new_folder(output.folder, f"{output.run.resolve().name}-regress" if output.run else "regress")
    written = []
    for name in output.formats:
        if name in PAGES:
            path = folder / PAGES[name]
            path.write_text(_regress_page(name, regression, document), encoding="utf-8")
            written.append(path)
    return written + write_ci_files(regression, folder, [name for name in output.formats if name in CI_FORMATS])


def _regress_page(name: str, regression: Regression, document: Document) -> str:
    if name == "comment":
        from moeprof.render.ci.comment import render_comment

        return render_comment(regression, document)
    if name == "html":
        from moeprof.render.html.page import render_html

        return render_html(document)
    from moeprof.render.markdown import render_markdown

    return render_markdown(document)


def _print(regression: Regression, document: Document, output: Output) -> None:
    if output.form == "table":
        print_page(document, folded=output.all_metrics)
    elif output.form == "md":
        sys.stdout.write(_regress_page("md", regression, document))
    else:
        from moeprof.render.ci.files import render_csv, render_json

        sys.stdout.write(render_json(regression) if output.form == "json" else render_csv(regression))


def _tell_github(regression: Regression, document: Document, output: Output) -> None:
    """Annotations, which the runner reads from either stream, and the summary of the step."""
    from moeprof.render.ci.github_annotations import annotation_lines

    stream = sys.stdout if output.form == "table" else sys.stderr
    for line in annotation_lines(regression):
        print(line, file=stream)
    _append_summary(_regress_page("comment", regression, document))
