"""Saving and loading a baseline: NAME.json, which people read in a diff, and NAME.npz beside it.

The JSON holds the sha256 of the npz, so that two files of different baselines are never read as one. Without its npz a
baseline still judges everything but what needs step sums or picks.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from moeprof.core.baseline import Baseline
from moeprof.core.baseline_arrays import pack, unpack
from moeprof.core.baseline_read import AGAIN, baseline_of, upgraded
from moeprof.core.baseline_text import baseline_text
from moeprof.core.errors import InputError, RecordError
from moeprof.core.jsonfile import read_json

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
NO_ARRAYS = "{file} is missing, so the baseline has no step sums and no picks: routing agreement is not measured"


def check_name(name: str, what: str = "the baseline's name") -> str:
    """The name, where it can be a file's.

    Raises:
        InputError: it cannot.
    """
    if not NAME.fullmatch(name):
        raise InputError(f"{what}: found {name!r}; letters, digits, '.', '_' and '-' are allowed, 64 at most")
    return name


def save_baseline(baseline: Baseline, folder: Path, *, replace: bool = False) -> Path:
    """Write ``folder/<name>.json`` and its npz; returns the path of the JSON.

    Args:
        baseline: what to write.
        folder: made where it is missing.
        replace: overwrite a baseline of that name.

    Raises:
        InputError: a bad name, the name is taken, or the folder cannot be written.
    """
    file = folder / f"{check_name(baseline.name)}.json"
    arrays_file = file.with_suffix(".npz")
    taken = next((path for path in (file, arrays_file) if path.exists()), None)
    if taken is not None and not replace:
        raise InputError(f"{taken}: is there already; nothing is overwritten without --replace")
    arrays = pack(baseline.models)
    text = baseline_text(baseline, None if arrays is None else hashlib.sha256(arrays).hexdigest())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if arrays is None:
            arrays_file.unlink(missing_ok=True)
        else:
            _write(arrays_file, arrays)
        _write(file, text.encode("utf-8"))
    except OSError as error:
        raise InputError(f"{file}: cannot be written ({error.strerror}); choose another --folder") from error
    return file


def load_baseline(path: Path) -> Baseline:
    """Read NAME.json with its npz. Without the npz, step sums and picks are None and ``notes`` says so.

    Raises:
        InputError: no such file.
        RecordError: damaged, of a newer format, or the npz belongs to another baseline.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such baseline file; `moeprof baseline list` shows what there is")
    value, version = upgraded(path, _read(path))
    baseline, sha256 = baseline_of(path, value, version)
    if sha256 is None:
        return baseline
    file = path.with_suffix(".npz")
    if not file.exists():
        return replace(baseline, notes=(NO_ARRAYS.format(file=file.name),))
    try:
        content = file.read_bytes()
    except OSError as error:
        raise RecordError(f"{file}: cannot be read ({error.strerror})") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise RecordError(
            f"{file}: is not the file that {path.name} was saved with (another sha256); take both from version control "
            "again, or delete the npz to do without step sums and picks"
        )
    arrays = unpack(content, file, len(baseline.models))
    models = (replace(m, steps=steps, picks=picks) for m, (steps, picks) in zip(baseline.models, arrays, strict=True))
    return replace(baseline, models=tuple(models))


def delete_baseline(path: Path) -> tuple[Path, ...]:
    """Remove NAME.json and its npz; returns what was removed."""
    removed = tuple(file for file in (path, path.with_suffix(".npz")) if file.exists())
    for file in removed:
        file.unlink()
    return removed


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except RecordError as error:
        text = getattr(error.__cause__, "doc", "")  # what was no JSON
        conflict = ", marks of a merge conflict stand in it" if re.search(r"^<{7} |^>{7} ", text, re.MULTILINE) else ""
        raise RecordError(f"{error}{conflict}; {AGAIN}") from error


def _write(path: Path, content: bytes) -> None:
    """So that a reader never sees half a file."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
