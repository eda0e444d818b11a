"""``moeprof init``: copy starter workloads, or a CI job, into a project; write a workload for a trace.

What ``moeprof init --ci`` writes into a project: the CI system's job, a smoke workload, example gates, and the versions
that the job installs.

The files are data of the package (moeprof/data/ci). Two words in them are filled in here: where the workloads are, and
what pip has to install, which is read from how this moeprof was installed. The versions are those that are installed
here, moeprof's dependencies and theirs.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib import metadata, resources
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from moeprof.cli.trace import BlockTokens, Columns, SkipBadRows, TimestampUnit, columns_of
from moeprof.core.errors import InputError

if TYPE_CHECKING:
    from moeprof.core.workload.traffic import TraceSource

CiSystem = Literal["github", "gitlab"]
# name in moeprof/data/ci -> path in the project
JOBS: dict[CiSystem, tuple[str, str]] = {
    "github": ("github-workflow.yml", ".github/workflows/moeprof.yml"),
    "gitlab": ("gitlab-ci.yml", ".gitlab-ci.moeprof.yml"),
}
WORKLOADS = ("ci-smoke.yaml", "ci-smoke-moe.json")
GATES = "regress.yaml"
MAX_UP = 3  # folders upwards that a relative path may go
LOCK = "moeprof-constraints.txt"
LOCK_HEAD = """\
# What the CI job of moeprof installs, to the version: it is given to pip as PIP_CONSTRAINT. Written by
# `moeprof init --ci` from what was installed then. To renew it, install what you want and run
# `pip freeze --exclude moeprof --exclude-editable | sed 's/+.*//' > moeprof-constraints.txt`; then make a new baseline.
"""


def ci_files(system: CiSystem, workloads: Path, requirement: str) -> dict[Path, str]:
    """Path in the project -> text.

    Args:
        system: whose job to write.
        workloads: folder of the workload, relative to the root of the project.
        requirement: what pip installs.

    Raises:
        InputError: the folder is absolute or leaves the project, so that a job could not find it.
    """
    if workloads.is_absolute() or ".." in workloads.parts:
        raise InputError(f"{workloads}: found a folder outside of the project; with --ci give one relative to its root")
    folder = resources.files("moeprof").joinpath("data/ci")
    texts = {name: folder.joinpath(name).read_text(encoding="utf-8") for name in (*WORKLOADS, GATES, JOBS[system][0])}
    job, path = JOBS[system]
    filled = texts[job].replace("@MOEPROF@", requirement).replace("@WORKLOADS@", str(PurePosixPath(workloads)))
    return {
        Path(path): filled,
        **{workloads / name: texts[name] for name in WORKLOADS},
        Path(GATES): texts[GATES],
        Path(LOCK): LOCK_HEAD + "".join(f"{name}=={version}\n" for name, version in installed_versions().items()),
    }


def installed_versions(root: str = "moeprof", extra: str = "run") -> dict[str, str]:
    """Dependencies of ``root`` with an extra, and theirs, as far as they are installed: name -> version.

    Versions of builds (``2.13.0+cpu``) are cut to those of releases, because another machine takes another build.
    """
    found, waiting = dict[str, str](), [root]
    while waiting:
        try:
            package = metadata.distribution(waiting.pop())
        except metadata.PackageNotFoundError:
            continue  # of another system, or of an extra that is not installed
        name = re.sub(r"[-_.]+", "-", package.name).lower()
        if name in found:
            continue
        found[name] = package.version.partition("+")[0]
        for text in package.requires or ():
            needed, _, marker = text.partition(";")
            if "extra ==" not in marker or (name == root and f'extra == "{extra}"' in marker.replace("'", '"')):
                waiting += re.findall(r"^\s*([A-Za-z0-9][\w.-]*)", needed)
    found.pop(root, None)
    return dict(sorted(found.items()))


def requirement() -> str:
    """What pip needs to install this moeprof again: a pinned version, a revision of its repository, or a wheel's path.

    With the extra that runs models, because the job runs one. Read from ``direct_url.json`` (PEP 610), which pip writes
    for everything that does not come from an index.
    """
    installed = metadata.distribution("moeprof")
    text = installed.read_text("direct_url.json")
    if text is None:
        return f"moeprof[run]=={installed.version}"
    source: dict[str, Any] = json.loads(text)
    vcs = source.get("vcs_info")
    if vcs is not None:
        return f"moeprof[run] @ {vcs['vcs']}+{source['url']}@{vcs['commit_id']}"
    if not str(source["url"]).startswith("file:"):
        return f"moeprof[run] @ {source['url']}"
    return f"vendor/moeprof-{installed.version}-py3-none-any.whl[run]"


def next_steps(system: CiSystem, workloads: Path, requirement: str) -> tuple[str, ...]:
    """What is left to do, one line each."""
    smoke = workloads / WORKLOADS[0]
    steps = [f"put your model into {smoke}"]
    if requirement.startswith("vendor/"):
        wheel = requirement.removesuffix("[run]")
        steps.append(f"copy the wheel of moeprof to {wheel}, or change MOEPROF in {JOBS[system][1]}")
    steps.append(f"moeprof run {smoke} --output-dir reports/{smoke.stem}")
    steps.append(f"moeprof baseline save reports/{smoke.stem} main")
    include = "" if system == "github" else f"add `include: [{{local: {JOBS[system][1]}}}]` to .gitlab-ci.yml, "
    steps.append(f"{include}commit these files and baselines/, and open a {_request(system)}")
    return tuple(f"{number}. {step}" for number, step in enumerate(steps, 1))


def _request(system: CiSystem) -> str:
    return "pull request" if system == "github" else "merge request"


def init(
    folder: Annotated[Path, typer.Argument(help="Where to put workloads.")] = Path("workloads"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite files of the same name.")] = False,
    ci: Annotated[
        CiSystem | None, typer.Option(help="Write a CI job, its smoke workload and gates, into this project.")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option("--from", help="Write a workload that replays this trace.", show_default=False)
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="With --from: the file to write.")] = Path(
        "workload.yaml"
    ),
    trace_format: Annotated[
        str | None, typer.Option(help="With --from: as --from of `moeprof trace inspect`.", show_default=False)
    ] = None,
    column: Columns = None,
    timestamp_unit: TimestampUnit = None,
    block_tokens: BlockTokens = None,
    skip_bad_rows: SkipBadRows = False,
) -> None:
    """Write starter workloads that can be edited (chat traffic, a trace, dense against sparse), or a CI job (--ci).

    With --from: one workload for that very trace, cut so that it ends within minutes. It never overwrites.
    """
    if trace is not None:
        from moeprof.core.workload.traffic import TraceSource

        recorded = TraceSource(
            path=str(trace),
            format=trace_format,
            columns=columns_of(column),
            timestamp_unit=timestamp_unit,
            block_tokens=block_tokens,
            skip_bad_rows=skip_bad_rows,
        )
        _write_for_trace(recorded, output)
        return
    if ci is not None:
        source = requirement()
        _write(ci_files(ci, folder, source), force=force)
        if not Path(".git").exists():
            print("No .git here: CI systems read these files from the root of the repository.", file=sys.stderr)
        for step in next_steps(ci, folder, source):
            typer.echo(step)
        return
    starters = sorted(resources.files("moeprof").joinpath("data/starters").iterdir(), key=lambda file: file.name)
    _write({folder / file.name: file.read_text(encoding="utf-8") for file in starters}, force=force)
    typer.echo(f"Edit one, then: moeprof run {folder / starters[0].name}")


def _write_for_trace(source: TraceSource, output: Path) -> None:
    """A workload for a trace.

    Raises:
        InputError: the file is there already or cannot be written, or the trace cannot be read.
    """
    from moeprof.sources.formats import UnknownFormatError, read_told
    from moeprof.sources.starter import workload_text

    if output.exists():
        raise InputError(f"{output}: is there already; nothing was written, give another name with -o")
    inferred = False
    try:
        trace, told = read_told(source)
    except UnknownFormatError as error:
        if not {"input", "output"} <= error.columns.keys():
            raise
        trace, told = read_told(replace(source, columns=error.columns))
        inferred = True
    folder = output.resolve().parent
    text = workload_text(
        trace,
        told,
        path=_seen_from(folder, Path(source.path)),
        name=re.sub(r"[^\w.-]+", "-", output.stem).strip("-.") or "workload",
        models=_demo_pair(folder),
        inferred=inferred,
    )
    _write({output: text}, force=False)
    typer.echo(f"Look at it, then: moeprof run {output} --dry-run")


def _demo_pair(folder: Path) -> list[dict[str, str]]:
    """The trained demo models of the repository; random weights of a built-in shape where only the package is."""
    demo = Path(__file__).resolve().parents[2] / "workloads" / "models"
    if (demo / "demo-moe").is_dir():
        return [{"name": name, "path": _seen_from(folder, demo / f"demo-{name}")} for name in ("moe", "dense")]
    return [
        {"name": "moe", "config": "cpu-moe-211m", "weights": "random"},
        {"name": "dense", "twin_of": "moe", "match": "active"},
    ]


def _seen_from(folder: Path, path: Path) -> str:
    """A path relative to a folder nearby; from further away as it is, absolute."""
    whole = path.resolve()
    near = os.path.relpath(whole, folder)
    is_far = near.count("..") > MAX_UP or os.path.commonpath([whole, folder]) == os.sep
    return str(whole) if is_far else near


def _write(files: Mapping[Path, str], *, force: bool) -> None:
    """All of them, or none where one is there already.

    Raises:
        InputError: one exists and ``force`` is not given, or cannot be written.
    """
    existing = [path for path in files if path.exists()]
    if existing and not force:
        raise InputError(f"{existing[0]}: is there already; nothing was written, use --force to overwrite")
    for path, text in files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error
        print(f"Wrote {path}", file=sys.stderr)
