"""A folder of baselines: ``<folder>/<workload>/<device>/<name>.json``, several machines side by side.

What a file is of stands in the file; names of folders are for people, so that a device may be renamed by hand.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from moeprof.core.baseline.baseline import Baseline
from moeprof.core.baseline.file import check_name, load_baseline, save_baseline
from moeprof.core.errors import InputError

DEFAULT_FOLDER = Path("baselines")
MAX_SLUG = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A baseline of a folder.

    Attributes:
        path: of its JSON.
        baseline: the content.
    """

    path: Path
    baseline: Baseline

    @property
    def num_bytes(self) -> int:
        """Of JSON and npz."""
        return sum(file.stat().st_size for file in (self.path, self.path.with_suffix(".npz")) if file.exists())


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The baseline to judge a run against.

    Attributes:
        path: of its JSON.
        baseline: the content.
        same_device: False where the name exists for other devices only, so that figures of time mean nothing.
        same_kind: the same kind of device, ``cpu`` or ``cuda``.
    """

    path: Path
    baseline: Baseline
    same_device: bool
    same_kind: bool


def device_slug(device: str) -> str:
    """A device as the name of a folder; where that leaves something out, it ends in a hash of the whole.

    ``AMD EPYC 7763, 4 logical (avx2)`` -> ``amd-epyc-7763-4-logical-`` and six digits; ``1 x NVIDIA H200`` ->
    ``1-x-nvidia-h200``.
    """
    plain = device.replace("(R)", "").replace("(TM)", "").lower()
    slug = re.sub(r"[^a-z0-9]+", "-", plain.partition(" (")[0]).strip("-") or "unknown"
    if len(slug) <= MAX_SLUG and " (" not in plain:
        return slug
    return f"{slug[:MAX_SLUG].rstrip('-')}-{hashlib.sha256(device.encode()).hexdigest()[:6]}"


def store(baseline: Baseline, folder: Path = DEFAULT_FOLDER, *, replace: bool = False) -> Path:
    """Save it where its workload and device belong; returns the path of the JSON.

    Raises:
        InputError: a bad name, the name is taken, or the folder cannot be written.
    """
    workload = check_name(baseline.workload, "the workload's name")
    return save_baseline(baseline, folder / workload / device_slug(baseline.device), replace=replace)


def find(folder: Path, name: str, workload: str, device: str, device_kind: str) -> Found:
    """The baseline of this name and workload: of the same device, else of the nearest one.

    Nearest is the same kind of device, and of several the one that was measured last.

    Raises:
        InputError: nothing of that name for the workload; the message lists what there is.
        RecordError: a file of that name is damaged.
    """
    check_name(name)
    files = sorted((folder / check_name(workload, "the workload's name")).glob(f"*/{name}.json"))
    found = [Stored(path=path, baseline=load_baseline(path)) for path in files]
    if not found:
        raise InputError(f"no baseline {name!r} of workload {workload!r} in {folder}; {_what_there_is(folder)}")

    def nearness(stored: Stored) -> tuple[bool, bool, str]:
        other = stored.baseline
        return other.device == device, other.device_kind == device_kind, other.created_at

    best = max(found, key=nearness)
    same_device, same_kind, _ = nearness(best)
    return Found(path=best.path, baseline=best.baseline, same_device=same_device, same_kind=same_kind)


def list_baselines(folder: Path = DEFAULT_FOLDER) -> tuple[Stored, ...]:
    """Every baseline of a folder, by workload, device and time.

    Raises:
        InputError: no such folder.
        RecordError: a file is damaged.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of baselines; `moeprof baseline save RUN NAME` makes one")
    found = [Stored(path=path, baseline=load_baseline(path)) for path in _files(folder)]
    order = sorted(found, key=lambda s: (s.baseline.workload, s.baseline.device, s.baseline.created_at, s.path))
    return tuple(order)


def named(folder: Path, name: str, *, workload: str | None = None, device: str | None = None) -> Stored:
    """The one baseline of this name.

    Args:
        folder: of baselines.
        name: of the baseline.
        workload: only of this workload.
        device: only of a device whose name or folder holds this text, whatever the case.

    Raises:
        InputError: none, or several; the message lists them.
    """
    check_name(name)
    found = [
        stored
        for stored in (Stored(path=path, baseline=load_baseline(path)) for path in _files(folder) if path.stem == name)
        if workload in (None, stored.baseline.workload) and _is_of(stored, device)
    ]
    if not found:
        raise InputError(f"no such baseline {name!r} in {folder}; {_what_there_is(folder)}")
    if len(found) > 1:
        listed = ", ".join(str(stored.path) for stored in found)
        raise InputError(f"{name!r} is the name of {len(found)} baselines ({listed}); say --workload or --device")
    return found[0]


def history(folder: Path, workload: str, device: str) -> tuple[Baseline, ...]:
    """All baselines of one workload on one device, oldest first; empty without any.

    Raises:
        RecordError: a file is damaged.
    """
    files = sorted((folder / check_name(workload, "the workload's name")).glob("*/*.json"))
    found = [baseline for baseline in map(load_baseline, files) if baseline.device == device]
    return tuple(sorted(found, key=lambda baseline: (baseline.created_at, baseline.name)))


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*/*.json"))


def _is_of(stored: Stored, device: str | None) -> bool:
    names = (stored.baseline.device.lower(), stored.path.parent.name.lower())
    return device is None or any(device.lower() in name for name in names)


def _what_there_is(folder: Path) -> str:
    files = [path.relative_to(folder).as_posix() for path in _files(folder)]
    if not files:
        return "there is none yet; `moeprof baseline save RUN NAME` makes one"
    shown = ", ".join(files[:8]) + (f" and {len(files) - 8} more" if len(files) > 8 else "")
    return f"there are: {shown}"
