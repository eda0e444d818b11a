"""``moeprof merge``: parts of one load test, from several load generators, as one record. Needs no torch and no GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def merge(
    parts: Annotated[list[Path], typer.Argument(help="Run folders, one a load generator.", show_default=False)],
    output_dir: Annotated[Path, typer.Option(help="New folder for the merged record.", show_default=False)],
    clock_uncertainty_s: Annotated[
        float | None, typer.Option(help="How far the machines' clocks may be apart.", show_default=False)
    ] = None,
) -> None:
    """Make one record of the parts that several load generators wrote of one test."""
    from moeprof.cli.output import new_folder
    from moeprof.core.record.merge import merge as merged

    output = new_folder(output_dir, "merged")
    merged(parts, output, uncertainty_s=clock_uncertainty_s)
    print(f"record: {output}; `moeprof report {output}` shows it")
