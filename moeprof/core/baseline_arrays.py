"""The arrays of a baseline as one small npz: step sums and picks of forced tokens, model by model.

Equal arrays give equal bytes (the zip's times are fixed), so that a file changes in git only when its content does.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moeprof.core.baseline import STEP_PHASES, BaselineModel, StepSums
from moeprof.core.errors import RecordError
from moeprof.core.forced_picks import ForcedPicks
from moeprof.core.forced_picks_file import forced_picks_arrays, forced_picks_of

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
        with np.load(io.BytesIO(content), allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
        return [(_steps(arrays, f"{n}.steps."), _picks(arrays, f"{n}.picks.", path)) for n in range(num_models)]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise RecordError(f"{path}: damaged ({error}); take it from version control again") from error


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
