"""``moeprof audit``: one page for a decision."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moeprof.cli.options import ApiOption, PowerPriceOption, PueOption, RentOption, print_option, write_option
from moeprof.core.workload.overrides import parse_api
from moeprof.render import TABLE, parse_formats


def audit(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders; each has a page of its own.")],
    usd_per_device_hour: RentOption = None,
    usd_per_kwh: PowerPriceOption = None,
    pue: PueOption = None,
    api: ApiOption = None,
    format: Annotated[str, print_option("audit")] = TABLE,
    write: Annotated[str | None, write_option("audit")] = None,
    picture: Annotated[bool, typer.Option("--picture", help="Also audit.png, by a headless browser.")] = False,
    output_dir: Annotated[Path | None, typer.Option(help="New folder for them.")] = None,
) -> None:
    """One page for a decision: should I serve this model, at what load, against which price, and how sure is that."""
    from moeprof.analysis.report.audit import audit_document
    from moeprof.analysis.report.result import Audit
    from moeprof.api import load
    from moeprof.cli.output import new_folder, print_result, write_and_say
    from moeprof.render.picture import find_browser, take_picture

    formats = parse_formats(write or "", "audit")
    parse_api(api)
    browser = find_browser() if picture else None
    for path in runs:
        run = load(path, usd_per_device_hour=usd_per_device_hour, usd_per_kwh=usd_per_kwh, pue=pue, api=api)
        result = Audit(summary=run.summary, document=audit_document(run.summary))
        if formats or browser is not None:
            name = f"{path.resolve().name}-audit"
            own = output_dir if output_dir is None or len(runs) == 1 else output_dir / name
            folder = new_folder(own, name)
            write_and_say(result, folder, formats)
            if browser is not None:
                typer.echo(f"Wrote {take_picture(browser, result.document, folder / 'audit.png')}", err=True)
        print_result(result, format, folded=True)
