"""Write the files of a report or a comparison, and print the first screen."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moeprof.analysis.document import Document
from moeprof.analysis.pricing import Pricing
from moeprof.analysis.report import build_document
from moeprof.analysis.summary import Summary, summarise
from moeprof.core.errors import InputError
from moeprof.core.record import Record
from moeprof.render import COMPARE_FILES, FILES

if TYPE_CHECKING:
    from moeprof.analysis.compare.document import Comparison


def summarise_record(record: Record, pricing: Pricing) -> tuple[Summary, Document]:
    """Metrics and Document of a record."""
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
    from moeprof.render.html import render_html

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
