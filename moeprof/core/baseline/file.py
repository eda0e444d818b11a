"""Saving and loading a baseline: NAME.json, which people read in a diff, and NAME.npz beside it.

The npz holds step sums and picks of forced tokens, model by model; the JSON holds its sha256, so that two files of
different baselines are never read as one. Without its npz a baseline still judges everything but what needs these.
Equal arrays give equal bytes (the zip's times are fixed), so that a file changes in git only when its content does.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moeprof.core.baseline.baseline import STEP_PHASES, Baseline, BaselineModel, StepSums
from moeprof.core.baseline.json_text import AGAIN, baseline_of, baseline_text, upgraded
from moeprof.core.errors import InputError, RecordError
from moeprof.core.files import UnreadableError, read_arrays, read_bytes, read_json, replacing
from moeprof.core.record.picks import ForcedPicks, forced_picks_arrays, forced_picks_of

Arrays = Mapping[str, npt.NDArray[Any]]
_INTEGERS = (np.int8, np.int16, np.int32, np.int64)


def compact_picks(picks: ForcedPicks) -> ForcedPicks:
    """The same picks in the smallest integers, margins in half precision (three digits: they are read as quantiles).

    A run is judged in this form too, so that its saved file holds exactly what it was judged by.
    """
    margin = picks.margin_TL
    finite = margin[np.isfinite(margin)]
    small = not len(finite) or float(np.abs(finite).max()) < float(np.finfo(np.float16).max)
    return replace(
        picks,
        picks_TLK=_smallest(picks.picks_TLK),
        request_T=_smallest(picks.request_T),
        position_T=_smallest(picks.position_T),
        class_T=_smallest(picks.class_T),
        margin_TL=margin.astype(np.float16 if small else np.float32),
    )


def pack(models: Sequence[BaselineModel]) -> bytes | None:
    """All arrays as the bytes of an npz; None where no model has any."""
    arrays: dict[str, Any] = {}
    for number, model in enumerate(models):
        if model.steps is not None:
            arrays[f"{number}.steps.launches"] = np.array(model.steps.launches, dtype=np.int64)
            arrays[f"{number}.steps.seconds_LP"] = model.steps.seconds_LP
            arrays[f"{number}.steps.steps_LP"] = model.steps.steps_LP
        if model.picks is not None:
            arrays |= {f"{number}.picks.{name}": array for name, array in _picks_arrays(model.picks).items()}
    if not arrays:
        return None
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    return out.getvalue()


def unpack(content: bytes, path: Path, num_models: int) -> list[tuple[StepSums | None, ForcedPicks | None]]:
    """Step sums and picks of each model.

    Args:
        content: what :func:`pack` gave.
        path: where it stood, for messages.
        num_models: models of the baseline.

    Raises:
        RecordError: the content is damaged.
    """
    try:
        arrays = read_arrays(path, content)
        return [(_steps(arrays, f"{n}.steps."), _picks(arrays, f"{n}.picks.", path)) for n in range(num_models)]
    except (UnreadableError, ValueError, KeyError) as error:
        why = error.why if isinstance(error, UnreadableError) else str(error)
        raise RecordError(f"{path}: damaged ({why}); take it from version control again") from error


def _steps(arrays: Arrays, prefix: str) -> StepSums | None:
    if f"{prefix}launches" not in arrays:
        return None
    launches = tuple(int(number) for number in arrays[f"{prefix}launches"])
    seconds, steps = arrays[f"{prefix}seconds_LP"], arrays[f"{prefix}steps_LP"]
    shape = (len(launches), len(STEP_PHASES))
    if seconds.shape != shape or steps.shape != shape:
        raise ValueError(f"step sums of shape {seconds.shape} and {steps.shape}, {shape} was expected")
    return StepSums(launches=launches, seconds_LP=seconds, steps_LP=steps)


def _picks_arrays(picks: ForcedPicks) -> dict[str, npt.NDArray[Any]]:
    """As a record has them, numbers in their compact form."""
    small = compact_picks(picks)
    return {
        name: array if array.dtype.kind == "U" else getattr(small, name)
        for name, array in forced_picks_arrays(picks).items()
    }


def _picks(arrays: Arrays, prefix: str, path: Path) -> ForcedPicks | None:
    own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    return forced_picks_of(own, path) if own else None


def _smallest(values: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.integer[Any]]:
    """In the smallest signed type that holds every value."""
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    kind = next(kind for kind in _INTEGERS if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max)
    return values.astype(kind)


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
        content = read_bytes(file)
    except UnreadableError as fault:
        raise RecordError(str(fault)) from fault
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
        return read_json(path, non_finite="keep")
    except RecordError as error:
        text = getattr(error.__cause__, "doc", "")  # what was no JSON
        conflict = ", marks of a merge conflict stand in it" if re.search(r"^<{7} |^>{7} ", text, re.MULTILINE) else ""
        raise RecordError(f"{error}{conflict}; {AGAIN}") from error


def _write(path: Path, content: bytes) -> None:
    """So that a reader never sees half a file."""
    with replacing(path) as file:
        file.write(content)
