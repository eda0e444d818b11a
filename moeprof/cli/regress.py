"""``moeprof regress``: did it get worse? Against a stored baseline, or two revisions measured in turn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from moeprof.core.errors import InputError


def regress(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="Run folder to judge, or one that --ab wrote.")
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="Name of a baseline, its file, or another run folder.")] = None,
    ab: Annotated[
        tuple[Path, Path] | None, typer.Option(metavar="BASE NEW", help="Two workloads, measured in turn now.")
    ] = None,
    base_python: Annotated[
        Path | None, typer.Option(help="With --ab: the base side's own interpreter; two processes then.")
    ] = None,
    launches: Annotated[int | None, typer.Option(help="With --ab: launch pairs; else 6.")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="With --ab: bound on one launch pair.")] = None,
    until_precise: Annotated[
        bool, typer.Option("--until-precise", help="With --ab: add pairs until the intervals are narrow enough.")
    ] = False,
    max_minutes: Annotated[float | None, typer.Option(help="With --ab: begin no launch pair after so long.")] = None,
    fail_on: Annotated[
        list[str] | None, typer.Option(metavar="METRIC:THRESHOLD", help="A gate, or a group of them; may repeat.")
    ] = None,
    gates: Annotated[Path | None, typer.Option(help="File of gates; else regress.yaml where there is one.")] = None,
    allow: Annotated[str | None, typer.Option(help="Facts that may differ: device,revision,...")] = None,
    allow_undecided: Annotated[
        bool, typer.Option("--allow-undecided", help="Exit 0 where a gate cannot tell.")
    ] = False,
    baselines: Annotated[Path, typer.Option(help="Folder of baselines.")] = Path("baselines"),
    last: Annotated[int, typer.Option(help="Baselines of the trend in the HTML page.")] = 20,
    all_metrics: Annotated[bool, typer.Option("--all", help="Everything, not only what changed.")] = False,
    usd_per_device_hour: Annotated[float | None, typer.Option(help="Price the new run at this rent.")] = None,
    device: Annotated[str | None, typer.Option(help="With --ab: auto, cpu, cuda or cuda:N.")] = None,
    threads: Annotated[int | None, typer.Option(help="With --ab: CPU threads of a worker.")] = None,
    format: Annotated[Literal["table", "json", "csv", "md"], typer.Option(help="What to print.")] = "table",
    write: Annotated[
        str | None,
        typer.Option(
            help="Files to write: md,html,json,csv,comment,junit,github,benchmark-action,bmf,codequality,metrics."
        ),
    ] = None,
    output_dir: Annotated[Path | None, typer.Option(help="New folder for them, and for what --ab measures.")] = None,
    github: Annotated[
        bool | None, typer.Option("--github/--no-github", help="Annotations and step summary; on under GitHub Actions.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
) -> None:
    """Judge a run against a baseline, or measure two revisions in turn: exit 0 fine, 3 regression, 4 cannot tell."""
    from moeprof.cli.regress_ab import AbOptions, measured_pairs
    from moeprof.cli.regress_judge import Choices, judge_pairs_folder, judge_run
    from moeprof.cli.regress_output import Output, show
    from moeprof.core.record_pairs import is_pairs_record

    _check_usage(run, baseline, ab, base_python, launches, max_seconds, until_precise, max_minutes)
    output = Output.checked(
        form=format, write=write, folder=output_dir, all_metrics=all_metrics, github=github, run=run
    )
    choices = Choices(
        fail_on=tuple(fail_on or ()), gates_file=gates, allow=allow, allow_undecided=allow_undecided,
        baselines=baselines, last=last, usd_per_device_hour=usd_per_device_hour,
    )  # fmt: skip
    choices.check()
    if ab is not None:
        options = AbOptions(
            base_python=base_python, launches=launches, max_seconds=max_seconds, until_precise=until_precise,
            max_minutes=max_minutes, device=device, threads=threads, usd_per_device_hour=usd_per_device_hour,
            quiet=quiet,
        )  # fmt: skip
        folder = measured_pairs(ab[0], ab[1], options, choices, output_dir)
        judged = judge_pairs_folder(folder, choices)
        output = output.into(folder)
    else:
        assert run is not None, "checked above"
        judged = judge_pairs_folder(run, choices) if is_pairs_record(run) else judge_run(run, baseline, choices)
    show(judged, output)


def _check_usage(run: Path | None, baseline: str | None, ab: tuple[Path, Path] | None, *only_with_ab: object) -> None:
    from moeprof.core.record_pairs import is_pairs_record

    if ab is not None:
        if run is not None or baseline is not None:
            raise InputError("--ab measures both sides now: leave RUN and --baseline out, or leave --ab out")
        return
    if run is None:
        raise InputError("nothing to judge: give a RUN with --baseline NAME|FILE|RUN, or --ab BASE NEW")
    if any(only_with_ab):
        raise InputError(
            "--base-python, --launches, --max-seconds, --until-precise and --max-minutes are for --ab, which measures; "
            "a RUN was measured already"
        )
    if baseline is None and not is_pairs_record(run):
        raise InputError(f"{run}: nothing to judge it against; give --baseline NAME|FILE|RUN")
