"""Two sides' routing, brought together: the same tokens where both have picks of them, else loads alone.

Legend: T tokens, B blocks of tokens (requests, or stretches of them), E experts, K picks, C classes. What a side counts
is always a pair (reference, other).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moeprof.analysis.compare.comparable import Difference
from moeprof.analysis.metrics.routing.picks import ExpertIds
from moeprof.analysis.metrics.tables import BoolArray
from moeprof.analysis.stats.arrays import FloatArray, IntArray
from moeprof.core.baseline.baseline import BaselineModel
from moeprof.core.record.layout import PHASES
from moeprof.core.record.picks import ForcedPicks

MINIMUM_REQUESTS = 20  # fewer are cut into stretches, so that sides can be swapped in enough ways
STRETCHES = 40
EXPERTS = "experts_per_layer"  # the fact that differs where no expert has a counterpart


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPair:
    """One MoE layer on both sides.

    Attributes:
        name: module path.
        num_experts: E.
        top_k: k, of the side with more.
        counts_BE: tokens of each block that took each expert, (reference, other).
        agreed_B: sum over the block's tokens of |S & S'| / k; None without picks.
        is_identical: every token has the same set on both sides (without picks: every expert the same count).
        margins: finite margins of the tokens, (reference, other); empty where a side has none.
        phases_BE: phase -> the same counts, of its tokens alone.
    """

    name: str
    num_experts: int
    top_k: int
    counts_BE: tuple[IntArray, IntArray]
    agreed_B: FloatArray | None
    is_identical: bool
    margins: tuple[FloatArray, FloatArray]
    phases_BE: Mapping[str, tuple[IntArray, IntArray]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingPair:
    """All MoE layers that both sides have.

    Attributes:
        layers: in the reference's order.
        tokens: on both sides; the smaller number where they are not the same tokens.
        tokens_B: of each block.
        request_B: each block's request, numbered from 0.
        class_B: each block's class, numbered from 0.
        no_picks: why tokens could not be set against each other one by one; None where they were.
        phase_tokens: phase -> its tokens; phases without any are left out.
    """

    layers: tuple[LayerPair, ...]
    tokens: int
    phase_tokens: Mapping[str, int]
    tokens_B: IntArray
    request_B: IntArray
    class_B: IntArray
    no_picks: str | None = None


def experts_difference(reference: BaselineModel, other: BaselineModel) -> Difference | None:
    """A layer that both have holds another number of experts; None where all are alike.

    Then no expert of one side is one of the other, and no figure of routing is set against the other's, whatever is
    allowed.
    """
    sides = [_experts_by_layer(model) for model in (reference, other)]
    both = [name for name in sides[0] if sides[0][name] != sides[1].get(name, sides[0][name])]
    if not both:
        return None
    texts = [", ".join(str(num) for num in dict.fromkeys(side[name] for name in both)) for side in sides]
    return Difference(name=EXPERTS, first=texts[0], second=texts[1], forbids=frozenset({"routing"}), model=other.name)


def _experts_by_layer(model: BaselineModel) -> dict[str, int]:
    """E of each layer that has picks or loads; from the loads where a baseline does not say."""
    found: dict[str, int] = {}
    if model.routing is not None:
        loads = next(iter(model.routing.counts.values()), ())
        found |= {name: len(row) for name, row in zip(model.routing.layers, loads, strict=False)}
    names = model.picks.layers if model.picks is not None else tuple(found)
    return found | dict(zip(names, model.num_experts, strict=False))


def pair_routing(reference: BaselineModel, other: BaselineModel) -> RoutingPair | None:
    """Bring two sides together; None where they share no routed layer, or a layer has experts that are not the same.

    Picks are set against each other where both sides have them of one text (equal ``tokens_sha256``); a side with fewer
    tokens of it is met at the tokens that both have, by request and position.
    """
    if experts_difference(reference, other) is not None:
        return None
    first, second = reference.picks, other.picks
    if first is None or second is None:
        side = "neither side has" if first is second else "one side has no"
        return _pair_loads(reference, other, f"{side} picks of forced tokens")
    if first.tokens_sha256 != second.tokens_sha256:
        return _pair_loads(reference, other, "the forced tokens of the two sides differ")
    rows = _common_rows(first, second)
    if not len(rows[0]):
        return _pair_loads(reference, other, "the two sides have no forced token in common")
    return _pair_picks(reference, other, (first, second), rows)


def _common_rows(first: ForcedPicks, second: ForcedPicks) -> tuple[IntArray, IntArray]:
    """Rows of the tokens that both have, sorted by request and position."""
    keys = [side.request_T.astype(np.int64) << 32 | side.position_T.astype(np.int64) for side in (first, second)]
    _, one, two = np.intersect1d(keys[0], keys[1], return_indices=True)
    return one.astype(np.int64), two.astype(np.int64)


def _pair_picks(
    reference: BaselineModel,
    other: BaselineModel,
    picks: tuple[ForcedPicks, ForcedPicks],
    rows: tuple[IntArray, IntArray],
) -> RoutingPair | None:
    request_T = np.unique(picks[0].request_T[rows[0]], return_inverse=True)[1]
    class_T = picks[0].class_T[rows[0]].astype(np.int64)
    starts = _block_starts(request_T)
    is_output_T = picks[0].is_output_T[rows[0]]
    found = []
    for index, name in enumerate(picks[0].layers):
        if name not in picks[1].layers:
            continue
        where = (index, picks[1].layers.index(name))
        sides = tuple(
            (side.picks_TLK[row, layer], side.margin_TL[row, layer].astype(np.float64))
            for side, row, layer in zip(picks, rows, where, strict=True)
        )
        experts = max(
            _of_layer(model.num_experts, layer, int(one.max(initial=-1)) + 1)
            for model, layer, (one, _) in zip((reference, other), where, sides, strict=True)
        )
        top_k = max(
            _of_layer(m.top_k, i, one.shape[1]) for m, i, (one, _) in zip((reference, other), where, sides, strict=True)
        )
        found.append(_layer_pair(name, experts, top_k, sides[0], sides[1], starts, is_output_T))
    if not found:
        return None
    return RoutingPair(
        layers=tuple(found),
        tokens=len(request_T),
        phase_tokens=_present(dict(zip(PHASES, (int((~is_output_T).sum()), int(is_output_T.sum())), strict=True))),
        tokens_B=np.diff(np.append(starts, len(request_T))),
        request_B=request_T[starts].astype(np.int64),
        class_B=np.unique(class_T[starts], return_inverse=True)[1].astype(np.int64),
    )


def _of_layer(values: tuple[int, ...], layer: int, default: int) -> int:
    return values[layer] if layer < len(values) else default


def _block_starts(request_T: IntArray) -> IntArray:
    """First row of each block: of each request, or of each stretch where there are few requests."""
    starts = np.flatnonzero(np.diff(request_T, prepend=-1) != 0)
    if len(starts) >= MINIMUM_REQUESTS:
        return starts
    length = -(-len(request_T) // STRETCHES)
    ends = np.append(starts[1:], len(request_T))
    return np.concatenate([np.arange(start, end, length) for start, end in zip(starts, ends, strict=True)])


def _layer_pair(
    name: str,
    experts: int,
    top_k: int,
    reference: tuple[ExpertIds, FloatArray],
    other: tuple[ExpertIds, FloatArray],
    starts: IntArray,
    is_output_T: BoolArray,
) -> LayerPair:
    first, second = members(reference[0], experts), members(other[0], experts)
    shared = (first & second).sum(axis=1)
    most = np.maximum(first.sum(axis=1), second.sum(axis=1))
    agreed = np.where(most > 0, shared / np.maximum(most, 1), 1.0)
    margins = tuple(margin[np.isfinite(margin)] for _, margin in (reference, other))

    def counted(taken: BoolArray) -> tuple[IntArray, IntArray]:
        one, two = (np.add.reduceat(side & taken[:, None], starts, axis=0, dtype=np.int64) for side in (first, second))
        return one, two

    return LayerPair(
        name=name,
        num_experts=experts,
        top_k=top_k,
        counts_BE=counted(np.ones_like(is_output_T)),
        agreed_B=np.add.reduceat(agreed, starts),
        is_identical=bool((first == second).all()),
        margins=(margins[0], margins[1]),
        phases_BE=dict(zip(PHASES, (counted(~is_output_T), counted(is_output_T)), strict=True)),
    )


def _present(tokens: Mapping[str, int]) -> dict[str, int]:
    return {phase: num for phase, num in tokens.items() if num}


def members(picks_TK: ExpertIds, num_experts: int) -> BoolArray:
    """Which experts each token took, shape [T, E]; ids below 0 and from E on are no experts."""
    ids = picks_TK.astype(np.int64)  # a baseline keeps them in as few bits as they need
    real = (ids >= 0) & (ids < num_experts)
    taken = np.zeros((len(ids), num_experts + 1), dtype=np.bool_)
    taken[np.arange(len(ids))[:, None], np.where(real, ids, num_experts)] = True
    return taken[:, :num_experts]


def _pair_loads(reference: BaselineModel, other: BaselineModel, reason: str) -> RoutingPair | None:
    """Loads alone, phases that both sides have together: one block."""
    first, second = reference.routing, other.routing
    if first is None or second is None:
        return None
    phases = [phase for phase in first.counts if first.tokens.get(phase) and second.tokens.get(phase)]
    found = []
    for index, name in enumerate(first.layers):
        if name not in second.layers or not phases:
            continue
        where = second.layers.index(name)
        by_phase = {phase: _one_block(first.counts[phase][index], second.counts[phase][where]) for phase in phases}
        both = np.sum(list(by_phase.values()), axis=0)  # [sides, 1, E]
        found.append(
            LayerPair(
                name=name,
                num_experts=both.shape[2],
                top_k=max(_of_layer(reference.top_k, index, 1), _of_layer(other.top_k, where, 1)),
                counts_BE=(both[0], both[1]),
                agreed_B=None,
                is_identical=all(bool((one == two).all()) for one, two in by_phase.values()),
                margins=(np.empty(0), np.empty(0)),
                phases_BE=by_phase,
            )
        )
    if not found:
        return None
    tokens = {phase: min(first.tokens[phase], second.tokens[phase]) for phase in phases}
    one_block, num = np.zeros(1, dtype=np.int64), sum(tokens.values())
    return RoutingPair(
        layers=tuple(found), tokens=num, phase_tokens=tokens, tokens_B=one_block + num, request_B=one_block,
        class_B=one_block, no_picks=reason,
    )  # fmt: skip


def _one_block(first: Sequence[int], second: Sequence[int]) -> tuple[IntArray, IntArray]:
    """Two rows of counts, as one block each."""
    one, two = (np.array(row, dtype=np.int64)[None] for row in (first, second))
    return one, two
