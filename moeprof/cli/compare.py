"""``moeprof compare``: the models of a run beside each other, or runs against each other. Needs no torch and no GPU."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moeprof.cli.options import ApiOption, PowerPriceOption, PueOption, RentOption, print_option, write_option
from moeprof.core.errors import InputError
from moeprof.core.workload.overrides import parse_api
from moeprof.render import TABLE, parse_formats

if TYPE_CHECKING:
    from moeprof.core.record.layout import Record


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="One run folder with several models, or several run folders.")
    ],
    reference: Annotated[str | None, typer.Option(help="Model, or run of several, that ratios are to.")] = None,
    allow: Annotated[str | None, typer.Option(help="What may differ between the runs: dtype,...")] = None,
    all_metrics: Annotated[bool, typer.Option("--all", help="Every metric on the terminal too.")] = False,
    usd_per_device_hour: RentOption = None,
    usd_per_kwh: PowerPriceOption = None,
    pue: PueOption = None,
    api: ApiOption = None,
    format: Annotated[str, print_option("compare")] = TABLE,
    write: Annotated[str | None, write_option("compare")] = None,
    output_dir: Annotated[Path | None, typer.Option(help="New folder for them.")] = None,
) -> None:
    """What sparsity bought: every metric of a dense and a sparse model, or of two runs, with ratio and verdict."""
    from moeprof.analysis.compare.comparable import check_allow
    from moeprof.analysis.metrics.cost.pricing import repriced
    from moeprof.cli.output import new_folder, print_result, write_and_say
    from moeprof.core.record.layout import open_record

    formats = parse_formats(write or "", "compare")
    allowed = check_allow(allow.split(",")) if allow else frozenset()
    records = [open_record(path) for path in runs]
    _check_enough(records)
    named = _checked_reference(reference, runs, records)
    asked = parse_api(api)
    pricings = [
        repriced(r, usd_per_device_hour=usd_per_device_hour, usd_per_kwh=usd_per_kwh, pue=pue).with_api(asked)
        for r in records
    ]

    from moeprof.analysis.metrics.summary import summarise
    from moeprof.analysis.report.compare import compare_document

    summaries = [summarise(record, pricing) for record, pricing in zip(records, pricings, strict=True)]
    comparison = compare_document(summaries, reference=named, allow=allowed)
    if formats:
        write_and_say(comparison, new_folder(output_dir, f"{runs[0].resolve().name}-compare"), formats)
    print_result(comparison, format, folded=all_metrics)


def _check_enough(records: Sequence[Record]) -> None:
    if len(records) == 1 and len(records[0].models) < 2:
        names = [model.name for model in records[0].models]
        what = f"only the model {names[0]}" if names else "no model"
        raise InputError(
            f"nothing to compare: {records[0].run} has {what}; give another run or a workload with several models"
        )


def _checked_reference(reference: str | None, paths: Sequence[Path], records: Sequence[Record]) -> str | None:
    """A model of the one run, or one of several runs: by its name, or as its path was given."""
    if reference is None:
        return None
    if len(records) > 1:
        names = list(dict.fromkeys(record.run for record in records))
        by_path = {path.resolve(): record.run for path, record in zip(paths, records, strict=True)}
        found = reference if reference in names else by_path.get(Path(reference).resolve())
    else:
        names = [model.name for model in records[0].models]
        found = reference if reference in names else None
    if found is not None:
        return found
    close = difflib.get_close_matches(reference, names, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    what = "run" if len(records) > 1 else "model"
    raise InputError(f"--reference {reference!r}: there is no such {what}; allowed: {', '.join(names)}{hint}")
