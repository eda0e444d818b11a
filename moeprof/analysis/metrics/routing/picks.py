"""Figures that need every pick, not only counts: which experts go together, and what consecutive tokens share.

Picks are present only in detailed records. Legend: T tokens, L layers, k picks in the router's order, E experts.

Figures of single picks as metric values: experts taken together, and what consecutive tokens share.

They describe all layers together and both phases. A large record is thinned to every n-th request, whole sequences,
so that the figures take seconds; the nulls use the same tokens.

How near routing was to another choice: quantiles of p_(k) - p_(k+1) over forced tokens (docs/metrics.md#router).

Tokens are those of forced.npz, one request at a time, so the figures are facts of model and text. Tokens of a request
are alike: intervals resample whole requests, and n counts them. Legend: T tokens, L MoE layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from moeprof.analysis.metrics.context import Context
from moeprof.analysis.metrics.routing.nulls import consecutive_overlap_null, consecutive_top1_null
from moeprof.analysis.metrics.tables import ALL, BoolArray
from moeprof.analysis.metrics.validity import judged
from moeprof.analysis.stats import intervals
from moeprof.analysis.stats.arrays import FloatArray
from moeprof.core.metric import Card, MetricValue, Place, estimated, missing
from moeprof.core.model_facts import ModelFacts
from moeprof.core.record.layout import PHASES, LaunchRecord
from moeprof.core.record.picks import ForcedPicks, Picks

ExpertIds = npt.NDArray[np.integer[Any]]

_MARGIN = (
    "th percentile of p_(k) - p_(k+1) of the gate's selection scores, over forced tokens and layers "
    "whose picks those scores give"
)
_card = partial(Card, section="routing", source="docs/metrics.md#router", kind="routing", from_routing=True)
CARDS: tuple[Card, ...] = (
    _card("routing_agreement_ratio", "Routing agreement of two runs", "ratio", "higher",
          "mean of shared picks / k over tokens that both runs processed", gates=(Place(110, "-1%"),)),
    _card("coactivation", "Co-activation", "ratio", "neither",
          "sum_i max_j N_ij / sum_i N_i: share of an expert's tokens that its most frequent partner takes too, mean "
          "over layers; nulls: uniform router, and all picks dealt anew among tokens"),
    _card("consecutive_same_top1_ratio", "Same first expert as the token before", "ratio", "neither",
          "share of consecutive tokens of a sequence; n = sequences; uniform null 1/E",
          source="Mixtral of Experts (arXiv 2401.04088), table 5", bounded=True),
    _card("consecutive_overlap_ratio", "Any expert shared with the token before", "ratio", "neither",
          "share of consecutive tokens of a sequence; n = sequences; uniform null 1 - C(E-k,k)/C(E,k)",
          source="Mixtral of Experts (arXiv 2401.04088), table 5", bounded=True),
    _card("router_margin_p05", "Routing margin, 5th percentile", "ratio", "higher", f"5{_MARGIN}"),
    _card("router_margin_p50", "Routing margin, median", "ratio", "higher", f"50{_MARGIN}"),
)  # fmt: skip


def compute(context: Context) -> list[MetricValue]:
    """Margins of a model; figures of single picks belong to a round, see routing/metrics.py."""
    return margin_metrics(context.launches)


def _pairs(picks_TK: ExpertIds, num_experts: int) -> FloatArray:
    """N_ij of one layer, shape [E, E], N_i on the diagonal. Ids from E on stand for no expert and are not counted."""
    size = num_experts + 1
    one = np.minimum(picks_TK.astype(np.int64), num_experts)
    square = np.zeros(size * size)
    for first in range(one.shape[1]):
        for second in range(first, one.shape[1]):
            square += np.bincount(one[:, first] * size + one[:, second], minlength=size * size)
    half = square.reshape(size, size)[:num_experts, :num_experts]
    return np.asarray(half + half.T - np.diag(np.diagonal(half)), dtype=np.float64)


def coactivation_with_nulls(
    picks: ExpertIds, num_experts: int, *, seed: int = 0
) -> tuple[float | None, dict[str, float]]:
    """Share of an expert's tokens that its most frequent partner takes too: sum_i max_j N_ij / sum_i N_i, over layers.

    (The plain mean of N_ij / N_i over all pairs is (k-1)/(E-1) whatever the router does, so it says nothing.)

    Args:
        picks: shape [T, L, k].
        num_experts: E.
        seed: of the nulls.

    Returns:
        The share, None without picks, and what it is by chance for as many tokens: ``uniform`` router, and
        ``permutation``, picks dealt anew among the tokens so that every expert keeps its popularity.
    """
    rng = np.random.default_rng(seed)
    num_tokens, num_layers, top_k = picks.shape
    drawn = np.argpartition(rng.random((num_tokens, num_experts)), top_k - 1, axis=1)[:, :top_k]
    found = [_strongest(picks[:, layer], num_experts) for layer in range(num_layers)]
    dealt = [_strongest(_dealt_anew(picks[:, layer], rng), num_experts) for layer in range(num_layers)]
    known = [share for share in found if share is not None]
    nulls = {"uniform": _strongest(drawn, num_experts), "permutation": _mean([x for x in dealt if x is not None])}
    return _mean(known), {name: value for name, value in nulls.items() if value is not None}


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _strongest(picks_TK: ExpertIds, num_experts: int) -> float | None:
    pairs = _pairs(picks_TK, num_experts)
    alone = float(np.trace(pairs))
    np.fill_diagonal(pairs, 0)
    return float(pairs.max(axis=1).sum()) / alone if alone else None


def _dealt_anew(picks_TK: ExpertIds, rng: np.random.Generator) -> ExpertIds:
    """All picks of a layer dealt to the tokens at random, no expert twice to one token (the few left over are dropped).

    Tokens with a double are dealt again together with as many others, up to fifty times.
    """
    dealt: ExpertIds = rng.permutation(picks_TK.reshape(-1)).reshape(picks_TK.shape)
    for _ in range(50):
        double = (np.diff(np.sort(dealt, axis=1), axis=1) == 0).any(axis=1)
        if not double.any():
            return dealt
        rows = np.unique(np.concatenate([np.flatnonzero(double), rng.integers(0, len(dealt), size=int(double.sum()))]))
        dealt[rows] = rng.permutation(dealt[rows].reshape(-1)).reshape(len(rows), -1)
    proper: ExpertIds = dealt[~(np.diff(np.sort(dealt, axis=1), axis=1) == 0).any(axis=1)]
    return proper


@dataclass(frozen=True, slots=True, kw_only=True)
class Consecutive:
    """What a token shares with the one before it in its sequence.

    Attributes:
        permuted_same_top1, permuted_overlap: per layer after shuffling all tokens (popularity kept, order destroyed).
        uniform_same_top1, uniform_overlap: 1/E and 1 - C(E-k,k)/C(E,k).
        same_top1_pairs, overlap_pairs: share of layers with the same first choice, with any common expert, of each pair
            within a sequence, in the order given; shape [pairs].
    """

    permuted_same_top1: FloatArray
    permuted_overlap: FloatArray
    uniform_same_top1: float
    uniform_overlap: float
    same_top1_pairs: FloatArray
    overlap_pairs: FloatArray


def consecutive_overlap(
    picks: ExpertIds, sequence_starts: npt.NDArray[np.int64], num_experts: int, *, permutations: int = 20, seed: int = 0
) -> Consecutive | None:
    """Compare each token's picks with those of the token before it in the same sequence.

    Args:
        picks: shape [T, L, k], sequences one after another.
        sequence_starts: row of each sequence's first token.
        num_experts: E.
        permutations: shuffles for the null.
        seed: of the shuffles.

    Returns:
        None when no sequence has two tokens.
    """
    follows = np.ones(len(picks), dtype=np.bool_)
    follows[sequence_starts[sequence_starts < len(picks)]] = False
    later = np.flatnonzero(follows)
    if not len(later):
        return None
    same, overlap = _shared(picks, later, num_experts)
    rng = np.random.default_rng(seed)
    shuffled = [_shared(picks[rng.permutation(len(picks))], later, num_experts) for _ in range(permutations)]
    return Consecutive(
        permuted_same_top1=np.mean([one.mean(axis=0) for one, _ in shuffled], axis=0),
        permuted_overlap=np.mean([two.mean(axis=0) for _, two in shuffled], axis=0),
        uniform_same_top1=consecutive_top1_null(num_experts),
        uniform_overlap=consecutive_overlap_null(num_experts, picks.shape[2]),
        same_top1_pairs=same.mean(axis=1),
        overlap_pairs=overlap.mean(axis=1),
    )


def _shared(picks: ExpertIds, later: npt.NDArray[np.int64], num_experts: int) -> tuple[BoolArray, BoolArray]:
    """Per pair and layer: same first choice, any common expert. Ids from E on are no experts to share."""
    now, before = picks[later], picks[later - 1]
    real = now < num_experts
    same = (now[:, :, 0] == before[:, :, 0]) & real[:, :, 0]
    overlap = np.zeros(now.shape[:2], dtype=np.bool_)
    for pick in range(picks.shape[2]):
        overlap |= (before == now[:, :, pick : pick + 1]).any(axis=2) & real[:, :, pick]
    return same, overlap


PICK_NAMES = ("coactivation", "consecutive_same_top1_ratio", "consecutive_overlap_ratio")
NOT_SAVED = "needs every pick: run with --save-detailed"
MAX_TOKENS = 20_000
PERMUTATIONS = 5


def pick_metrics(picks: Picks | None, facts: ModelFacts, labels: dict[str, str]) -> list[MetricValue]:
    """Values of PICK_NAMES.

    Args:
        picks: of one pass; None when they were not kept.
        facts: the model; its layers have equal numbers of experts.
        labels: of every value.
    """
    if picks is None:
        return [missing(name, NOT_SAVED, **labels) for name in PICK_NAMES]
    if len({layer.top_k for layer in facts.moe_layers}) > 1:
        return [missing(name, "layers have different top-k", **labels) for name in PICK_NAMES]
    if picks.picks_TLK.shape[1] != len(facts.moe_layers) or not len(picks.picks_TLK):
        return [missing(name, "picks were kept for other layers than the model has", **labels) for name in PICK_NAMES]
    picks, notes = _in_sequence(picks)
    experts = facts.moe_layers[0].num_experts
    starts = np.flatnonzero((np.diff(picks.request_T, prepend=-1) != 0) | (np.diff(picks.position_T, prepend=0) != 1))
    found = consecutive_overlap(picks.picks_TLK, starts, experts, permutations=PERMUTATIONS)
    values = [_coactivation(picks, experts, labels), *_consecutive(found, picks, starts, labels)]
    return [replace(value, reasons=(*value.reasons, *notes)) for value in values]


def _in_sequence(picks: Picks) -> tuple[Picks, tuple[str, ...]]:
    """Tokens by request and place, each place once (a preempted request computes some twice), at most MAX_TOKENS."""
    order = np.lexsort((picks.step_T, picks.position_T, picks.request_T))
    request, position = picks.request_T[order], picks.position_T[order]
    first = (np.diff(request, prepend=-1) != 0) | (np.diff(position, prepend=-1) != 0)
    order, notes = order[first], []
    if picks.left_out_tokens:
        notes.append(f"the picks of {picks.left_out_tokens} tokens were left out (instruments.picks_cap_mib)")
    if len(order) > MAX_TOKENS:
        requests, number = np.unique(picks.request_T[order], return_inverse=True)
        stride = -(-len(order) // MAX_TOKENS)
        notes.append(f"from every {stride}th of {len(requests)} requests, at most {MAX_TOKENS} tokens")
        order = order[number % stride == 0][:MAX_TOKENS]
    arrays = {name: getattr(picks, name)[order] for name in ("picks_TLK", "request_T", "position_T", "step_T")}
    return Picks(**arrays, left_out_tokens=picks.left_out_tokens), tuple(notes)


def _coactivation(picks: Picks, num_experts: int, labels: dict[str, str]) -> MetricValue:
    name = PICK_NAMES[0]
    if picks.picks_TLK.shape[2] < 2:
        return missing(name, "top-1 routing: an expert is never taken together with another", **labels)
    if num_experts <= picks.picks_TLK.shape[2]:
        return missing(name, "every token takes every expert", **labels)
    value, null = coactivation_with_nulls(picks.picks_TLK, num_experts)
    if value is None:
        return missing(name, "no expert was taken", **labels)
    return MetricValue(
        name=name,
        value=value,
        n=len(np.unique(picks.request_T)),
        labels=labels,
        null=null,
        reasons=("no interval: a largest share is biased upwards; its nulls have the same bias",),
    )


def _consecutive(
    found: Consecutive | None, picks: Picks, starts: np.ndarray[tuple[int], np.dtype[np.int64]], labels: dict[str, str]
) -> list[MetricValue]:
    if found is None:
        return [missing(name, "no sequence has two consecutive tokens", **labels) for name in PICK_NAMES[1:]]
    later = np.setdiff1d(np.arange(len(picks.request_T)), starts)
    sequences = len(np.unique(picks.request_T[later]))
    rows: tuple[tuple[FloatArray, float, FloatArray], ...] = (
        (found.same_top1_pairs, found.uniform_same_top1, found.permuted_same_top1),
        (found.overlap_pairs, found.uniform_overlap, found.permuted_overlap),
    )
    values = []
    for name, (pairs, uniform, permuted) in zip(PICK_NAMES[1:], rows, strict=True):
        interval = intervals.block_mean_interval(pairs, bounded=True)
        null = {"uniform": uniform, "permutation": float(permuted.mean())}
        few = "no interval: fewer than ten pairs of tokens"
        values.append(estimated(name, float(pairs.mean()), interval, few, n=sequences, labels=labels, null=null))
    return values


PERCENTILES = (5.0, 50.0)
NAMES = ("router_margin_p05", "router_margin_p50")
NOT_RECORDED = "not recorded: the run ended before, is older than this figure, or instruments.forced_picks is off"
UNEXPLAINED = "no scores of the gate give the executed picks (group limits, hashed or overridden routing)"


def margin_metrics(launches: Sequence[LaunchRecord]) -> list[MetricValue]:
    """NAMES from the first launch that has forced picks: over all layers, by phase and class, and per layer.

    Raises:
        RecordError: forced.npz is damaged.
    """
    launch = next((launch for launch in launches if launch.forced_picks is not None), None)
    if launch is None or launch.forced_picks is None:
        told = [picks.reason for one in launches if (picks := one.info.forced_picks) is not None and picks.reason]
        return [missing(name, (*told, NOT_RECORDED)[0], phase=ALL) for name in NAMES]
    return judged(picks_margins(launch.forced_picks), launch)


def picks_margins(picks: ForcedPicks) -> list[MetricValue]:
    """The values of NAMES. Layers whose scores do not give the picks are left out; null where that is all of them."""
    known_L = np.isfinite(picks.margin_TL).any(axis=0)
    every_T = np.ones(picks.num_tokens, dtype=np.bool_)
    if not known_L.any():
        return [missing(name, UNEXPLAINED, phase=ALL) for name in NAMES]
    values = _values(picks, every_T, known_L, {"phase": ALL})
    for phase, of_phase_T in zip(PHASES, (~picks.is_output_T, picks.is_output_T), strict=True):
        values += _values(picks, of_phase_T, known_L, {"phase": phase})
    for number, name in enumerate(picks.classes):
        own_T = picks.class_T == number
        if len(picks.classes) > 1 and own_T.any():
            values += _values(picks, own_T, known_L, {"phase": ALL, "request_class": name})
    for number, name in enumerate(picks.layers):
        if known_L[number]:
            own_L = np.arange(len(picks.layers)) == number
            values += _values(picks, every_T, own_L, {"phase": ALL, "layer": name})
    left_out = int((~known_L).sum())
    note = f"{left_out} of {len(known_L)} layers left out: {UNEXPLAINED}"
    whole = [v if "layer" in v.labels else replace(v, reasons=(*v.reasons, note)) for v in values]
    return whole if left_out else values


def _values(picks: ForcedPicks, tokens_T: BoolArray, layers_L: BoolArray, labels: dict[str, str]) -> list[MetricValue]:
    margins = picks.margin_TL[np.ix_(tokens_T, layers_L)].astype(np.float64)
    finite = np.isfinite(margins)
    requests, block_T = np.unique(picks.request_T[tokens_T], return_inverse=True)
    sample = intervals.BlockSample(
        values=margins[finite],
        weights=np.ones(int(finite.sum())),
        blocks=np.broadcast_to(block_T[:, None], margins.shape)[finite],
    )
    drawn, found = intervals.bootstrap_percentiles(sample, PERCENTILES), []
    for i, (name, percentile) in enumerate(zip(NAMES, PERCENTILES, strict=True)):
        needed = intervals.minimum_samples(max(percentile, 100 - percentile))
        if len(margins) < needed:
            found.append(missing(name, f"{len(margins)} tokens, {needed} are needed", **labels))
            continue
        interval = None if drawn is None else intervals.percentile_interval(drawn[:, i])
        few = "no interval: fewer than ten requests"
        value = float(np.percentile(sample.values, percentile))
        found.append(estimated(name, value, interval, few, n=len(requests), labels=labels))
    return found
