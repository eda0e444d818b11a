"""What ``moeprof regress --ab`` measured: two lone runs, and launch pairs in which their models are stepped in turn.

<folder>/ab.json      format_version, mode (pairs | processes), base, new (what each side is), settings, status
<folder>/base/        a record as ``moeprof run`` writes it: one launch alone, for everything that is no time
<folder>/new/         likewise
<folder>/pairs/<model>/launch-<l>/c<concurrency>/{pass.json,lanes.parquet}   as in core/record/lanes.py; the lanes
                      are called ``base`` and ``new``; pass.json also holds ``reference_kernel_s``: seconds of the
                      reference kernel before and after the measurement, per lane's process
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from msgspec import field

from moeprof.core.files import read_json
from moeprof.core.record.headers import FORMAT_VERSION, Header, check_version, header_of, upgraded, written
from moeprof.core.record.lanes import LanePass, lane_passes
from moeprof.core.record.layout import Record, open_record
from moeprof.core.record.whole import check_listed

BASE, NEW = "base", "new"


class PairsHeader(Header, frozen=True, kw_only=True):
    """ab.json.

    Attributes:
        format_version: as of a record.
        mode: ``pairs`` (one process) or ``processes`` (two).
        models: their names in the new run.
        base_models: name in the new run -> name in the base run.
        base, new: what each side is.
        settings: of the command line.
        started_at, finished_at: UTC.
        launches: pairs that were measured.
        status: ``started``, ``done``, ``failed`` or ``interrupted``.
        files: path -> bytes of what lies below pairs/, once it has ended.
    """

    format_version: int = field(default_factory=written(FORMAT_VERSION))
    mode: Literal["pairs", "processes"]
    models: tuple[str, ...] = field(default_factory=written(()))
    base_models: dict[str, str] = field(default_factory=dict)
    base: dict[str, Any] = field(default_factory=dict)
    new: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    started_at: str | None = None
    launches: int = field(default_factory=written(0))
    status: str | None = None
    finished_at: str | None = None
    files: dict[str, int] | None = None


@dataclass(frozen=True)
class PairsRecord:
    """A folder of ``regress --ab``, opened for reading."""

    path: Path
    info: PairsHeader

    @cached_property
    def base(self) -> Record:
        """The lone run of the reference."""
        return open_record(self.path / BASE)

    @cached_property
    def new(self) -> Record:
        """The lone run of what is judged."""
        return open_record(self.path / NEW)

    @cached_property
    def pairs(self) -> dict[str, tuple[LanePass, ...]]:
        """Model (its name in the new run) -> measurements of all launches."""
        version = self.info.format_version
        return {name: lane_passes(self.path / "pairs" / name, version) for name in self.info.models}


def is_pairs_record(path: Path) -> bool:
    """True for a folder that ``regress --ab`` wrote."""
    return (path / "ab.json").is_file()


def open_pairs(path: Path) -> PairsRecord:
    """Open it.

    Raises:
        RecordError: damaged, of a newer format, or without a file that it wrote.
    """
    file = path / "ab.json"
    value = read_json(file)
    value = upgraded(file.name, value, check_version(file, value))
    info = header_of(PairsHeader, value, file)
    if info.status == "done":
        check_listed(path, info.files or {})
    return PairsRecord(path, info)
