"""Tables of picks by row: drawn so that each expert comes as often as asked, and those of ladder rungs. Numpy only.

Drawn: systematic sampling with unequal probabilities (Madow 1949, https://doi.org/10.1214/aoms/1177729950). Experts
stand in random order on a line, each as long as the chance that a token picks it; k points at distance 1 from a random
start choose k experts. No expert is longer than 1, so all k are distinct; one of length 0 is never chosen; and the
chance of each is exactly its length. (Drawing one after the other without replacement does not keep popularity: an
expert that nine of ten tokens pick would come far too seldom.)

Rungs of the ladder keep the tokens, the weights of the picks and the batches; only the experts change:
``concentrated``: every token to experts 0..k-1. ``balanced``: the step's own set of U experts, each with the same load.
``recorded``: as the router had it. ``distinct``: a set of a given size, each expert with the same load.
Suffix legend: N, R rows, L MoE layers, T tokens of the step, E experts, K top-k, U distinct experts, O orders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import gcd, lcm

import numpy as np
import numpy.typing as npt

from moeprof.capture.models.shapes import LayerShape
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


Change = Callable[[npt.NDArray[np.int32], LayerShape], npt.NDArray[np.int32]]  # picks [T, k] of one layer and step


def change_for(rung: str, distinct: int | None = None) -> Change:
    """The rule of a rung."""
    if rung == "distinct":
        assert distinct is not None
        return lambda picks, shape: _spread(np.arange(num_distinct(distinct, len(picks), shape)), picks)
    rules: dict[str, Change] = {
        "concentrated": lambda picks, shape: np.tile(np.arange(shape.top_k, dtype=np.int32), (len(picks), 1)),
        "balanced": lambda picks, shape: _spread(np.unique(picks), picks),
        "recorded": lambda picks, shape: picks,
    }
    return rules[rung]


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


def _spread(ids_U: npt.NDArray[np.integer], picks: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Token t's pick j is ids[(t * k + j) mod U]: loads differ by one at most, a token's picks differ as U >= k."""
    order = np.arange(picks.size) % len(ids_U)
    return ids_U[order].reshape(picks.shape).astype(np.int32)


FloatArray = npt.NDArray[np.float64]
Int32Array = npt.NDArray[np.int32]
ORDERS, STARTS = 512, 16  # a table has their product of rows: 8,192
NUM_ROWS = ORDERS * STARTS
UNIT = 2**40  # length 1 in whole numbers, so that nothing is rounded on the way


def drawn_table(popularity_LE: FloatArray, shapes: Sequence[LayerShape], seed: int) -> Int32Array:
    """Picks [L, N, K] whose experts come in proportion to popularity, layers independent of each other."""
    table_LNK = _empty(shapes, NUM_ROWS)
    for i, (shape, popularity_E) in enumerate(zip(shapes, popularity_LE, strict=True)):
        chance_E = inclusion(popularity_E[: shape.num_experts], shape.top_k)
        table_LNK[i, :, : shape.top_k] = _systematic(chance_E, shape.top_k, np.random.default_rng([seed, i]))
    return table_LNK


def balanced_table(shapes: Sequence[LayerShape]) -> Int32Array:
    """Picks [L, N, K] of a round robin: N consecutive rows use every expert equally often."""
    num_rows = lcm(*(shape.num_experts // gcd(shape.num_experts, shape.top_k) for shape in shapes))
    table_LNK = _empty(shapes, num_rows)
    for i, shape in enumerate(shapes):
        ids = np.arange(num_rows * shape.top_k) % shape.num_experts
        table_LNK[i, :, : shape.top_k] = ids.reshape(num_rows, shape.top_k)
    return table_LNK


def concentrated_table(shapes: Sequence[LayerShape]) -> Int32Array:
    """Picks [L, 1, K] that send every token to experts 0..k-1."""
    return _empty(shapes, 1)


def inclusion(popularity_E: FloatArray, top_k: int) -> FloatArray:
    """Chance that a token picks each expert: k times its share, at most 1; what is over goes to the others."""
    chance_E = np.zeros(len(popularity_E))
    left = popularity_E > 0
    room = float(top_k)
    while left.any() and room > 0:
        share = popularity_E * left * (room / popularity_E[left].sum())
        over = left & (share >= 1)
        if not over.any():
            chance_E[left] = share[left]
            break
        chance_E[over] = 1.0
        room, left = room - float(over.sum()), left & ~over
    return chance_E


def _empty(shapes: Sequence[LayerShape], num_rows: int) -> Int32Array:
    top_k = max(shape.top_k for shape in shapes)
    return np.tile(np.arange(top_k, dtype=np.int32), (len(shapes), num_rows, 1))


def _systematic(chance_E: FloatArray, top_k: int, random: np.random.Generator) -> Int32Array:
    """Picks [N, K]. Each of the random orders is used with starts spread evenly, which keeps shares closer still."""
    length_E = _whole(chance_E, top_k)
    order_OE = np.argsort(random.random((ORDERS, len(length_E))), axis=1)
    end_OE = np.cumsum(length_E[order_OE], axis=1)
    start_OS = (np.arange(STARTS) + random.random((ORDERS, 1))) * (UNIT // STARTS)
    point_OSK = 1 + start_OS.astype(np.int64)[..., None] + np.arange(top_k) * UNIT
    # One search for all orders: each gets a stretch of the line of its own.
    stretch_O = np.arange(ORDERS) * ((top_k + 1) * UNIT)
    found = np.searchsorted((end_OE + stretch_O[:, None]).ravel(), (point_OSK + stretch_O[:, None, None]).ravel())
    picks: Int32Array = order_OE.ravel()[found].reshape(NUM_ROWS, top_k).astype(np.int32)
    return picks


def _whole(chance_E: FloatArray, top_k: int) -> npt.NDArray[np.int64]:
    """Lengths in whole numbers, at most UNIT each, k * UNIT together, 0 only where the chance is 0."""
    length_E = np.minimum((chance_E * UNIT).astype(np.int64), UNIT)
    missing = top_k * UNIT - int(length_E.sum())
    for expert in np.argsort(-chance_E, kind="stable"):
        room = UNIT - int(length_E[expert]) if chance_E[expert] > 0 else 0
        length_E[expert] += min(room, missing)
        missing -= min(room, missing)
    return length_E


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLoad:
    """How one step's tokens were spread over the experts, summed over MoE layers.

    Attributes:
        distinct_experts: experts with a token.
        max_expert_load: tokens of the busiest expert.
    """

    distinct_experts: int
    max_expert_load: int
