"""The picks of the sparsity ladder's rungs, from what the router did (METRICS section 8); numpy only.

Every rung keeps the tokens, the weights of the picks and the batches; only the experts change:
``concentrated``: every token to experts 0..k-1. ``balanced``: the step's own set of U experts, each with the same load.
``recorded``: as the router had it. ``distinct``: a set of a given size, each expert with the same load.
Suffix legend: L MoE layers, T tokens of the step, R rows of a table, K top-k, E experts, U distinct experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moeprof.capture.lockstep import StepLoad
from moeprof.core.errors import EngineError
from moeprof.core.trace import IntArray

Picks = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPicks:
    """What one step routed.

    Attributes:
        rows_T: table rows of its real tokens.
        picks_LTK: their experts; columns past a layer's own k hold 0.
    """

    rows_T: IntArray
    picks_LTK: Picks


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """E and k of one MoE layer; ``num_identity`` ids from E on stand for experts that compute nothing."""

    num_experts: int
    top_k: int
    num_identity: int = 0

    @property
    def num_ids(self) -> int:
        """Ids that a pick may have."""
        return self.num_experts + self.num_identity


Change = Callable[[npt.NDArray[np.int32], LayerShape], npt.NDArray[np.int32]]  # picks [T, k] of one layer and step


def change_for(rung: str, distinct: int | None = None) -> Change:
    """The rule of a rung."""
    if rung == "distinct":
        assert distinct is not None
        return lambda picks, shape: _spread(np.arange(num_distinct(distinct, len(picks), shape)), picks)
    return {"concentrated": _concentrated, "balanced": _balanced, "recorded": lambda picks, shape: picks}[rung]


def num_distinct(asked: int, num_tokens: int, shape: LayerShape) -> int:
    """Experts that a step can touch: at most E and T * k, at least k (the picks of a token differ)."""
    return max(shape.top_k, min(asked, shape.num_experts, num_tokens * shape.top_k))


def changed(steps: Sequence[StepPicks], shapes: Sequence[LayerShape], change: Change) -> list[StepPicks]:
    """The steps with other experts."""
    result = []
    for step in steps:
        picks_LTK = np.zeros_like(step.picks_LTK)
        for i, shape in enumerate(shapes):
            picks_LTK[i, :, : shape.top_k] = change(step.picks_LTK[i, :, : shape.top_k], shape)
        result.append(StepPicks(rows_T=step.rows_T, picks_LTK=picks_LTK))
    return result


def table_of(steps: Sequence[StepPicks], num_rows: int) -> Picks:
    """Picks by row [L, R, K]. Rows that no step computed hold experts 0..k-1, and are never asked for.

    Raises:
        EngineError: a token was computed twice, so its step is not one.
    """
    rows_R = np.concatenate([step.rows_T for step in steps])
    if len(np.unique(rows_R)) != len(rows_R):
        raise EngineError("tokens were computed twice while routing was recorded; raise engine.kv_tokens")
    first = steps[0].picks_LTK
    table_LRK = np.tile(np.arange(first.shape[2], dtype=np.int32), (first.shape[0], num_rows, 1))
    for step in steps:
        table_LRK[:, step.rows_T] = step.picks_LTK
    return table_LRK


def loads_of(steps: Sequence[StepPicks], shapes: Sequence[LayerShape]) -> list[StepLoad]:
    """Distinct experts and the busiest one's tokens, summed over layers, per step; ids from E on are no experts."""
    loads = []
    for step in steps:
        distinct = most = 0
        for i, shape in enumerate(shapes):
            ids = step.picks_LTK[i, :, : shape.top_k].ravel()
            count_E = np.bincount(ids[ids < shape.num_experts], minlength=1)
            distinct, most = distinct + int((count_E > 0).sum()), most + int(count_E.max())
        loads.append(StepLoad(distinct_experts=distinct, max_expert_load=most))
    return loads


def _concentrated(picks: npt.NDArray[np.int32], shape: LayerShape) -> npt.NDArray[np.int32]:
    return np.tile(np.arange(shape.top_k, dtype=np.int32), (len(picks), 1))


def _balanced(picks: npt.NDArray[np.int32], shape: LayerShape) -> npt.NDArray[np.int32]:
    return _spread(np.unique(picks), picks)


def _spread(ids_U: npt.NDArray[np.integer], picks: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Token t's pick j is ids[(t * k + j) mod U]: loads differ by one at most, a token's picks differ as U >= k."""
    order = np.arange(picks.size) % len(ids_U)
    return ids_U[order].reshape(picks.shape).astype(np.int32)
