"""Plain data as text: JSON and CSV, in one spelling for everything that moeprof writes."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from moeprof.analysis.report.data import as_json, as_rows
from moeprof.analysis.report.result import Result
from moeprof.core import text


def json_text(value: Any) -> str:
    """JSON with a line end.

    Raises:
        ValueError: a number that JSON has no word for; what was not measured is None, never NaN.
    """
    return text.json_text(value) + "\n"


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """CSV; an unknown value is an empty cell."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([[text.cell(value) for value in row] for row in rows])
    return out.getvalue()


def render_json(result: Result) -> str:
    """A result as JSON."""
    return json_text(as_json(result))


def render_csv(result: Result) -> str:
    """A result as CSV."""
    return csv_text(as_rows(result))
