"""Tables of picks drawn so that each expert comes as often as asked. Numpy only.

Systematic sampling with unequal probabilities (Madow 1949, https://doi.org/10.1214/aoms/1177729950): experts stand in
random order on a line, each as long as the chance that a token picks it; k points at distance 1 from a random start
choose k experts. No expert is longer than 1, so all k are distinct; one of length 0 is never chosen; and the chance of
each is exactly its length. (Drawing one after the other without replacement does not keep popularity: an expert that
nine of ten tokens pick would come far too seldom.)
Suffix legend: N rows, L MoE layers, E experts, K top-k, O orders.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd, lcm

import numpy as np
import numpy.typing as npt

from moeprof.capture.rungs import LayerShape

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
