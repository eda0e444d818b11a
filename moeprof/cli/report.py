"""``moeprof report``: render a record again, at other prices or in other forms. Needs no torch and no GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moeprof.cli.options import ApiOption, PowerPriceOption, PueOption, RentOption, print_option, write_option
from moeprof.core.workload.overrides import parse_api
from moeprof.render import TABLE, parse_formats


def report(
    run: Annotated[Path, typer.Argument(help="Run folder.", show_default=False)],
    usd_per_device_hour: RentOption = None,
    usd_per_kwh: PowerPriceOption = None,
    pue: PueOption = None,
    api: ApiOption = None,
    format: Annotated[str, print_option("run")] = TABLE,
    write: Annotated[str | None, write_option("run")] = None,
    output_dir: Annotated[Path | None, typer.Option(help="New folder for them.")] = None,
    all_metrics: Annotated[bool, typer.Option("--all", help="All figures and doubts on the terminal too.")] = False,
) -> None:
    """Show a run that was recorded, at its own or at other prices. The record itself is never touched."""
    from moeprof.analysis.metrics.cost.pricing import repriced
    from moeprof.cli.output import (
        new_folder,
        print_result,
        report_of,
        write_and_say,
    )
    from moeprof.core.record.layout import open_record

    formats = parse_formats(write or "", "run")
    record = open_record(run)
    pricing = repriced(record, usd_per_device_hour=usd_per_device_hour, usd_per_kwh=usd_per_kwh, pue=pue)
    pricing = pricing.with_api(parse_api(api))
    found = report_of(record, pricing)
    if formats:
        write_and_say(found, new_folder(output_dir, f"{run.resolve().name}-report"), formats)
    print_result(found, format, folded=all_metrics)
