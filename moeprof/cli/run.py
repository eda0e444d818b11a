"""``moeprof run``: replay, record, report.

``moeprof run --dry-run``: schedule, lengths, memory fit, expected minutes and dollars, before weights load.

How the sweep of each model ended, in a line for the end of a run: where it saturated, or that nothing was stable.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer

from moeprof.cli.options import ApiOption, PriceOption, SessionsOption, print_option, write_option
from moeprof.cli.output import print_result
from moeprof.core import units
from moeprof.core.errors import EngineError, InputError, InterruptedRunError, MoeprofError
from moeprof.core.turns import NONE
from moeprof.core.workload.overrides import Overrides, apply
from moeprof.render import TABLE, parse_formats

if TYPE_CHECKING:
    from moeprof.capture.memory.predict import Fit
    from moeprof.capture.run.prepare import Prepared
    from moeprof.capture.run.resume import Resume
    from moeprof.core.record.layout import LaunchRecord, Record
    from moeprof.core.trace import IntArray, Schedule
    from moeprof.core.workload.workload import Workload

START_S = 20.0  # a worker's imports, loading, warm-up, calibration, overhead: about this on a small model


def show_plan(prepared: Prepared, form: str = "table") -> None:
    """Print the plan to stdout."""
    from moeprof.analysis.report.result import Listing

    workload, fit = prepared.workload, prepared.fit
    schedule = prepared.schedules[workload.models[0].name].measured
    rows = [
        ("device", f"{prepared.environment.device_name} ({prepared.device})")
        if (where := workload.engine.where(workload.models)) is None
        else ("server", where),
        ("price", prepared.pricing.words),
        ("requests", f"{len(schedule)}, {schedule.pattern}" + _span(schedule)),
        ("input tokens", _lengths(schedule.input_tokens)),
        ("output tokens", f"{_lengths(schedule.output_tokens)}, {schedule.outputs.replace('_', ' ')}"),
        ("classes", ", ".join(schedule.classes)),
        *_sessions(schedule),
    ]
    if fit.models:
        room = f"{fit.kv_tokens:,} tokens ({fit.wanted_kv_tokens:,} would hold all that can be in flight)"
        rows += [("KV cache", room), *_memory(prepared)]
    rows += _too_long(prepared, schedule)
    together = "all models at once, rounds interleaved" if fit.together else "one model at a time, with reloads"
    rows.append(("models", together))
    rows.append(("rounds", _rounds_text(workload)))
    rows += [("warning", text) for text in workload.few_repeats]
    rows += [*_sweep(prepared), *_in_turn(prepared)]
    seconds = _expected_s(prepared, schedule)
    if seconds is not None:
        hourly = prepared.pricing.usd_per_hour
        cost = "" if hourly is None else f", {units.usd(seconds * hourly / 3600)}"
        bound = "or less"
        if schedule.waits:
            bound = "and the time that answers take for which turns wait"
        more = " and more" if cost and schedule.waits else ""
        rows.append(("expected", f"{units.seconds(seconds)} {bound}{cost}{more}"))
    else:
        rows.append(("expected", "as long as the models take: the loop is not paced by the clock"))
    rows += [("note", f"{note.count:,}: {note.text}" if note.count else note.text) for note in schedule.notes]
    print_result(Listing(rows=[{"what": what, "plan": plan} for what, plan in rows]), form)
    if form in (TABLE, "md") and fit.models:
        print()
        print_result(Listing(rows=memory_table(fit)), form)


def _sessions(schedule: Schedule) -> list[tuple[str, str]]:
    """How many conversations there are, and whether their turns wait for answers."""
    turns = schedule.turns
    if turns is None:
        return []
    first = int((turns.after == NONE).sum())
    deepest = int(turns.number.max())
    kind = "closed: turns wait for answers" if turns.is_closed else "open: turns do not wait for answers"
    text = f"{kind}; {first:,} first turns, {len(schedule) - first:,} later ones, {deepest} deep at most"
    return [("sessions", text)]


def _rounds_text(workload: Workload) -> str:
    return f"{workload.num_rounds}" + (f" in each of {workload.launches} launches" if workload.launches > 1 else "")


def memory_table(fit: Fit) -> list[dict[str, str | None]]:
    """One row per model: what it needs, part by part, and whether it fits. Parts that no model has are left out."""
    verdicts = {True: "fits", False: "does not fit", None: "unknown until it loads"}
    rows: list[dict[str, str | None]] = [
        {
            "model": name,
            "weights": _bytes(model.weights_bytes),
            "loading": _bytes(model.load_extra_bytes),
            "KV cache": _bytes(model.kv_bytes(fit.kv_tokens)) if model.kv_bytes_per_token else "unknown",
            "step": _bytes(model.activation_bytes),
            "workspace": _bytes(model.workspace_bytes),
            "process": _bytes(model.base_bytes + model.kept_bytes),
            "instruments": _bytes(model.instruments_bytes),
            "needs": _bytes(fit.needed_bytes(name)) or "unknown",
            "verdict": verdicts[fit.fits(name)],
        }
        for name, model in fit.models.items()
    ]
    return [{key: value for key, value in row.items() if any(other[key] for other in rows)} for row in rows]


def _bytes(value: int | None) -> str | None:
    return units.num_bytes(value) if value else None


def _memory(prepared: Prepared) -> list[tuple[str, str]]:
    """What may be used, and what each model needs of it."""
    fit = prepared.fit
    margin = f"{units.num_bytes(fit.margin_bytes)} stays as margin (engine.memory_margin_ratio)"
    where = " below the limit of this container" if fit.memory.is_limited else ""
    free = f"{units.num_bytes(fit.free_bytes)} is free{where}"
    usable = f"{units.num_bytes(fit.usable_bytes)} may be used: {free}, {margin}"
    rows = [("memory", usable)]
    for name in fit.models:
        need = fit.needed_bytes(name)
        text = "unknown until it loads" if need is None else f"about {units.num_bytes(need)}"
        verdict = "" if need is None else ": fits" if fit.fits(name) else ": does not fit"
        rows.append((f"memory, {name}", f"{text} of {units.num_bytes(fit.usable_bytes)}{verdict}"))
    return rows


def _in_turn(prepared: Prepared) -> list[tuple[str, str]]:
    """Lock-step and ladder: loads, and the longest that the timed part can take."""
    rows = []
    for what, settings in (("lock-step", prepared.workload.lockstep), ("ladder", prepared.workload.ladder)):
        if settings is not None:
            loads = len(settings.concurrency) or 1
            longest = units.seconds(loads * settings.max_seconds * prepared.workload.launches)
            rows.append((what, f"{loads} load{'s' * (loads > 1)}, {longest} or less beside loading and warming up"))
    return rows


def _sweep(prepared: Prepared) -> list[tuple[str, str]]:
    """Points, passes and the longest that they can take."""
    workload, sweep = prepared.workload, prepared.workload.sweep
    if sweep is None:
        return []
    models = len(sweep.models or workload.models)
    passes = len(sweep.points) * sweep.rounds * models * workload.launches
    points = prepared.schedules[workload.models[0].name].points
    sizes = sorted({len(point.measured) for point in points})
    requests = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    longest = units.seconds(passes * sweep.max_seconds)
    text = f"{len(points)} points of {requests} requests, {passes} passes of {models} models, {longest} or less"
    notes = {note.text: note for point in points for note in point.measured.notes if note.code == "few_requests"}
    return [("sweep", text), *(("note", note.text) for note in notes.values())]


def _too_long(prepared: Prepared, schedule: Schedule) -> list[tuple[str, str]]:
    """Requests that the KV cache or a model's position limit will refuse."""
    rows = []
    lengths = (schedule.input_tokens + schedule.output_tokens).tolist()
    longer = sum(length > prepared.fit.kv_tokens for length in lengths)
    if longer:
        rows.append(("refused", f"{longer:,} of {len(lengths):,} requests are longer than the KV cache"))
    for name, source in prepared.sources.items():
        limit = source.config.get("max_position_embeddings")
        over = sum(length > limit for length in lengths) if isinstance(limit, int) else 0
        if over:
            rows.append((f"refused, {name}", f"{over:,} of {len(lengths):,} requests are over its {limit:,} tokens"))
    return rows


