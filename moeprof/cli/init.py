"""``moeprof init``: copy starter workloads into a project, for people who installed from a package index."""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from moeprof.core.errors import InputError


def init(
    folder: Annotated[Path, typer.Argument(help="Where to put them.")] = Path("workloads"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite files of the same name.")] = False,
) -> None:
    """Write starter workloads that can be edited: synthetic chat traffic, a trace replay, a dense/sparse pair."""
    starters = sorted(resources.files("moeprof").joinpath("data/starters").iterdir(), key=lambda file: file.name)
    existing = [file.name for file in starters if (folder / file.name).exists()]
    if existing and not force:
        raise InputError(f"{folder / existing[0]}: is there already; nothing was written, use --force to overwrite")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in starters:
            (folder / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
            print(f"Wrote {folder / file.name}", file=sys.stderr)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error
    typer.echo(f"Edit one, then: moeprof run {folder / starters[0].name}")
