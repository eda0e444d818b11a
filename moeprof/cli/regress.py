"""``moeprof regress``: did it get worse? Against a stored baseline, or two revisions measured in turn."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from moeprof.cli.options import NewRentOption, print_option, write_option
from moeprof.core.errors import InputError
from moeprof.render import TABLE

RunArgument = Annotated[
    Path | None, typer.Argument(metavar="[RUN]", help="Run folder to judge, or one that --ab wrote.")
]
BaselineOption = Annotated[str | None, typer.Option(help="Name of a baseline, its file, or another run folder.")]
AbOption = Annotated[
    tuple[Path, Path] | None, typer.Option(metavar="BASE NEW", help="Two workloads, measured in turn now.")
]
BasePythonOption = Annotated[
    Path | None, typer.Option(help="With --ab: the base side's own interpreter; two processes then.")
]
LaunchesOption = Annotated[int | None, typer.Option(help="With --ab: launch pairs; else 6.")]
MaxSecondsOption = Annotated[float | None, typer.Option(help="With --ab: bound on one launch pair.")]
UntilPreciseOption = Annotated[
    bool,
    typer.Option("--until-precise", help="With --ab: add pairs until the intervals are narrow enough, and one more."),
]
MaxMinutesOption = Annotated[float | None, typer.Option(help="With --ab: begin no launch pair after so long.")]
FailOnOption = Annotated[
    list[str] | None, typer.Option(metavar="METRIC:THRESHOLD", help="A gate, or a group of them; may repeat.")
]
GatesOption = Annotated[Path | None, typer.Option(help="File of gates; else regress.yaml where there is one.")]
AllowOption = Annotated[str | None, typer.Option(help="Facts that may differ: device,revision,...")]
AllowUndecidedOption = Annotated[bool, typer.Option("--allow-undecided", help="Exit 0 where a gate cannot tell.")]
BaselinesOption = Annotated[Path, typer.Option(help="Folder of baselines.")]
LastOption = Annotated[int, typer.Option(min=2, help="Baselines of the trend in the HTML page.")]
AllOption = Annotated[bool, typer.Option("--all", help="Everything, not only what changed.")]
DeviceOption = Annotated[str | None, typer.Option(help="With --ab: auto, cpu, cuda or cuda:N.")]
ThreadsOption = Annotated[int | None, typer.Option(help="With --ab: CPU threads of a worker.")]
FormatOption = Annotated[str, print_option("regress")]
WriteOption = Annotated[str | None, write_option("regress")]
OutputOption = Annotated[Path | None, typer.Option(help="New folder for them, and for what --ab measures.")]
GithubOption = Annotated[
    bool | None, typer.Option("--github/--no-github", help="Annotations and step summary; on under GitHub Actions.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]


def regress(
    run: RunArgument = None,
    baseline: BaselineOption = None,
    ab: AbOption = None,
    base_python: BasePythonOption = None,
    launches: LaunchesOption = None,
    max_seconds: MaxSecondsOption = None,
    until_precise: UntilPreciseOption = False,
    max_minutes: MaxMinutesOption = None,
    fail_on: FailOnOption = None,
    gates: GatesOption = None,
    allow: AllowOption = None,
    allow_undecided: AllowUndecidedOption = False,
    baselines: BaselinesOption = Path("baselines"),
    last: LastOption = 20,
    all_metrics: AllOption = False,
    usd_per_device_hour: NewRentOption = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    format: FormatOption = TABLE,
    write: WriteOption = None,
    output_dir: OutputOption = None,
    github: GithubOption = None,
    quiet: QuietOption = False,
) -> None:
    """Judge a run against a baseline, or measure two revisions in turn: exit 0 fine, 3 regression, 4 cannot tell."""
    from moeprof.analysis.regress.check import Choices, judge_pairs_folder, judge_run
    from moeprof.cli.output import Output, show, telling
    from moeprof.cli.regress_ab import AbOptions, measured_pairs
    from moeprof.core.record.pairs import is_pairs_record

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
        with telling(output):
            folder = measured_pairs(ab[0], ab[1], options, choices, output_dir)
            judged = judge_pairs_folder(folder, choices)
        show(judged, output.into(folder))
    elif run is not None:
        with telling(output):
            pairs = is_pairs_record(run)
            judged = judge_pairs_folder(run, choices) if pairs else judge_run(run, str(baseline), choices, _note)
        show(judged, output)


def _note(text: str) -> None:
    print(f"moeprof: note: {text}", file=sys.stderr)


def _check_usage(run: Path | None, baseline: str | None, ab: tuple[Path, Path] | None, *only_with_ab: object) -> None:
    from moeprof.core.record.pairs import is_pairs_record

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
