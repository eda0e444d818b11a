"""Print and write results of any kind, and end ``moeprof regress`` with its verdict."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from moeprof.core.errors import EngineError, InputError, MoeprofError, RegressionFoundError, UndecidedError
from moeprof.core.files import made_anew, write_text
from moeprof.render import FORMATS, TABLE, parse_formats, texts, write

if TYPE_CHECKING:
    from moeprof.analysis.regress.check import Judged
    from moeprof.analysis.regress.result import Regression
    from moeprof.analysis.report.result import Check, Result, RunReport
    from moeprof.core.pricing import Pricing
    from moeprof.core.record.layout import Record


def report_of(record: Record, pricing: Pricing) -> RunReport:
    """Metrics and page of a record."""
    from moeprof.analysis.metrics.summary import summarise
    from moeprof.analysis.report.result import RunReport
    from moeprof.analysis.report.run import build_document

    summary = summarise(record, pricing)
    return RunReport(summary=summary, document=build_document(summary))


def new_folder(asked: Path | None, name: str) -> Path:
    """Where to write: the asked folder, or ``reports/<name>`` with a number where that is taken.

    Nothing is overwritten.

    Raises:
        InputError: the folder is not empty or cannot be made.
    """
    folder = asked or Path("reports") / name
    if asked and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: is there already and is not empty; nothing is overwritten, choose another folder")
    try:
        if asked is None:
            return made_anew(folder)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another --output-dir") from error
    return folder


def print_result(result: Result, form: str, *, folded: bool = False) -> None:
    """Print a result of any kind to stdout; ``folded``: on the terminal every table of its page too."""
    if form != TABLE:
        text, *_ = texts(result, form).values()
        sys.stdout.write(text or "")
        return
    from rich.console import Console

    from moeprof.render import terminal

    class Terminal(Console):
        """rich ends the process with 1 when the reader goes away; that is no error here (see cli/main.py)."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    terminal.print_result(result, Terminal(highlight=False, soft_wrap=False), folded=folded)


def write_and_say(result: Result, folder: Path, formats: Sequence[str]) -> None:
    """Write these files into ``folder`` and name them on stderr.

    Raises:
        InputError: the folder cannot be written.
    """
    for path in write(result, folder, formats):
        print(f"Wrote {path}", file=sys.stderr)


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
        asked = parse_formats(write or "", "regress")
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
    from moeprof.analysis.report.regress import check_of

    regression = judged.regression
    check = check_of(regression, trend=judged.trend, all_metrics=output.all_metrics)
    if output.formats:
        folder = output.folder
        if folder is None or output.run is not None:
            folder = new_folder(output.folder, f"{output.run.resolve().name}-regress" if output.run else "regress")
        write_and_say(check, folder, output.formats)
    try:
        print_result(check, output.form, folded=output.all_metrics)
        if output.github:
            _tell_github(check, output)
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
    if "comment" in output.formats and folder is not None:
        path = folder / next(iter(FORMATS["comment"].files))
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
            print(f"Wrote {path}", file=sys.stderr)
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


def _tell_github(check: Check, output: Output) -> None:
    """Annotations, which the runner reads from either stream, and the summary of the step."""
    from moeprof.render.ci.comment import render
    from moeprof.render.ci.github_annotations import annotation_lines

    stream = sys.stdout if output.form == TABLE else sys.stderr
    stream.flush()
    for line in annotation_lines(check.regression):
        print(line, file=getattr(stream, "commands", stream))  # these are meant
    _append_summary(render(check))