def _span(schedule: Schedule) -> str:
    if schedule.pattern == "open":
        return f", over {units.seconds(float(schedule.arrival_s.max()))}"
    return f", {schedule.concurrency} in flight" if schedule.concurrency else ""


def _lengths(tokens: IntArray) -> str:
    values = sorted(tokens.tolist())
    p99 = values[round(0.99 * (len(values) - 1))]
    return f"{sum(values):,} in all, p50 {median(values):.0f}, p99 {p99}, longest {values[-1]}"


def _expected_s(prepared: Prepared, schedule: Schedule) -> float | None:
    """Open-loop passes last as long as their arrivals; the capacity pass is taken to be no longer."""
    if schedule.pattern != "open":
        return None
    workload = prepared.workload
    passes = 2 if workload.instruments.capacity else 1
    per_model = START_S + workload.num_rounds * passes * float(schedule.arrival_s.max())
    return per_model * len(workload.models) * workload.launches


def sweep_lines(record: Record) -> Iterator[str]:
    """One line per model and launch whose sweep met a saturated rate or was cut."""
    for model in record.models:
        for launch in model.launches:
            where = f"sweep, {model.name}" + (f", launch {launch.number}" if len(model.launches) > 1 else "")
            yield from (f"{where}: {said}" for said in launch_lines(launch))


