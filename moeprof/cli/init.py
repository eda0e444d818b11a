"""``moeprof init``: copy starter workloads, or a CI job, into a project."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from moeprof.cli.ci_files import CiSystem, ci_files, next_steps, requirement
from moeprof.core.errors import InputError


def init(
    folder: Annotated[Path, typer.Argument(help="Where to put workloads.")] = Path("workloads"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite files of the same name.")] = False,
    ci: Annotated[
        CiSystem | None, typer.Option(help="Write a CI job, its smoke workload and gates, into this project.")
    ] = None,
) -> None:
    """Write starter workloads that can be edited (chat traffic, a trace, dense against sparse), or a CI job (--ci)."""
    if ci is not None:
        source = requirement()
        _write(ci_files(ci, folder, source), force=force)
        if not Path(".git").exists():
            print("No .git here: CI systems read these files from the root of the repository.", file=sys.stderr)
        for step in next_steps(ci, folder, source):
            typer.echo(step)
        return
    starters = sorted(resources.files("moeprof").joinpath("data/starters").iterdir(), key=lambda file: file.name)
    _write({folder / file.name: file.read_text(encoding="utf-8") for file in starters}, force=force)
    typer.echo(f"Edit one, then: moeprof run {folder / starters[0].name}")


def _write(files: Mapping[Path, str], *, force: bool) -> None:
    """All of them, or none where one is there already.

    Raises:
        InputError: one exists and ``force`` is not given, or cannot be written.
    """
    existing = [path for path in files if path.exists()]
    if existing and not force:
        raise InputError(f"{existing[0]}: is there already; nothing was written, use --force to overwrite")
    for path, text in files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error
        print(f"Wrote {path}", file=sys.stderr)
