"""``moeprof report``: render a record again, at other prices or in other forms. Needs no torch and no GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer


def report(
    run: Annotated[Path, typer.Argument(help="Run folder.", show_default=False)],
    usd_per_device_hour: Annotated[float | None, typer.Option(help="Price it again at this rent.")] = None,
    usd_per_kwh: Annotated[float | None, typer.Option(help="Power price, when the rent excludes power.")] = None,
    pue: Annotated[float | None, typer.Option(help="Power usage effectiveness.")] = None,
    format: Annotated[Literal["table", "json", "csv", "md"], typer.Option(help="What to print.")] = "table",
    write: Annotated[str | None, typer.Option(help="Files to write: md,html,json,csv.")] = None,
    output_dir: Annotated[Path | None, typer.Option(help="New folder for them.")] = None,
) -> None:
    """Show a run that was recorded, at its own or at other prices. The record itself is never touched."""
    from moeprof.cli.output import new_folder, print_document, summarise_record, write_files
    from moeprof.core.pricing import repriced
    from moeprof.core.record.layout import open_record
    from moeprof.render import parse_formats

    formats = parse_formats(write) if write else ()
    record = open_record(run)
    pricing = repriced(record, usd_per_device_hour=usd_per_device_hour, usd_per_kwh=usd_per_kwh, pue=pue)
    summary, document = summarise_record(record, pricing)
    folder = new_folder(output_dir, f"{run.resolve().name}-report") if formats else run
    for path in write_files(summary, document, folder, formats):
        print(f"Wrote {path}", file=sys.stderr)
    print_document(document, summary, format)