def launch_lines(launch: LaunchRecord) -> Iterator[str]:
    """What one launch's sweep has to say."""
    judged: dict[float, list[bool | None]] = {}
    cut = []
    for swept in launch.sweep:
        point, info = swept.info.sweep, swept.info
        if info.status == "cut":
            cut.append(swept.name)
        if point is not None and point.request_rate is not None and info.saturation is not None:
            judged.setdefault(point.request_rate, []).append(info.saturation.saturated)
    stopped = launch.info.sweep_stopped
    if judged and not any(False in said for said in judged.values()):
        rate = min(judged)
        if any(True in said for said in judged.values()):
            yield f"no stable point: even {rate:g} requests/s is saturated; give lower rates"
        else:
            yield f"no stable point is known: the passes are too short to tell from {rate:g} requests/s on"
    elif stopped is not None:
        yield stopped.reason
    if cut:
        yield f"cut before all requests were served: {', '.join(cut)}"


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
        return workload if self.resume is None else self.resume.as_settled(workload)


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
    sessions: SessionsOption = None,
    num_warmups: Annotated[int | None, typer.Option(help="Warm-up requests.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of arrivals, lengths and content.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Passes over the schedule.")] = None,
    launches: Annotated[int | None, typer.Option(help="Fresh processes per model.")] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Force the asked output lengths.")] = False,
    goodput: Annotated[list[str] | None, typer.Option(help="SLO in ms, as ttft:500 or tpot:50; may repeat.")] = None,
    usd_per_device_hour: PriceOption = None,
    api: ApiOption = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of a worker.")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="End the run cleanly after so long.")] = None,
    save_detailed: Annotated[bool, typer.Option("--save-detailed", help="Keep every pick of every token.")] = False,
    no_content: Annotated[bool, typer.Option("--no-content", help="Keep token ids out of the record.")] = False,
    label: Annotated[str | None, typer.Option(help="A note for the record.")] = None,
    write: Annotated[str, write_option("run")] = "md,html,json,csv",
    format: Annotated[str, print_option("run")] = TABLE,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
) -> None:
    """Replay a workload through its models, keep the record, and say what a million tokens cost."""
    from moeprof.capture.engines import engine_kinds
    from moeprof.capture.parallel.rendezvous import leads_torchrun
    from moeprof.capture.run.prepare import check_output_dir, prepare
    from moeprof.core.workload.workload import load_workload
    from moeprof.core.yamlfile import text_of

    formats = parse_formats(write, "run")
    place = _place(output_dir, resume, keep_content=not no_content)
    options = Overrides(
        request_rate=request_rate, burstiness=burstiness, max_concurrency=max_concurrency, num_prompts=num_prompts,
        sessions=sessions, num_warmups=num_warmups, seed=seed, rounds=rounds, launches=launches,
        ignore_eos=ignore_eos or None, goodput=tuple(goodput or ()), usd_per_device_hour=usd_per_device_hour,
        api=api, device=device, threads=threads, max_minutes=max_minutes, save_detailed=save_detailed, label=label,
    )  # fmt: skip
    text = text_of(workload)
    resolved = place.adapt(apply(load_workload(workload, engine_kinds()), options))
    if not leads_torchrun(resolved.engine.parallel, os.environ):
        return
    if output_dir is not None and resume is None:
        check_output_dir(output_dir)
    prepared = prepare(resolved, must_fit=not dry_run)
    _say_choices(prepared, quiet=quiet)
    if dry_run:
        show_plan(prepared, format)
        prepared.fit.require()
        return
    _replay(prepared, place, Printing(formats=formats, form=format, quiet=quiet), text=text)


