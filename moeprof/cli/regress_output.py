"""What ``moeprof regress`` prints and writes, and how it ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from moeprof.core.errors import EngineError, InputError, MoeprofError, RegressionFoundError, UndecidedError

if TYPE_CHECKING:
    from moeprof.analysis.document import Document
    from moeprof.analysis.regress.result import Regression
    from moeprof.cli.regress_judge import Judged

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
    from moeprof.analysis.regress.page import regress_document

    regression = judged.regression
    document = regress_document(regression, trend=judged.trend, all_metrics=output.all_metrics)
    for path in _write(regression, document, output):
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
    from moeprof.render.comment import render_no_verdict

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


def _write(regression: Regression, document: Document, output: Output) -> list[Path]:
    from moeprof.cli.printing import new_folder
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
            path.write_text(_page(name, regression, document), encoding="utf-8")
            written.append(path)
    return written + write_ci_files(regression, folder, [name for name in output.formats if name in CI_FORMATS])


def _page(name: str, regression: Regression, document: Document) -> str:
    if name == "comment":
        from moeprof.render.comment import render_comment

        return render_comment(regression, document)
    if name == "html":
        from moeprof.render.html import render_html

        return render_html(document)
    from moeprof.render.markdown import render_markdown

    return render_markdown(document)


def _print(regression: Regression, document: Document, output: Output) -> None:
    if output.form == "table":
        from moeprof.cli.printing import print_page

        print_page(document, folded=output.all_metrics)
    elif output.form == "md":
        sys.stdout.write(_page("md", regression, document))
    else:
        from moeprof.render.ci.files import render_csv, render_json

        sys.stdout.write(render_json(regression) if output.form == "json" else render_csv(regression))


def _tell_github(regression: Regression, document: Document, output: Output) -> None:
    """Annotations, which the runner reads from either stream, and the summary of the step."""
    from moeprof.render.ci.github_annotations import annotation_lines

    stream = sys.stdout if output.form == "table" else sys.stderr
    for line in annotation_lines(regression):
        print(line, file=stream)
    _append_summary(_page("comment", regression, document))
