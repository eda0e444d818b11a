"""Every pick of every token of one pass, on disk as ``picks/part-<n>.npz`` (``--save-detailed``).

Parts hold tokens in the order in which they were computed; ``picks/left_out.json`` is written when the pass ends and
counts the tokens that were left out because the cap was reached. Legend: T tokens, L MoE layers, k picks.

Where a model sends a fixed text: picks of about 2,048 teacher-forced tokens, one request at a time, untimed.

``<run>/<model>/launch-<l>/forced.npz``. Batches of one make it a fact of weights, kernels and text alone, so two
records, checkpoints, dtypes or code revisions can be set against each other token by token.

``forced.npz``: picks of forced tokens on disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moeprof.core.errors import RecordError
from moeprof.core.files import UnreadableError, numbered, read_arrays, read_json, write_arrays

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
    files = numbered(folder.glob("part-*.npz"))
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
        found = read_arrays(path)
        arrays = {name: found[name] for name in _ARRAYS}
    except (UnreadableError, KeyError) as error:
        why = error.why if isinstance(error, UnreadableError) else f"without {error}"
        raise RecordError(f"{path}: damaged picks ({why}); the rest of the record may be fine") from error
    if arrays["picks_TLK"].ndim != 3 or len({len(array) for array in arrays.values()}) != 1:
        raise RecordError(f"{path}: damaged picks (arrays of different length); the rest of the record may be fine")
    return arrays


def _left_out(path: Path) -> int | None:
    if not path.exists():
        return None
    tokens = read_json(path).get("tokens")
    if type(tokens) is not int:
        raise RecordError(f"{path}: damaged (tokens is {tokens!r}); a JSON object with `tokens` was expected")
    return tokens


MAX_TOKENS = 2048


@dataclass(frozen=True, kw_only=True)
class ForcedPicks:
    """Legend: T tokens, L MoE layers, K the largest top-k, C classes.

    Attributes:
        picks_TLK: expert ids in the order in which the model gave them; -1 where a layer has fewer than K picks or a
            pick stands for no expert; ids from E on are identity experts.
        request_T: row of the token's request in the schedule.
        position_T: the token's place in its sequence.
        class_T: index into ``classes``.
        is_output_T: True for tokens of the forced output (decode), False for the prompt's (prefill).
        margin_TL: p_(k) - p_(k+1) of the gate's selection scores, NaN in layers whose scores do not give the picks.
        layers: names of the MoE layers.
        classes: names of request classes.
        tokens_sha256: of the ids of the whole text, so that only equal texts are compared; a recording that ran out of
            time has the text's too, and fewer tokens of it.
    """

    picks_TLK: npt.NDArray[np.integer[Any]]
    request_T: npt.NDArray[np.integer[Any]]
    position_T: npt.NDArray[np.integer[Any]]
    class_T: npt.NDArray[np.integer[Any]]
    is_output_T: npt.NDArray[np.bool_]
    margin_TL: npt.NDArray[np.floating[Any]]
    layers: tuple[str, ...]
    classes: tuple[str, ...]
    tokens_sha256: str

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.request_T)

    @property
    def num_requests(self) -> int:
        """Distinct requests."""
        return len(np.unique(self.request_T))


FILE_NAME = "forced.npz"
# field -> type on disk; all have T as their first axis
_TEACHER_FORCED_ARRAYS: dict[str, type[np.generic]] = {
    "picks_TLK": np.int16,
    "request_T": np.int32,
    "position_T": np.int32,
    "class_T": np.int16,
    "is_output_T": np.bool_,
    "margin_TL": np.float32,
}
_NAMES = ("layers", "classes", "tokens_sha256")
KINDS_OF = dict.fromkeys(_TEACHER_FORCED_ARRAYS, "iu") | {"is_output_T": "b", "margin_TL": "f"}


def save_forced_picks(path: Path, picks: ForcedPicks) -> None:
    """Write ``path``, compressed; a reader never sees half of it."""
    write_arrays(path, forced_picks_arrays(picks))


def load_forced_picks(path: Path) -> ForcedPicks:
    """Read what :func:`save_forced_picks` wrote.

    Raises:
        RecordError: the file is missing or damaged.
    """
    try:
        return forced_picks_of(read_arrays(path), path)
    except UnreadableError as fault:
        raise RecordError(f"{path}: damaged picks of forced tokens ({fault.why}); the rest may be fine") from fault


def forced_picks_arrays(picks: ForcedPicks) -> dict[str, npt.NDArray[Any]]:
    """The picks as named arrays, for an npz that may hold other arrays too."""
    arrays: dict[str, npt.NDArray[Any]] = {
        name: getattr(picks, name).astype(kind) for name, kind in _TEACHER_FORCED_ARRAYS.items()
    }
    return arrays | {name: np.array(getattr(picks, name), dtype=np.str_) for name in _NAMES}


def forced_picks_of(arrays: Mapping[str, npt.NDArray[Any]], path: Path) -> ForcedPicks:
    """The inverse of :func:`forced_picks_arrays`.

    Args:
        arrays: at least those that it gave.
        path: of the file, for messages.

    Raises:
        RecordError: arrays do not fit together.
    """
    lacking = next((name for name in (*_TEACHER_FORCED_ARRAYS, *_NAMES) if name not in arrays), None)
    if lacking is not None:
        raise RecordError(f"{path}: damaged picks of forced tokens (without {lacking})")
    for name in _TEACHER_FORCED_ARRAYS:
        if arrays[name].dtype.kind not in KINDS_OF[name] or not arrays[name].ndim:
            raise RecordError(f"{path}: damaged picks of forced tokens ({name} holds {arrays[name].dtype})")
    values = {name: arrays[name] for name in _TEACHER_FORCED_ARRAYS}
    layers, classes = (tuple(str(x) for x in arrays[name]) for name in ("layers", "classes"))
    tokens = len(values["request_T"])
    shapes = {name: value.shape for name, value in values.items()}
    expected = dict.fromkeys(_TEACHER_FORCED_ARRAYS, (tokens,)) | {"margin_TL": (tokens, len(layers))}
    expected["picks_TLK"] = (tokens, len(layers), *shapes["picks_TLK"][2:3])
    wrong = next((name for name in _TEACHER_FORCED_ARRAYS if shapes[name] != expected[name]), None)
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
