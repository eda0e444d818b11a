"""Is a record all there? A run that ended lists its files with their sizes; whoever opens it looks.

The list is written with the end of the run, when nobody writes into its folders any more. It has schedules and all that
lies in folders; experiment.json itself, the heartbeat and what was derived (summary, report) are not in it. A record of
before there was a list is held against what its models and passes say of themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from moeprof.core.errors import RecordError
from moeprof.core.record.experiment import ExperimentHeader
from moeprof.core.record.headers import read_header_if_there
from moeprof.core.record.passes import PassEnd

SCHEDULES = "schedule*.parquet"
ENDED = ("done", "failed")  # an interrupted run may have been killed in the middle of a file
AGAIN = "the record is not whole: copy or fetch it again"


def list_files(folder: Path, patterns: Iterable[str] = (SCHEDULES, "*/**/*")) -> dict[str, int]:
    """Path below the folder -> bytes, of all that is there."""
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(found)}


def check_listed(folder: Path, files: Mapping[str, int]) -> None:
    """Every file of the list is there in its size.

    Raises:
        RecordError: one is not; its name.
    """
    for name, size in files.items():
        path = folder / name
        if name.startswith("/") or ".." in Path(name).parts:
            raise RecordError(
                f"{folder / 'experiment.json'}: damaged, files names {name!r}, which is outside of the record"
            )
        if not path.is_file():
            raise RecordError(f"{path}: missing, the run wrote {size:,} bytes; {AGAIN}")
        found = path.stat().st_size
        if found != size:
            raise RecordError(f"{path}: has {found:,} bytes, the run wrote {size:,}; {AGAIN}")


def check_whole(folder: Path, experiment: ExperimentHeader) -> None:
    """A run that ended has what it wrote.

    Raises:
        RecordError: a file is missing or of another size; its name.
    """
    if experiment.status not in ENDED:
        return
    if experiment.files is not None:
        check_listed(folder, experiment.files)
        return
    done = [folder / model.folder for model in experiment.models if model.status == "done"]
    if _needs_folders(folder, experiment):
        missing = next((path for path in done if not path.is_dir()), None)
        if missing is not None:
            raise RecordError(f"{missing}: missing, experiment.json says that this model is done; {AGAIN}")
    for path in done:
        for header in sorted(path.glob("launch-*/*/pass.json")):
            _check_tables(header)


def _needs_folders(folder: Path, experiment: ExperimentHeader) -> bool:
    """Not where time ran out before a model's turn, nor where lanes alone were measured."""
    if experiment.workload.get("max_minutes") is not None:
        return False
    lanes = any((folder / kind).is_dir() for kind in ("ladder", "lockstep"))
    return not lanes or any(folder.glob("*/launch-*/round-*"))


def _check_tables(header: Path) -> None:
    """A pass that ended has its requests and its steps, as parquet or as the stream that they were written to."""
    if (read_header_if_there(header, PassEnd) or PassEnd()).status != "done":
        return
    for table in ("requests", "steps"):
        file = header.parent / f"{table}.parquet"
        if not file.is_file() and not file.with_suffix(".arrows").is_file():
            raise RecordError(f"{file}: missing, pass.json says that this pass is done; {AGAIN}")
