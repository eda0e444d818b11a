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
from typing import Any

from moeprof.core.errors import RecordError
from moeprof.core.jsonfile import read_json
from moeprof.core.record.lanes import LanePass, lane_passes
from moeprof.core.record.layout import Record, open_record

FORMAT_VERSION = 1
BASE, NEW = "base", "new"


@dataclass(frozen=True)
class PairsRecord:
    """A folder of ``regress --ab``, opened for reading."""

    path: Path
    info: dict[str, Any]

    @property
    def mode(self) -> str:
        """``pairs`` (one process) or ``processes`` (two)."""
        return str(self.info["mode"])

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
        names = [str(name) for name in self.info.get("models", ())]
        return {name: lane_passes(self.path / "pairs" / name) for name in names}


def is_pairs_record(path: Path) -> bool:
    """True for a folder that ``regress --ab`` wrote."""
    return (path / "ab.json").is_file()


def open_pairs(path: Path) -> PairsRecord:
    """Open it.

    Raises:
        RecordError: damaged, or of a newer format.
    """
    file = path / "ab.json"
    info = read_json(file)
    version = info.get("format_version")
    if type(version) is not int or version < 1:
        raise RecordError(f"{file}: damaged, format_version is {version!r}; a whole number from 1 belongs there")
    if version > FORMAT_VERSION:
        raise RecordError(f"{file}: format {version}, this moeprof reads up to {FORMAT_VERSION}; upgrade moeprof")
    if info.get("mode") not in ("pairs", "processes"):
        raise RecordError(f"{file}: damaged, mode is {info.get('mode')!r}; pairs and processes are known")
    return PairsRecord(path, info)
