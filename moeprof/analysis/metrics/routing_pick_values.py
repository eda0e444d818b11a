"""Figures of single picks as metric values: experts taken together, and what consecutive tokens share.

They describe all layers together and both phases. A large record is thinned to every n-th request, whole sequences,
so that the figures take seconds; the nulls use the same tokens.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moeprof.analysis import stats
from moeprof.analysis.metrics.routing_picks import Consecutive, coactivation_with_nulls, consecutive_overlap
from moeprof.analysis.tables import FloatArray
from moeprof.core.metric import MetricValue, missing
from moeprof.core.modelfacts import ModelFacts
from moeprof.core.picks import Picks

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
        interval = stats.block_mean_interval(pairs, bounded=True)
        low, high = interval or (None, None)
        values.append(
            MetricValue(
                name=name,
                value=float(pairs.mean()),
                n=sequences,
                ci_low=low,
                ci_high=high,
                labels=labels,
                null={"uniform": uniform, "permutation": float(permuted.mean())},
                reasons=() if interval else ("no interval: fewer than ten pairs of tokens",),
            )
        )
    return values
