"""Write the report files of a record, and print the first screen."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from moeprof.analysis.document import Document
from moeprof.analysis.pricing import Pricing
from moeprof.analysis.report import build_document
from moeprof.analysis.summary import Summary, summarise
from moeprof.core.errors import InputError
from moeprof.core.record import Record
from moeprof.render import FILES


def summarise_record(record: Record, pricing: Pricing) -> tuple[Summary, Document]:
    """Metrics and Document of a record."""
    summary = summarise(record, pricing)
    return summary, build_document(summary)


def write_files(summary: Summary, document: Document, folder: Path, formats: Sequence[str]) -> list[Path]:
    """Write the asked files into ``folder``; returns their paths.

    Raises:
        InputError: the folder cannot be written.
    """
    paths = []
    for name in formats:
        path = folder / FILES[name]
        try:
            path.write_text(_text(name, summary, document), encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror}); choose another --output-dir") from error
        paths.append(path)
    return paths


def _text(name: str, summary: Summary, document: Document) -> str:
    if name == "md":
        from moeprof.render.markdown import render_markdown

        return render_markdown(document)
    if name == "html":
        from moeprof.render.html import render_html

        return render_html(document)
    from moeprof.render.data import render_csv, render_json

    return render_json(summary, document.doubts) if name == "json" else render_csv(summary)


def print_document(document: Document, summary: Summary, form: str = "table") -> None:
    """Print a Document to stdout as ``table``, ``json``, ``csv`` or ``md``."""
    if form != "table":
        sys.stdout.write(_text(form, summary, document))
        return
    from rich.console import Console

    from moeprof.render.terminal import print_document as show

    show(document, Console(highlight=False, soft_wrap=False))