def _say_choices(prepared: Prepared, *, quiet: bool) -> None:
    """What was chosen for the user, and why."""
    for what, reason in (("device", prepared.device_why), ("engine", prepared.engine_why)):
        if reason is not None and not quiet:
            print(f"{what}: {reason}", file=sys.stderr)


def _place(output_dir: Path | None, resume: Path | None, *, keep_content: bool) -> Place:
    from moeprof.capture.run.resume import open_interrupted

    if resume is None:
        return Place(output_dir=output_dir, keep_content=keep_content)
    if output_dir is not None:
        raise InputError("--resume goes on in the run's own folder: leave --output-dir out")
    return Place(output_dir=resume, keep_content=keep_content, resume=open_interrupted(resume))


def _replay(prepared: Prepared, place: Place, printing: Printing, *, text: str) -> None:
    """Run it, write the report files beside the record, print the first screen, and say how it ended."""
    from moeprof.capture.run.prepare import execute, new_run_folder
    from moeprof.capture.run.status import writing
    from moeprof.cli.output import report_of
    from moeprof.cli.progress import progress_listener
    from moeprof.core.record.layout import open_record
    from moeprof.core.signals import SignalWatch
    from moeprof.render import write

    folder = place.output_dir
    if folder is None or place.resume is None:
        folder = new_run_folder(prepared.workload, folder, Path("reports"))
        for said in () if printing.quiet else prepared.workload.few_repeats:
            print(f"warning: {said}", file=sys.stderr)
    go_on = f"to go on: --resume {folder}"
    with (
        SignalWatch() as signals,
        writing(folder, f"go on with --resume {folder}"),
        progress_listener(prepared.pricing, quiet=printing.quiet) as listener,
    ):
        status = execute(
            prepared,
            folder,
            listener,
            signals,
            workload_text=text,
            keep_content=place.keep_content,
            resume=place.resume,
        )
    if signals.number in (signal.SIGTERM, signal.SIGHUP):  # who sends these does not wait, and reads no page now
        raise InterruptedRunError(f"{_kept(folder)}; {go_on}", signals.number)
    record = open_record(folder)
    report = report_of(record, prepared.pricing)
    try:
        write(report, folder, printing.formats)
    except InputError as error:
        if status == "failed":  # that is the worse news
            raise _failure(record) from error
        raise
    print_result(report, printing.form)
    for line in sweep_lines(record):
        print(line, file=sys.stderr)
    print(f"record: {folder}", file=sys.stderr)
    if "html" in printing.formats:
        print(f"report: {folder / 'report.html'}", file=sys.stderr)
    if signals.number:
        raise InterruptedRunError(f"{_kept(folder)}; {go_on}", signals.number)
    if status == "failed":
        raise _failure(record)


def _kept(folder: Path) -> str:
    return f"stopped; what was measured is kept: moeprof report {folder}"


def _failure(record: Record) -> MoeprofError:
    """What failed, as an error; bad input is exit code 2 only where no model could run."""
    failed = "; ".join(f"{model.name} failed: {model.error}" for model in record.models if model.status == "failed")
    codes = {model.exit_code for model in record.experiment.models}
    return InputError(failed) if codes == {InputError.exit_code} else EngineError(failed)
