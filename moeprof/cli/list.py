"""``moeprof list``: the runs under a folder, newest first, each with its answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moeprof.cli.options import ListFormat
from moeprof.core.errors import InputError, MoeprofError
from moeprof.render import TABLE

RECORD = "experiment.json"


def list_runs(
    folder: Annotated[Path, typer.Argument(help="Where to look.")] = Path("reports"),
    format: ListFormat = TABLE,
) -> None:
    """List the runs under a folder, newest first: when, how each ended, its models and its answer."""
    from moeprof.analysis.report.result import Listing
    from moeprof.cli.output import print_result

    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder; runs are kept under `reports` unless told otherwise")
    found = sorted({file.parent for file in folder.rglob(RECORD)})
    if not found:
        raise InputError(f"{folder}: no run is kept here (none of its folders has an {RECORD})")
    rows = sorted((_row(path) for path in found), key=lambda row: str(row["started"]), reverse=True)
    shown = [{**row, "started": str(row["started"])[:16].replace("T", " ")} for row in rows]
    print_result(Listing(rows=rows, shown=shown), format)


def _row(path: Path) -> dict[str, Any]:
    """A damaged record is a row that says so: the others are still to be seen."""
    from moeprof.api import load
    from moeprof.core.record.layout import open_record

    row: dict[str, Any] = {"run": str(path), "started": None, "status": "unreadable", "models": "", "answer": ""}
    try:
        record = open_record(path)
        models = ", ".join(model.name for model in record.models)
        row |= {"started": record.experiment.started_at, "status": record.status, "models": models}
        answer = load(path).answer
    except MoeprofError as error:
        return {**row, "answer": str(error)}
    return {**row, "answer": "" if answer is None else answer.advice or answer.facts}
