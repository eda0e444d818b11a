"""Routing counts of one pass, on disk as ``routing.npz``; while the pass runs as parts of a second or so.

Legend: W windows, P phases, C request classes, L MoE layers, E experts, S steps, U groups of requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moeprof.core.errors import RecordError
from moeprof.core.files import UnreadableError, numbered, read_arrays, write_arrays

MAX_WINDOWS = 256
MAX_REQUEST_GROUPS = 64  # of all classes together
GROUPS_OF_A_CLASS = 8  # that many for each class at least, where there are many classes
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


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestCounts:
    """Routing counts by group of neighbouring requests of one class: what may be shuffled and drawn anew.

    The i-th request of a class, in the order of the schedule, belongs to the class's group ``i // requests_per_group``:
    one request each as long as there are few, then 2, 4, 8, so that no more than ``MAX_REQUEST_GROUPS`` are kept.

    Attributes:
        request_counts_UPLE: executed (token, expert) assignments of real tokens.
        request_class_U: index into ``class_names``.
        request_group_U: number of the group within its class.
        request_first_U: row in the schedule of the first request of the group that was routed.
        requests_per_group: a power of two.
    """

    request_counts_UPLE: npt.NDArray[np.integer[Any]]
    request_class_U: npt.NDArray[np.int64]
    request_group_U: npt.NDArray[np.int64]
    request_first_U: npt.NDArray[np.int64]
    requests_per_group: int

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """As npz holds them; the counts in the smallest type that holds them."""
        found: dict[str, npt.NDArray[Any]] = {name: np.asarray(getattr(self, name)) for name in _REQUEST_ARRAYS}
        counts = found["request_counts_UPLE"]
        return found | {"request_counts_UPLE": counts.astype(np.min_scalar_type(int(counts.max(initial=0))))}

    @staticmethod
    def of(arrays: dict[str, npt.NDArray[Any]]) -> RequestCounts | None:
        """Take them out of what an npz holds; None where a record of an older version has none."""
        found = {name: arrays.pop(name) for name in _REQUEST_ARRAYS if name in arrays}
        if len(found) < len(_REQUEST_ARRAYS):
            return None
        size = int(found.pop("requests_per_group"))
        return RequestCounts(**{k: v.astype(np.int64) for k, v in found.items()}, requests_per_group=size)


_REQUEST_ARRAYS = (
    "request_counts_UPLE",
    "request_class_U",
    "request_group_U",
    "request_first_U",
    "requests_per_group",
)


def merge_requests(parts: Sequence[RequestCounts], most: int = MAX_REQUEST_GROUPS) -> RequestCounts | None:
    """Counts added up by group; neighbours become one until at most ``most`` are left, or 8 times the classes."""
    if not parts:
        return None
    size = max(part.requests_per_group for part in parts)
    class_U = np.concatenate([part.request_class_U for part in parts])
    group_U = np.concatenate([part.request_group_U * part.requests_per_group for part in parts]) // size
    limit = max(GROUPS_OF_A_CLASS * len(np.unique(class_U)), most)
    while True:
        pairs, row_U = np.unique(np.stack([class_U, group_U]), axis=1, return_inverse=True)
        if pairs.shape[1] <= limit:
            break
        size, group_U = 2 * size, group_U // 2
    order = np.argsort(row_U.reshape(-1), kind="stable")
    starts = np.searchsorted(row_U.reshape(-1)[order], np.arange(pairs.shape[1]))
    counts = np.concatenate([part.request_counts_UPLE for part in parts])[order]
    return RequestCounts(
        request_counts_UPLE=np.add.reduceat(counts, starts, axis=0, dtype=np.int64),
        request_class_U=pairs[0],
        request_group_U=pairs[1],
        request_first_U=np.minimum.reduceat(np.concatenate([p.request_first_U for p in parts])[order], starts),
        requests_per_group=size,
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
        requests: the same assignments by group of requests; None in records of versions that did not count them.
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
    requests: RequestCounts | None = None

    @property
    def num_experts(self) -> int:
        """E."""
        return int(self.counts_WPCLE.shape[-1])

    def save(self, path: Path, *, compress: bool = True) -> None:
        """Write as npz."""
        arrays: dict[str, Any] = {name: getattr(self, name) for name in _ARRAYS}
        if self.step_counts_SPLE is not None:
            arrays["step_counts_SPLE"] = self.step_counts_SPLE
        if self.requests is not None:
            arrays |= self.requests.arrays()
        arrays["layer_names"] = np.array(self.layer_names, dtype=np.str_)
        arrays["class_names"] = np.array(self.class_names, dtype=np.str_)
        write_arrays(path, arrays, compress=compress)

    @staticmethod
    def load(path: Path) -> Routing:
        """Read what :meth:`save` wrote.

        Raises:
            RecordError: the file is damaged.
        """
        try:
            found = read_arrays(path)
            optional = set(found) & {_STEP_COUNTS, *_REQUEST_ARRAYS}
            arrays = {name: found[name] for name in (*_ARRAYS, *_NAMES, *optional)}
            _check_shapes(path, arrays)
        except (UnreadableError, KeyError) as error:
            why = error.why if isinstance(error, UnreadableError) else f"without {error}"
            raise RecordError(f"{path}: damaged routing counts ({why}); the rest of the record may be fine") from error
        layer_names = tuple(str(x) for x in arrays.pop("layer_names"))
        class_names = tuple(str(x) for x in arrays.pop("class_names"))
        step_counts = arrays.pop("step_counts_SPLE", None)
        requests = RequestCounts.of(arrays)
        return Routing(
            layer_names=layer_names, class_names=class_names, step_counts_SPLE=step_counts, requests=requests, **arrays
        )


def _check_shapes(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> None:
    """Arrays are numbers of the shape that their names say, and axes of one letter have one length.

    Raises:
        UnreadableError: one is not.
    """
    lengths = {letter: arrays[name].size for letter, name in (("L", "layer_names"), ("C", "class_names"))}
    for name, array in arrays.items():
        axes = {"layer_names": "L", "class_names": "C", "requests_per_group": ""}.get(name, name.rpartition("_")[2])
        axes = axes if axes.isupper() or not axes else "W"  # window_start_s and window_first_step
        if array.ndim != len(axes) or (array.dtype.kind == "U") is not (name in _NAMES):
            raise UnreadableError(path, f"{name} is {array.dtype} of shape {list(array.shape)}")
        for letter, length in zip(axes, array.shape, strict=True):
            if lengths.setdefault(letter, length) != length:
                raise UnreadableError(path, f"{name} has {length} for {letter}, others have {lengths[letter]}")


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
        requests=merge_requests([p.requests for p in parts if p.requests is not None]),
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
    return numbered(folder.glob("routing.part-*.npz"))
