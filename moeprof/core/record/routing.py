"""Routing counts of one pass, on disk as ``routing.npz``; while the pass runs as parts of a second or so.

Legend: W windows, P phases, C request classes, L MoE layers, E experts, S steps.
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moeprof.core.errors import RecordError

MAX_WINDOWS = 256
_NAMES = ("layer_names", "class_names")
_STEP_COUNTS = "step_counts_SPLE"
_ARRAYS = (
    "counts_WPCLE",
    "real_tokens_WPC",
    "window_start_s",
    "window_first_step",
    "distinct_SL",
    "max_load_SL",
    "top_k_L",
    "dropped_PL",
    "identity_PL",
)


@dataclass(frozen=True, kw_only=True)
class Routing:
    """Routing counts of one pass. Legend: W windows, P phases, C classes, L MoE layers, E experts, S steps.

    Attributes:
        counts_WPCLE: executed (token, expert) assignments of real tokens.
        real_tokens_WPC: real tokens processed.
        window_start_s: start of each window.
        window_first_step: first step of each window.
        distinct_SL: experts with at least one token, per step and layer.
        max_load_SL: tokens of the busiest expert, per step and layer.
        step_counts_SPLE: counts of the first steps, up to the cap; None when not kept.
        layer_names: module path per MoE layer.
        class_names: request classes, index = C.
        top_k_L: picks per token and layer.
        dropped_PL: assignments routed but not executed (capacity drops, zero-weight picks).
        identity_PL: picks of zero-computation (identity) experts, counted apart.
    """

    counts_WPCLE: npt.NDArray[np.int64]
    real_tokens_WPC: npt.NDArray[np.int64]
    window_start_s: npt.NDArray[np.float64]
    window_first_step: npt.NDArray[np.int64]
    distinct_SL: npt.NDArray[np.int16]
    max_load_SL: npt.NDArray[np.int32]
    step_counts_SPLE: npt.NDArray[np.uint16] | None
    layer_names: tuple[str, ...]
    class_names: tuple[str, ...]
    top_k_L: npt.NDArray[np.int64]
    dropped_PL: npt.NDArray[np.int64]
    identity_PL: npt.NDArray[np.int64]

    @property
    def num_experts(self) -> int:
        """E."""
        return int(self.counts_WPCLE.shape[-1])

    def save(self, path: Path, *, compress: bool = True) -> None:
        """Write as npz."""
        arrays: dict[str, Any] = {name: getattr(self, name) for name in _ARRAYS}
        if self.step_counts_SPLE is not None:
            arrays["step_counts_SPLE"] = self.step_counts_SPLE
        arrays["layer_names"] = np.array(self.layer_names, dtype=np.str_)
        arrays["class_names"] = np.array(self.class_names, dtype=np.str_)
        temporary = path.with_name("tmp-" + path.name)
        (np.savez_compressed if compress else np.savez)(temporary, **arrays)
        temporary.replace(path)

    @staticmethod
    def load(path: Path) -> Routing:
        """Read what :meth:`save` wrote.

        Raises:
            RecordError: the file is damaged.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
                arrays = {name: data[name] for name in (*_ARRAYS, *_NAMES, *(set(data.files) & {_STEP_COUNTS}))}
        except (OSError, ValueError, KeyError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise RecordError(
                f"{path}: damaged routing counts ({error}); the rest of the record may be fine"
            ) from error
        layer_names = tuple(str(x) for x in arrays.pop("layer_names"))
        class_names = tuple(str(x) for x in arrays.pop("class_names"))
        step_counts = arrays.pop("step_counts_SPLE", None)
        return Routing(layer_names=layer_names, class_names=class_names, step_counts_SPLE=step_counts, **arrays)


def merge_routing(parts: list[Routing], max_windows: int = MAX_WINDOWS) -> Routing:
    """Windows of one pass, in order, as one Routing. Neighbours are added up until at most ``max_windows`` are left.

    Per-step counts are kept up to the first part that lacks them, so that row s is always step s.
    """
    kept = list(takewhile(lambda counts: counts is not None, (p.step_counts_SPLE for p in parts)))
    num_windows = sum(len(part.window_start_s) for part in parts)
    edges = np.arange(0, num_windows, -(-num_windows // max_windows))
    return Routing(
        counts_WPCLE=np.add.reduceat(np.concatenate([p.counts_WPCLE for p in parts]), edges, axis=0),
        real_tokens_WPC=np.add.reduceat(np.concatenate([p.real_tokens_WPC for p in parts]), edges, axis=0),
        window_start_s=np.concatenate([p.window_start_s for p in parts])[edges],
        window_first_step=np.concatenate([p.window_first_step for p in parts])[edges],
        distinct_SL=np.concatenate([p.distinct_SL for p in parts]),
        max_load_SL=np.concatenate([p.max_load_SL for p in parts]),
        step_counts_SPLE=np.concatenate([c for c in kept if c is not None]) if kept else None,
        layer_names=parts[0].layer_names,
        class_names=parts[0].class_names,
        top_k_L=parts[0].top_k_L,
        dropped_PL=np.sum([p.dropped_PL for p in parts], axis=0),
        identity_PL=np.sum([p.identity_PL for p in parts], axis=0),
    )


def join_routing_parts(folder: Path) -> None:
    """Replace ``routing.part-*.npz`` of a finished pass by ``routing.npz``."""
    parts = routing_parts(folder)
    if parts:
        merge_routing([Routing.load(part) for part in parts]).save(folder / "routing.npz")
        for part in parts:
            part.unlink()


def routing_parts(folder: Path) -> list[Path]:
    """The parts of a pass that has not ended, in order."""
    return sorted(folder.glob("routing.part-*.npz"), key=lambda p: int(p.stem.rpartition("-")[2]))
