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

Arrays = Mapping[str, npt.NDArray[Any]]
_INTEGERS = (np.int8, np.int16, np.int32, np.int64)
_PICKS = ("picks_TLK", "request_T", "position_T", "class_T", "is_output_T", "margin_TL")
_NAMES = ("layers", "classes")


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
            picks = compact_picks(model.picks)
            arrays |= {f"{number}.picks.{name}": getattr(picks, name) for name in _PICKS}
            arrays |= {f"{number}.picks.{name}": np.array(getattr(picks, name), dtype=np.str_) for name in _NAMES}
            arrays[f"{number}.picks.tokens_sha256"] = np.array(picks.tokens_sha256, dtype=np.str_)
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
        return [(_steps(arrays, f"{n}.steps."), _picks(arrays, f"{n}.picks.")) for n in range(num_models)]
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


def _picks(arrays: Arrays, prefix: str) -> ForcedPicks | None:
    if f"{prefix}picks_TLK" not in arrays:
        return None
    values = {name: arrays[f"{prefix}{name}"] for name in _PICKS}
    names = {name: tuple(str(item) for item in arrays[f"{prefix}{name}"]) for name in _NAMES}
    tokens, layers = len(values["request_T"]), len(names["layers"])
    if values["picks_TLK"].shape[:2] != (tokens, layers) or values["margin_TL"].shape != (tokens, layers):
        raise ValueError(f"picks of shape {values['picks_TLK'].shape}, {tokens} tokens and {layers} layers")
    if {len(values[name]) for name in ("position_T", "class_T", "is_output_T")} != {tokens}:
        raise ValueError(f"picks of {tokens} tokens with columns of other lengths")
    return ForcedPicks(**values, **names, tokens_sha256=str(arrays[f"{prefix}tokens_sha256"]))  # type: ignore[arg-type]


def _smallest(values: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.integer[Any]]:
    """In the smallest signed type that holds every value."""
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    kind = next(kind for kind in _INTEGERS if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max)
    return values.astype(kind)
