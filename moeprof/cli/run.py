"""``moeprof run``: replay, record, report."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from moeprof.cli.options import Overrides, apply
from moeprof.core.errors import EngineError, InputError, InterruptedRunError, MoeprofError

if TYPE_CHECKING:
    from moeprof.analysis.pricing import Pricing
    from moeprof.capture.resume import Resume
    from moeprof.capture.run import Prepared
    from moeprof.core.record import Record
    from moeprof.core.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Printing:
    """What to write (``formats``), what to print (``form``), and whether to stay silent meanwhile."""

    formats: Sequence[str]
    form: str
    quiet: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the record goes: a new folder, or that of an interrupted run."""

    output_dir: Path | None
    keep_content: bool
    resume: Resume | None = None

    def adapt(self, workload: Workload) -> Workload:
        """The workload with what an interrupted run had decided already."""
        return workload if self.resume is None else self.resume.with_kv_tokens(workload)


def run(
    workload: Annotated[Path, typer.Argument(help="Workload file (YAML).", show_default=False)],
    output_dir: Annotated[Path | None, typer.Option(help="Folder for the record; must be new or empty.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with this interrupted run of the same workload.", show_default=False)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show schedule, memory, time and cost; run nothing.")
    ] = False,
    request_rate: Annotated[float | None, typer.Option(help="Requests per second (synthetic open loop).")] = None,
    burstiness: Annotated[float | None, typer.Option(help="Shape of gamma arrivals; 1 is Poisson.")] = None,
    max_concurrency: Annotated[int | None, typer.Option(help="Requests in flight (closed loop).")] = None,
    num_prompts: Annotated[int | None, typer.Option(help="Requests to send.")] = None,
    num_warmups: Annotated[int | None, typer.Option(help="Warm-up requests.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of arrivals, lengths and content.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Passes over the schedule.")] = None,
    launches: Annotated[int | None, typer.Option(help="Fresh processes per model.")] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Force the asked output lengths.")] = False,
    goodput: Annotated[list[str] | None, typer.Option(help="SLO in ms, as ttft:500 or tpot:50; may repeat.")] = None,
    usd_per_device_hour: Annotated[float | None, typer.Option(help="Price of one device for an hour.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of a worker.")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="End the run cleanly after so long.")] = None,
    save_detailed: Annotated[bool, typer.Option("--save-detailed", help="Keep every pick of every token.")] = False,
    no_content: Annotated[bool, typer.Option("--no-content", help="Keep token ids out of the record.")] = False,
    label: Annotated[str | None, typer.Option(help="A note for the record.")] = None,
    write: Annotated[str, typer.Option(help="Files to write: md,html,json,csv.")] = "md,html,json,csv",
    format: Annotated[Literal["table", "json", "csv", "md"], typer.Option(help="What to print.")] = "table",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
) -> None:
    """Replay a workload through its models, keep the record, and say what a million tokens cost."""
    from moeprof.capture.parallel.rendezvous import leads_torchrun
    from moeprof.capture.run import prepare
    from moeprof.cli.dry_run import show_plan
    from moeprof.core.workload import load_workload
    from moeprof.render import parse_formats

    formats = parse_formats(write)
    place = _place(output_dir, resume, keep_content=not no_content)
    options = Overrides(
        request_rate=request_rate, burstiness=burstiness, max_concurrency=max_concurrency, num_prompts=num_prompts,
        num_warmups=num_warmups, seed=seed, rounds=rounds, launches=launches, ignore_eos=ignore_eos or None,
        goodput=tuple(goodput or ()), usd_per_device_hour=usd_per_device_hour, device=device, threads=threads,
        max_minutes=max_minutes, save_detailed=save_detailed, label=label,
    )  # fmt: skip
    text = workload.read_text(encoding="utf-8", errors="replace") if workload.is_file() else ""
    resolved = place.adapt(apply(load_workload(workload), options))
    if not leads_torchrun(resolved.engine.parallel, os.environ):
        return
    prepared = prepare(resolved, must_fit=not dry_run)
    if prepared.device_why is not None and not quiet:
        print(f"device: {prepared.device_why}", file=sys.stderr)
    pricing = _pricing(prepared, resolved)
    if dry_run:
        show_plan(prepared, pricing, format)
        prepared.fit.require()
        return
    printing = Printing(formats=formats, form=format, quiet=quiet)
    _replay(prepared, pricing, place, printing, text=text)


def _pricing(prepared: Prepared, workload: Workload) -> Pricing:
    """What the run's devices cost."""
    from moeprof.analysis.pricing import resolve_pricing

    machine = prepared.environment
    return resolve_pricing(
        workload.prices.for_device(prepared.device), machine["device_name"], num_vcpus=machine["cpu_cores"],
        num_devices=machine["num_devices"],
    )  # fmt: skip


def _place(output_dir: Path | None, resume: Path | None, *, keep_content: bool) -> Place:
    from moeprof.capture.resume import open_interrupted

    if resume is None:
        return Place(output_dir=output_dir, keep_content=keep_content)
    if output_dir is not None:
        raise InputError("--resume goes on in the run's own folder: leave --output-dir out")
    return Place(output_dir=resume, keep_content=keep_content, resume=open_interrupted(resume))


def _replay(prepared: Prepared, pricing: Pricing, place: Place, printing: Printing, *, text: str) -> None:
    """Run it, write the report files beside the record, print the first screen, and say how it ended."""
    from moeprof.capture.run import execute, new_run_folder
    from moeprof.capture.signals import SignalWatch
    from moeprof.cli.printing import print_document, summarise_record, write_files
    from moeprof.cli.progress import make_audience
    from moeprof.cli.sweep_lines import sweep_lines
    from moeprof.core.record import open_record

    folder = place.output_dir
    if folder is None or place.resume is None:
        folder = new_run_folder(prepared.workload, folder, Path("reports"))
    with SignalWatch() as signals, make_audience(pricing, quiet=printing.quiet) as audience:
        status = execute(
            prepared,
            folder,
            audience,
            signals,
            workload_text=text,
            pricing=pricing.to_json(),
            keep_content=place.keep_content,
            resume=place.resume,
        )
    record = open_record(folder)
    summary, document = summarise_record(record, pricing)
    write_files(summary, document, folder, printing.formats)
    print_document(document, summary, printing.form)
    for line in sweep_lines(record):
        print(line, file=sys.stderr)
    print(f"record: {folder}", file=sys.stderr)
    if "html" in printing.formats:
        print(f"report: {folder / 'report.html'}", file=sys.stderr)
    if signals.number:
        raise InterruptedRunError(
            f"stopped; what was measured is kept: moeprof report {folder}; to go on: --resume {folder}",
            signals.number,
        )
    if status == "failed":
        raise _failure(record)


def _failure(record: Record) -> MoeprofError:
    """What failed, as an error; bad input is exit code 2 only where no model could run."""
    failed = "; ".join(f"{model.name} failed: {model.error}" for model in record.models if model.status == "failed")
    codes = {model.get("exit_code") for model in record.experiment["models"]}
    return InputError(failed) if codes == {InputError.exit_code} else EngineError(failed)
