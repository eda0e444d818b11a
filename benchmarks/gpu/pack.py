"""A record as one small archive: everything a report needs; what is too large for the limit is left out and listed.

The limits are those of bringing files back from the machine with the card: a few files of 16 MiB each.
"""

from __future__ import annotations

import fnmatch
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

from moeprof.core.errors import RecordError

LIMIT_BYTES = int(15.5 * 2**20)
MOST_FILES = 8
LEFT_OUT = "left-out.json"
# Never needed to make a report again.
NEVER = ("*/heartbeat", "heartbeat", "*.html", "*.png", "*.csv", "*.arrows", "*/picks/*")
# Left out in this order until the archive is small enough. summary.json, made on the machine, stays to the last.
BY_WORTH = (
    "*/launch-*/forced.npz",
    "*/launch-*/warmup.parquet",
    "*/sweep-*/telemetry.parquet",
    "*/sweep-*/routing.npz",
    "*/routing.npz",
    "*/sweep-*/requests.parquet",
    "*/sweep-*/steps.parquet",
    "*.parquet",
    "*",
)
KEEP = ("summary.json", "experiment.json", "*/model.json", "*/launch.json", "*/pass.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """An archive.

    Attributes:
        path: where it is.
        size_bytes: of the archive.
        left_out: files of the record that are not in it, relative to the record; without those nobody needs.
    """

    path: Path
    size_bytes: int
    left_out: tuple[str, ...]


def pack(record: Path, archive: Path, *, limit_bytes: int = LIMIT_BYTES) -> Packed:
    """Write ``archive`` (.tar.gz) with the folder ``record`` in it.

    Raises:
        RecordError: even the summary alone is over the limit.
    """
    files = sorted(path for path in record.rglob("*") if path.is_file() and not _matches(path, record, NEVER))
    left_out: list[Path] = []
    for group in ((), *BY_WORTH):
        goes = (
            [] if not group else [f for f in files if _matches(f, record, (group,)) and not _matches(f, record, KEEP)]
        )
        if group and not goes:
            continue
        files = [file for file in files if file not in goes]
        left_out += goes
        size = _write(record, files, left_out, archive)
        if size <= limit_bytes:
            return Packed(
                path=archive, size_bytes=size, left_out=tuple(str(f.relative_to(record)) for f in sorted(left_out))
            )
    archive.unlink(missing_ok=True)
    raise RecordError(f"{record}: its summaries alone take more than {limit_bytes:,} bytes; nothing was packed")


def unpack(archive: Path, to: Path) -> Path:
    """Unpack into a new folder ``to``.

    Raises:
        RecordError: it is no archive of a record, or ``to`` holds something.
    """
    if to.exists() and any(to.iterdir()):
        raise RecordError(f"{to}: is there already and is not empty; nothing is overwritten, take it away first")
    to.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(archive, "r:gz") as stream:
            stream.extractall(to, filter="data")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise RecordError(f"{archive}: cannot be unpacked ({error})") from error
    return to


def _write(record: Path, files: list[Path], left_out: list[Path], archive: Path) -> int:
    archive.parent.mkdir(parents=True, exist_ok=True)
    listed = archive.with_name(f".{archive.name}.{LEFT_OUT}")
    listed.write_text(json.dumps([str(f.relative_to(record)) for f in sorted(left_out)], indent=1), encoding="utf-8")
    with tarfile.open(archive, "w:gz", compresslevel=6) as stream:
        for file in files:
            stream.add(file, arcname=str(file.relative_to(record)), filter=_plain)
        if left_out:
            stream.add(listed, arcname=LEFT_OUT, filter=_plain)
    listed.unlink()
    return archive.stat().st_size


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Nobody's name and no machine's clock in a published file."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def _matches(file: Path, record: Path, patterns: tuple[str, ...]) -> bool:
    name = str(file.relative_to(record))
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
