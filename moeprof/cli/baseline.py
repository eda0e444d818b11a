"""``moeprof baseline``: save a run to judge later ones by, look at what is saved, remove it. Needs no torch and no GPU.

Files belong in a git repository: ``baselines/<workload>/<device>/<name>.json`` with a small npz beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moeprof.cli.options import ListFormat, PowerPriceOption, PueOption, RentOption
from moeprof.core.errors import InputError
from moeprof.render import TABLE

if TYPE_CHECKING:
    from moeprof.analysis.report.sections.trend import BaselineRow
    from moeprof.core.baseline.store import Stored

baseline_app = typer.Typer(help="Save runs to judge later ones by; list, show and remove them.", no_args_is_help=True)

FolderOption = Annotated[Path, typer.Option(help="Folder of baselines.")]
WorkloadOption = Annotated[str | None, typer.Option(help="Only of this workload.", show_default=False)]
DeviceOption = Annotated[str | None, typer.Option(help="Only of a device whose name holds this.", show_default=False)]
FOLDER = Path("baselines")


@baseline_app.command()
def save(
    run: Annotated[Path, typer.Argument(help="Run folder.", show_default=False)],
    name: Annotated[str, typer.Argument(help="Name of the baseline: main, v1.2...", show_default=False)],
    folder: FolderOption = FOLDER,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite a baseline of that name.")] = False,
    note: Annotated[str | None, typer.Option(help="A note to keep with it.", show_default=False)] = None,
    allow_unfinished: Annotated[
        bool, typer.Option("--allow-unfinished", help="Save a run that failed or was stopped, too.")
    ] = False,
    usd_per_device_hour: RentOption = None,
    usd_per_kwh: PowerPriceOption = None,
    pue: PueOption = None,
) -> None:
    """Save a run as a small baseline for a git repository; its workload and device decide where it goes."""
    from dataclasses import replace as changed

    from moeprof.analysis.metrics.cost.pricing import repriced
    from moeprof.analysis.metrics.summary import summarise
    from moeprof.analysis.regress.baseline import freeze
    from moeprof.analysis.report.sections.trend import shortcomings
    from moeprof.core.baseline.file import check_name
    from moeprof.core.baseline.store import store
    from moeprof.core.record.layout import open_record
    from moeprof.core.record.pairs import is_pairs_record

    check_name(name)
    if is_pairs_record(run):
        raise InputError(f"{run}: holds launch pairs of regress --ab; save {run / 'new'} or {run / 'base'} of it")
    record = open_record(run)
    if record.status != "done" and not allow_unfinished:
        raise InputError(
            f"{run}: the run is {record.status}, not done; add --allow-unfinished to save what it measured"
        )
    pricing = repriced(record, usd_per_device_hour=usd_per_device_hour, usd_per_kwh=usd_per_kwh, pue=pue)
    baseline = freeze(summarise(record, pricing), name)
    if note is not None:
        baseline = changed(baseline, label=note)
    file = store(baseline, folder, replace=replace)
    print(f"Wrote {file}", file=sys.stderr)
    if file.with_suffix(".npz").exists():
        print(f"Wrote {file.with_suffix('.npz')}", file=sys.stderr)
    for text in shortcomings(baseline):
        print(f"moeprof: note: {text}", file=sys.stderr)


@baseline_app.command("list")
def list_all(folder: FolderOption = FOLDER, format: ListFormat = TABLE) -> None:
    """List the baselines of a folder, by workload, device and time."""
    from moeprof.analysis.report.result import Listing
    from moeprof.cli.output import print_result
    from moeprof.core.baseline.store import list_baselines

    found = list_baselines(folder)
    if not found:
        print(f"{folder}: no baseline yet; `moeprof baseline save RUN NAME` makes one", file=sys.stderr)
    rows = [_listed(stored) for stored in found]
    print_result(Listing(rows=rows, shown=[_short(row, folder) for row in rows]), format)


@baseline_app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE", help="Name of a baseline, or its .json file.")],
    folder: FolderOption = FOLDER,
    workload: WorkloadOption = None,
    device: DeviceOption = None,
    format: ListFormat = TABLE,
) -> None:
    """Show what a baseline holds: facts that must match, headline figures with intervals, launches, sizes."""
    from dataclasses import asdict

    from moeprof.analysis.report.result import Listing
    from moeprof.analysis.report.sections.trend import baseline_rows, shortcomings
    from moeprof.cli.output import print_result

    stored = _stored(name, folder, workload, device)
    rows = baseline_rows(stored.baseline)
    print_result(Listing(rows=[asdict(row) for row in rows], shown=[_shown(row) for row in rows]), format)
    for text in shortcomings(stored.baseline):
        print(f"moeprof: note: {text}", file=sys.stderr)


@baseline_app.command()
def rm(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Names of baselines, or their .json files.")],
    folder: FolderOption = FOLDER,
    workload: WorkloadOption = None,
    device: DeviceOption = None,
) -> None:
    """Remove baselines: the JSON and the npz. A name that stands for several is an error, and nothing is removed."""
    from moeprof.core.baseline.file import delete_baseline

    for path in _paths(names, folder, workload, device):
        for removed in delete_baseline(path):
            print(f"Removed {removed}", file=sys.stderr)


def _paths(names: Sequence[str], folder: Path, workload: str | None, device: str | None) -> list[Path]:
    """Every file before any is removed."""
    return list(dict.fromkeys(_stored(name, folder, workload, device).path for name in names))


def _stored(name: str, folder: Path, workload: str | None, device: str | None) -> Stored:
    """By file or by name."""
    from moeprof.core.baseline.file import load_baseline
    from moeprof.core.baseline.store import Stored, named

    path = Path(name)
    if path.suffix == ".json" or path.name != name:
        return Stored(path=path, baseline=load_baseline(path))
    return named(folder, name, workload=workload, device=device)


def _listed(stored: Stored) -> dict[str, Any]:
    from moeprof.analysis.report.sections.trend import num_launches

    baseline = stored.baseline
    return {
        "name": baseline.name,
        "workload": baseline.workload,
        "device": baseline.device,
        "created_at": baseline.created_at,
        "models": ",".join(model.name for model in baseline.models),
        "launches": min((num_launches(model) for model in baseline.models), default=0),
        "picks": any(model.picks is not None for model in baseline.models),
        "bytes": stored.num_bytes,
        "label": baseline.label,
        "file": stored.path.as_posix(),
    }


def _short(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    """For people; the file says name, workload and device."""
    from moeprof.core import units

    return {
        f"file in {folder}": Path(row["file"]).relative_to(folder).as_posix(),
        "measured at": str(row["created_at"])[:16].replace("T", " "),
        "models": row["models"].replace(",", ", "),
        "launches": row["launches"],
        "picks": "yes" if row["picks"] else "no",
        "size": units.num_bytes(row["bytes"]),
        "note": row["label"],
    }


def _shown(row: BaselineRow) -> dict[str, Any]:
    """For people: numbers in their unit, with the interval beside."""
    from moeprof.analysis.compare.comparable import fact_text
    from moeprof.core import units

    if row.value is None or isinstance(row.value, str):
        value = units.NOT_AVAILABLE if row.unit else fact_text(row.value)
    else:
        value = units.display(row.value, row.unit)
    interval = units.interval(row.low, row.high, row.unit) if row.low is not None and row.high is not None else None
    return {"of": row.of, "what": row.what, "value": value, "95 % interval": interval, "n": row.n}
