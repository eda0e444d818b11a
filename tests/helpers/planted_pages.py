"""The planted check as people read it, for golden files.

``python -m tests.helpers.planted_pages`` writes them again.
"""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO

from rich.console import Console

from moeprof.analysis.regress.result import Regression
from moeprof.analysis.regress.trend import trend
from moeprof.analysis.report.document import Document
from moeprof.analysis.report.regress import regress_document
from moeprof.analysis.report.result import Check
from moeprof.render.ci.comment import render
from moeprof.render.terminal import print_document
from tests.helpers.planted_regression import GOLDEN, planted
from tests.helpers.planted_trend import WANTED, baselines


def document(regression: Regression | None = None) -> Document:
    """The page with a trend."""
    return regress_document(regression or planted(), trend=trend(baselines(), WANTED))


def terminal(shown: Document, width: int = 120, *, folded: bool = False) -> str:
    """What a terminal without colour prints; trailing spaces are gone."""
    out = StringIO()
    console = Console(file=out, width=width, highlight=False, force_terminal=False, color_system=None)
    print_document(shown, console, sections=True, folded=folded)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "comment.md": lambda: render(Check(regression=planted(), document=document())),
    "terminal.txt": lambda: terminal(document()),
}

if __name__ == "__main__":
    for name, make in PAGES.items():
        (GOLDEN / name).write_text(make(), encoding="utf-8")
        print(name)
