"""``forced.npz``: picks of forced tokens on disk (the noun is in core/forced_picks.py)."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moeprof.core.errors import RecordError
from moeprof.core.forced_picks import ForcedPicks

FILE_NAME = "forced.npz"
# field -> type on disk; all have T as their first axis
_ARRAYS: dict[str, type[np.generic]] = {
    "picks_TLK": np.int16,
    "request_T": np.int32,
    "position_T": np.int32,
    "class_T": np.int16,
    "is_output_T": np.bool_,
    "margin_TL": np.float32,
}
_NAMES = ("layers", "classes", "tokens_sha256")


def save_forced_picks(path: Path, picks: ForcedPicks) -> None:
    """Write ``path``, compressed; a reader never sees half of it."""
    temporary = path.with_name("tmp-" + path.name)
    arrays: dict[str, Any] = forced_picks_arrays(picks)
    np.savez_compressed(temporary, **arrays)
    temporary.replace(path)


def load_forced_picks(path: Path) -> ForcedPicks:
    """Read what :func:`save_forced_picks` wrote.

    Raises:
        RecordError: the file is missing or damaged.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            arrays = {name: data[name] for name in (*_ARRAYS, *_NAMES)}
    except (OSError, ValueError, KeyError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise RecordError(f"{path}: damaged picks of forced tokens ({error}); the rest may be fine") from error
    return forced_picks_of(arrays, path)


def forced_picks_arrays(picks: ForcedPicks) -> dict[str, npt.NDArray[Any]]:
    """The picks as named arrays, for an npz that may hold other arrays too."""
    arrays: dict[str, npt.NDArray[Any]] = {name: getattr(picks, name).astype(kind) for name, kind in _ARRAYS.items()}
    return arrays | {name: np.array(getattr(picks, name), dtype=np.str_) for name in _NAMES}


def forced_picks_of(arrays: Mapping[str, npt.NDArray[Any]], path: Path) -> ForcedPicks:
    """The inverse of :func:`forced_picks_arrays`.

    Args:
        arrays: at least those that it gave.
        path: of the file, for messages.

    Raises:
        RecordError: arrays do not fit together.
    """
    values = {name: arrays[name] for name in _ARRAYS}
    layers, classes = (tuple(str(x) for x in arrays[name]) for name in ("layers", "classes"))
    tokens = len(values["request_T"])
    shapes = {name: value.shape for name, value in values.items()}
    expected = dict.fromkeys(_ARRAYS, (tokens,)) | {"margin_TL": (tokens, len(layers))}
    expected["picks_TLK"] = (tokens, len(layers), *shapes["picks_TLK"][2:3])
    wrong = next((name for name in _ARRAYS if shapes[name] != expected[name]), None)
    if wrong is None and len(shapes["picks_TLK"]) != 3:
        wrong = "picks_TLK"
    if (
        wrong is None
        and tokens
        and not 0 <= int(values["class_T"].min()) <= int(values["class_T"].max()) < len(classes)
    ):
        wrong = "class_T"
    if wrong is not None:
        raise RecordError(f"{path}: damaged picks of forced tokens ({wrong} does not fit the rest)")
    return ForcedPicks(layers=layers, classes=classes, tokens_sha256=str(arrays["tokens_sha256"]), **values)
