"""``moeprof ladder``: where the gain went, rung by rung; nothing but the sparsity ladder of one MoE."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moeprof.cli.options import PriceOption, print_option, write_option
from moeprof.core.errors import EngineError, InputError, InterruptedRunError, WorkloadError
from moeprof.core.workload.overrides import Overrides, apply
from moeprof.render import TABLE, parse_formats

if TYPE_CHECKING:
    from moeprof.analysis.report.document import Document
    from moeprof.analysis.report.result import Comparison
    from moeprof.capture.run.prepare import Prepared
    from moeprof.core.record.layout import Record
    from moeprof.core.workload.workload import Workload


def ladder(
    workload: Annotated[Path, typer.Argument(help="Workload file (YAML) with an MoE.", show_default=False)],
    output_dir: Annotated[Path | None, typer.Option(help="Folder for the record; must be new or empty.")] = None,
    model: Annotated[str | None, typer.Option(help="The MoE; else the first of the workload.")] = None,
    concurrency: Annotated[str | None, typer.Option(help="Requests in flight, a ladder each: 1,8,64.")] = None,
    distinct: Annotated[str | None, typer.Option(help="Further rungs that touch so many experts: 4,16,64.")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="Bound on each ladder.")] = None,
    launches: Annotated[int | None, typer.Option(help="Fresh processes.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of the worker.")] = None,
    usd_per_device_hour: PriceOption = None,
    write: Annotated[str, write_option("compare")] = "md,html,json,csv",
    format: Annotated[str, print_option("compare")] = TABLE,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
) -> None:
    """Climb the sparsity ladder of an MoE between its dense twins: what dispatch, coverage and imbalance take away."""
    from moeprof.capture.engines import engine_kinds
    from moeprof.capture.run.prepare import prepare
    from moeprof.core.workload.workload import load_workload
    from moeprof.core.yamlfile import text_of

    formats = parse_formats(write, "compare")
    text = text_of(workload)
    options = Overrides(launches=launches, device=device, threads=threads, usd_per_device_hour=usd_per_device_hour)
    settings = {
        "model": model,
        "concurrency": None if concurrency is None else _numbers("--concurrency", concurrency),
        "distinct": None if distinct is None else _numbers("--distinct", distinct),
        "max_seconds": max_seconds,
    }
    resolved = ladder_workload(apply(load_workload(workload, engine_kinds()), options), settings)
    prepared = prepare(resolved)
    _climb(prepared, output_dir, formats, text=text, form=format, quiet=quiet)


def ladder_workload(workload: Workload, settings: Mapping[str, object]) -> Workload:
    """The workload with its ladder alone: one MoE and its two twins.

    Args:
        workload: with or without the key ``ladder``.
        settings: fields of :class:`moeprof.core.workload.studies.Ladder` that were given as options; None leaves
            one alone.

    Raises:
        WorkloadError: no MoE, or no such model.
    """
    from moeprof.capture.models.find import find_model
    from moeprof.capture.run.lockstep import choose_moe, ladder_twins
    from moeprof.core.workload.studies import Ladder

    given = {key: value for key, value in settings.items() if value is not None}
    workload = replace(workload, ladder=replace(workload.ladder or Ladder(), **given))  # type: ignore[arg-type]
    by_name = {spec.name: spec for spec in workload.models}
    configs = {spec.name: find_model(spec, by_name.get(spec.twin_of or "")).config for spec in workload.models}
    moe = choose_moe(workload, configs)
    models = (moe, *ladder_twins(workload, moe))
    return replace(workload, models=models, lockstep=None, sweep=None, claim=None)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise WorkloadError(f"{option} {text!r}: whole numbers with commas between them belong there: 1,8,64") from None


def _climb(
    prepared: Prepared,
    output_dir: Path | None,
    formats: tuple[str, ...],
    *,
    text: str,
    form: str,
    quiet: bool,
) -> None:
    from moeprof.analysis.report.compare import compare_document
    from moeprof.capture.run.prepare import execute, new_run_folder
    from moeprof.capture.run.status import writing
    from moeprof.cli.output import (
        print_result,
        report_of,
    )
    from moeprof.cli.progress import progress_listener
    from moeprof.core.record.layout import open_record
    from moeprof.core.signals import SignalWatch
    from moeprof.render import write

    folder = new_run_folder(prepared.workload, output_dir, Path("reports"))
    kept = f"what was measured is kept: moeprof report {folder}"
    with (
        SignalWatch() as signals,
        writing(folder, f"read it with moeprof report {folder}"),
        progress_listener(prepared.pricing, quiet=quiet) as listener,
    ):
        status = execute(prepared, folder, listener, signals, workload_text=text, only_ladder=True)
    if signals.number in (signal.SIGTERM, signal.SIGHUP):  # who sends these does not wait
        raise InterruptedRunError(f"stopped; {kept}", signals.number)
    record = open_record(folder)
    if status == "failed":
        failed = next(model for model in record.experiment.models if model.status == "failed")
        kind = InputError if failed.exit_code == InputError.exit_code else EngineError
        raise kind(f"{failed.error} (record: {folder})")
    report = report_of(record, prepared.pricing)
    comparison = only_ladder(compare_document([report.summary], reference=None), report.document, record)
    write(replace(report, document=comparison.document), folder, formats)
    write(comparison, folder, [name for name in formats if name in ("json", "csv")])
    print_result(comparison, form)
    print(f"record: {folder}", file=sys.stderr)
    if "html" in formats:
        print(f"report: {folder / 'report.html'}", file=sys.stderr)
    if signals.number:
        raise InterruptedRunError(f"stopped; {kept}", signals.number)


def only_ladder(comparison: Comparison, report: Document, record: Record) -> Comparison:
    """The page without what needs passes of their own, for a run that has none: the ladder's answer comes first."""
    from moeprof.analysis.report.sections.ladder import sentences
    from moeprof.analysis.sparsity.ladder import ladder_results

    said = sentences(ladder_results(record))
    headline = said[0] if said else "The ladder has too few steps to say anything: give it more seconds."
    sections = tuple(s for s in report.sections if s.name in ("ladder", "parameters", "memory", "machine"))
    subtitle = report.subtitle.partition("; *")[0]  # what stands there is about priced passes
    document = replace(
        report, headline=headline, notes=tuple(said[1:]), subtitle=subtitle, first_screen=(), sections=sections
    )
    return replace(comparison, document=document)
