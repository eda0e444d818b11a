"""What the record keeps of the ranks: memory of each and of all, and the picks that each rank's experts got.

Rank 0 writes the record. The counts in it are those of its own tap, which sees every pick with its global number; what
the other ranks counted is gathered at the end of each pass and must be the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moeprof.core.errors import EngineError
from moeprof.core.record.routing import Routing
from moeprof.core.workload.engine import Parallel

if TYPE_CHECKING:
    from moeprof.capture.parallel.group import Group

# Of one machine, however many ranks there are.
SHARED = {"host": ("device_total_bytes",), "device": ("host_rss_start_bytes",)}


def memory_of_ranks(memory: dict[str, Any], parallel: Parallel | None) -> dict[str, Any]:
    """Parts of launch.json: ``memory`` summed over ranks, and ``ranks`` with that of each and the largest.

    Args:
        memory: of rank 0.
        parallel: the plan; None: nothing is shared and ``memory`` is all there is.
    """
    group = None if parallel is None else _group()
    if parallel is None or group is None:
        return {"memory": memory}
    group.tell("memory")
    each = group.gather(memory)
    cache = memory.get("kv_cache_bytes")  # that of the engine's facts: of all ranks
    if cache is not None:
        each[0] = memory | {"kv_cache_bytes": cache - sum(part["kv_cache_bytes"] or 0 for part in each[1:])}
    ranks = {
        "plan": parallel.plan,
        "ranks": parallel.ranks,
        "backend": group.backend,
        "memory_of_each": [numbers(part) for part in each],
        "memory_largest": combined(each, max),
    }
    return {"memory": memory | combined(each, sum), "ranks": ranks}


def _group() -> Group | None:
    from moeprof.capture.parallel.group import joined_or_none  # torch.distributed is not there on every platform

    return joined_or_none()


def numbers(memory: Mapping[str, Any]) -> dict[str, int]:
    """The bytes of a ``memory`` part that were measured."""
    return {key: value for key, value in memory.items() if key.endswith("_bytes") and isinstance(value, int)}


def combined(each: Sequence[Mapping[str, Any]], how: Any) -> dict[str, int]:
    """Bytes that all ranks measured, put together; what belongs to the machine is left out."""
    shared = SHARED["device" if each[0].get("kind") == "device" else "host"]
    common = [key for key in numbers(each[0]) if key not in shared and all(key in numbers(part) for part in each)]
    return {key: how(numbers(part)[key] for part in each) for key in common}


def picks_of_ranks(folder: Path, parallel: Parallel | None) -> dict[str, Any]:
    """Part of pass.json: picks per rank, once the ranks' counts were found equal. Empty where nothing is shared.

    Args:
        folder: of the pass; rank 0's counts stand there.
        parallel: the plan.

    Raises:
        EngineError: a rank counted other picks than rank 0.
    """
    group, file = None if parallel is None else _group(), folder / "routing.npz"
    if parallel is None or group is None or not file.exists():
        return {}
    counts_LE = Routing.load(file).counts_WPCLE.sum(axis=(0, 1, 2), dtype=np.int64)
    for rank, theirs_LE in enumerate(group.counts_of_followers, start=1):
        if theirs_LE is None or not np.array_equal(counts_LE, theirs_LE):
            raise EngineError(f"rank {rank} counted other picks than rank 0, so the counts of this pass are not used")
    return {"ranks": {"gathered": parallel.ranks, "picks": _by_rank(counts_LE, parallel)}}


def _by_rank(counts_LE: npt.NDArray[np.int64], parallel: Parallel) -> list[int]:
    """Picks that each rank computes: of its own experts, or its width of all of them."""
    if parallel.plan == "tensor":
        return [int(counts_LE.sum())] * parallel.ranks
    return [int(part_LE.sum()) for part_LE in np.array_split(counts_LE, parallel.ranks, axis=1)]
