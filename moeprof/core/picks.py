"""Every pick of every token of one pass, on disk as ``picks/part-<n>.npz`` (``--save-detailed``).

Parts hold tokens in the order in which they were computed; ``picks/left_out.json`` is written when the pass ends and
counts the tokens that were left out because the cap was reached. Legend: T tokens, L MoE layers, k picks.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moeprof.core.errors import RecordError

_ARRAYS = ("picks_TLK", "request_T", "position_T", "step_T")


@dataclass(frozen=True, kw_only=True)
class Picks:
    """The picks of one pass.

    Attributes:
        picks_TLK: expert ids in the order in which the model gave them; ids from E on stand for no routed expert.
        request_T: row of the token's request in the schedule.
        position_T: the token's place in its sequence.
        step_T: the step that computed it.
        left_out_tokens: tokens whose picks were not kept, or None when the pass was killed before it could say.
    """

    picks_TLK: npt.NDArray[np.integer[Any]]
    request_T: npt.NDArray[np.integer[Any]]
    position_T: npt.NDArray[np.integer[Any]]
    step_T: npt.NDArray[np.integer[Any]]
    left_out_tokens: int | None = 0


def load_picks(pass_path: Path) -> Picks | None:
    """Read the picks of a pass; None where none were kept. A killed pass loses the part that it was writing.

    Raises:
        RecordError: a file is damaged.
    """
    folder = pass_path / "picks"
    files = sorted(folder.glob("part-*.npz"), key=lambda path: int(path.stem.rpartition("-")[2]))
    left_out = _left_out(folder / "left_out.json")
    parts = []
    for path in files:
        try:
            parts.append(_part(path))
        except RecordError:
            if left_out is not None or path != files[-1]:
                raise
    if not parts:
        return None
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in _ARRAYS}
    return Picks(**arrays, left_out_tokens=left_out)


def _part(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            arrays = {name: data[name] for name in _ARRAYS}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise RecordError(f"{path}: damaged picks ({error}); the rest of the record may be fine") from error
    if arrays["picks_TLK"].ndim != 3 or len({len(array) for array in arrays.values()}) != 1:
        raise RecordError(f"{path}: damaged picks (arrays of different length); the rest of the record may be fine")
    return arrays


def _left_out(path: Path) -> int | None:
    if not path.exists():
        return None
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["tokens"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{path}: damaged ({error}); a JSON object with `tokens` was expected") from error
