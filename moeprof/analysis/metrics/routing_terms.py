"""What attribution regresses: step time against distinct experts and largest loads, among steps with equal tokens.

Time is compared only *within* strata of one round and one token count, so that batch size, the strongest cause of all,
cannot pose as routing. A stratum's mean is taken off every column; what is left is variance at fixed tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moeprof.analysis.tables import BoolArray, FloatArray, IntArray, PassTables, column, is_phase
from moeprof.core.routing_counts import Routing

MINIMUM_STRATUM = 8
MINIMUM_STEPS = 50
MINIMUM_ALIGNED = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTerms:
    """Steps of one phase, sorted by (round, tokens, time); all shape [N].

    Attributes:
        step_s: wall time.
        context: context tokens.
        distinct: distinct experts, summed over layers.
        max_load: tokens of the busiest expert, summed over layers.
        tokens: tokens in the step.
        stratum: number of the (round, tokens) stratum.
        token_code: number of the token count, the same in every round.
    """

    step_s: FloatArray
    context: FloatArray
    distinct: FloatArray
    max_load: FloatArray
    tokens: FloatArray
    stratum: IntArray
    token_code: IntArray

    def within_strata(self, values: FloatArray) -> FloatArray:
        """Values less the mean of their stratum."""
        means = np.bincount(self.stratum, weights=values) / np.bincount(self.stratum)
        return values - means[self.stratum]

    @property
    def position(self) -> IntArray:
        """Place of each step in its stratum, in time order."""
        first = np.searchsorted(self.stratum, np.arange(int(self.stratum[-1]) + 1))
        return np.arange(len(self.stratum), dtype=np.int64) - first[self.stratum]


def step_terms(rounds: Sequence[PassTables], routed: Sequence[PassTables], phase: str) -> StepTerms | str:
    """Gather the steps of a phase, or say why there are too few.

    Args:
        rounds: whose step times are explained.
        routed: whose routing explains them, pass by pass; the same passes, or another model's as a placebo.
        phase: ``prefill`` or ``decode``.
    """
    parts: list[FloatArray] = []
    for number, (timed, source) in enumerate(zip(rounds, routed, strict=False)):
        rows = comparable_steps(timed, source, phase)
        if isinstance(rows, str):
            return rows
        parts.append(_columns(timed, source.routing, rows, number))
    table = np.concatenate(parts, axis=1) if parts else np.empty((6, 0))
    return _stratify(table, phase)


def comparable_steps(timed: PassTables, source: PassTables, phase: str) -> IntArray | str:
    """Steps of this phase that both passes ran with the same tokens and that carry routing counts."""
    routing = source.routing
    if routing is None:
        return "no routing was recorded"
    num = min(len(timed.steps), len(source.steps), len(routing.distinct_SL))
    steps, others = timed.steps.iloc[:num], source.steps.iloc[:num]
    keep: BoolArray = is_phase(steps, phase) & (routing.distinct_SL[:num].sum(axis=1) > 0)
    keep &= np.asarray(others["instrumented"].fillna(True), dtype=np.bool_)
    if timed is not source:
        same = np.ones(num, dtype=np.bool_)
        for name in ("prefill_tokens", "decode_tokens"):
            same &= column(steps, name) == column(others, name)
        if num == 0 or same.mean() < MINIMUM_ALIGNED:
            return "the two models did not run the same batches, so step i of one is not step i of the other"
        keep &= same
    return np.flatnonzero(keep).astype(np.int64)


def _columns(timed: PassTables, routing: Routing | None, rows: IntArray, number: int) -> FloatArray:
    assert routing is not None
    steps = timed.steps.iloc[rows]
    return np.stack(
        [
            column(steps, "end_s") - column(steps, "start_s"),
            column(steps, "context_tokens"),
            routing.distinct_SL[rows].sum(axis=1, dtype=np.float64),
            routing.max_load_SL[rows].sum(axis=1, dtype=np.float64),
            column(steps, "prefill_tokens") + column(steps, "decode_tokens"),
            np.full(len(rows), number, dtype=np.float64),
        ]
    )


def _stratify(table: FloatArray, phase: str) -> StepTerms | str:
    """Keep strata of at least MINIMUM_STRATUM steps; order by stratum, then time."""
    key = np.stack([table[5], table[4]])
    _, stratum, sizes = np.unique(key, axis=1, return_inverse=True, return_counts=True)
    stratum = stratum.reshape(-1)
    keep = sizes[stratum] >= MINIMUM_STRATUM if len(stratum) else np.zeros(0, dtype=np.bool_)
    if keep.sum() < MINIMUM_STEPS:
        return (
            f"cannot tell: {int(keep.sum())} {phase} steps share their token count with {MINIMUM_STRATUM - 1} others, "
            f"{MINIMUM_STEPS} are needed"
        )
    table, stratum = table[:, keep], stratum[keep]
    order = np.argsort(stratum, kind="stable")
    table, stratum = table[:, order], np.unique(stratum[order], return_inverse=True)[1].reshape(-1)
    return StepTerms(
        step_s=table[0],
        context=table[1],
        distinct=table[2],
        max_load=table[3],
        tokens=table[4],
        stratum=stratum.astype(np.int64),
        token_code=np.unique(table[4], return_inverse=True)[1].reshape(-1).astype(np.int64),
    )
