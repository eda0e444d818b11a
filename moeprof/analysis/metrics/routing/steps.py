"""What a step waits for: distinct experts and the largest load per step and layer (docs/metrics.md#router).

``distinct_SL`` and ``max_load_SL`` are over both phases of a step together, so a figure with a phase label uses only
*pure* steps of that phase, and says which share of the phase's tokens they hold. Where that is less than a fifth, it
uses the phase's own tokens in every step instead, mixed ones too, as long as each step's counts were kept.
Every step counts once: a step is what is waited for, however many tokens it has.
n counts steps. Neighbouring steps share most of their requests, so they are not independent; the intervals know that
(batch means over at most thirty blocks, each longer than the longest request, at least five of them), n does not.
Legend: S steps, L layers, E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import numpy as np

from moeprof.analysis.metrics.cards import card_for
from moeprof.analysis.metrics.phase_share import PhaseShare
from moeprof.analysis.metrics.routing.measures import capacity_factor, max_over_mean
from moeprof.analysis.metrics.routing.nulls import (
    marginal_distinct,
    over_batch_sizes,
    uniform_distinct,
    uniform_expectation,
)
from moeprof.analysis.metrics.routing.units import longest_request_steps
from moeprof.analysis.metrics.samples import FEW_STEPS
from moeprof.analysis.metrics.tables import ALL, PassTables, column, is_phase
from moeprof.analysis.stats import intervals
from moeprof.analysis.stats.arrays import FloatArray, IntArray
from moeprof.core import units
from moeprof.core.metric import LEAST_SHARE, Card, MetricValue, Place, estimated, measured, missing
from moeprof.core.record.layout import PHASES
from moeprof.core.record.routing import Routing

_MARGINAL_GRID = 64
MOST_BLOCKS, LEAST_BLOCKS = 30, 5
PURE, COVERED = "pure_step_tokens_ratio", "step_figures_tokens_ratio"

_card = partial(Card, section="routing", source="docs/metrics.md#router", kind="routing", from_routing=True,
    of_batches=True)  # fmt: skip
STEP_CARDS: tuple[Card, ...] = (
    _card("distinct_experts_per_step", "Distinct experts per step", "experts", "neither",
          "experts with a token in a step and layer, mean over layers and steps; nulls: uniform E*(1-(1-k/E)^T), "
          "marginal sum_e 1 - C(N-n_e,T)/C(N,T); n = steps, of which neighbours share requests",
          screen=(Place(140, "experts touched per decode step", phase="decode"),)),
    _card("experts_touched_ratio", "Experts touched per step", "ratio", "neither", "distinct_experts_per_step / E",
          bounded=True),
    _card("expert_reuse_ratio", "Tokens per expert fetched", "tokens", "neither",
          "sum over steps of T*k / sum of distinct experts"),
    _card("step_load_max_over_mean", "Busiest expert over mean, per step", "ratio", "lower",
          "max_e n_e / (T*k/E) per step and layer, mean over layers and steps, each step once; n = steps, of which "
          "neighbours share requests", needs="steps"),
    _card("capacity_factor_for_1pct_drop", "Capacity factor for 1 % drops", "ratio", "lower",
          "smallest c with sum over steps and experts of max(0, n_se - ceil(c*T_s*k/E)) <= 1 % of N",
          source="capacity as in Switch Transformer (arXiv 2101.03961), counted per step"),
)  # fmt: skip
STEP_NAMES = tuple(card.name for card in STEP_CARDS)
SHARE_CARDS: tuple[Card, ...] = (
    _card(PURE, "Share of a phase in steps of its own", "ratio", "neither",
          "tokens of a phase in steps that hold no other / all its tokens", bounded=True),
    _card(COVERED, "Share of a phase behind its step figures", "ratio", "neither",
          "tokens behind the phase's figures per step / all its tokens: those of its pure steps, or, where these hold "
          "less than a fifth, those of all steps whose counts were kept", bounded=True),
)  # fmt: skip
SHARE_NAMES = tuple(card.name for card in SHARE_CARDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutedSteps:
    """The steps of one phase that carry routing counts.

    Attributes:
        rows: row of each step in table ``steps`` and in the routing arrays, shape [S].
        tokens: T of each step, shape [S]; of the phase alone where mixed steps are among them.
        distinct_SL, max_load_SL: as recorded, or of the phase's tokens alone.
        top_k_L: k per layer.
        num_experts: E.
        phases: rows of PHASES whose tokens are counted.
        num_blocks: independent blocks of steps.
        pure_ratio: share of the phase's tokens in its pure steps; None for all phases.
        covered_ratio: share of the phase's tokens in these steps; None for all phases.
        note: which steps these are, where they are not all that hold tokens of the phase.
    """

    rows: IntArray
    tokens: IntArray
    distinct_SL: FloatArray
    max_load_SL: FloatArray
    top_k_L: IntArray
    num_experts: int
    phases: tuple[int, ...] = (0, 1)
    num_blocks: int = MOST_BLOCKS
    pure_ratio: float | None = None
    covered_ratio: float | None = None
    note: tuple[str, ...] = ()

    @property
    def share(self) -> float | None:
        """As figures of these steps carry it: of the phase's tokens, where not all."""
        return None if self.covered_ratio == 1 else self.covered_ratio

    def load_ratios(self) -> FloatArray:
        """Largest load over the mean load T*k/E, shape [S, L]."""
        return self.max_load_SL * self.num_experts / (self.tokens[:, None] * self.top_k_L[None, :])

    def kept_counts(self, routing: Routing) -> IntArray | None:
        """Kept per-step counts of these steps, shape [S', L, E]; int32 holds the sum of a few 16-bit counts."""
        if routing.step_counts_SPLE is None:
            return None
        rows = self.rows[self.rows < len(routing.step_counts_SPLE)]
        counts_SLE = np.zeros((len(rows), *routing.step_counts_SPLE.shape[2:]), dtype=np.int32)
        for phase in self.phases:
            counts_SLE += routing.step_counts_SPLE[rows, phase]
        return cast(IntArray, counts_SLE)


def routed_steps(tables: PassTables, routing: Routing, phase: str) -> RoutedSteps:
    """Steps of ``phase`` (``all`` = mixed ones too) with tokens and with routing switched on."""
    num = min(len(tables.steps), len(routing.distinct_SL))
    steps = tables.steps.iloc[:num]
    by_phase = np.stack([column(steps, f"{name}_tokens") for name in PHASES])
    routed = (by_phase.sum(axis=0) > 0) & (routing.distinct_SL[:num].sum(axis=1) > 0)
    routed &= np.asarray(steps["instrumented"].fillna(True), dtype=np.bool_)
    rows = np.flatnonzero(routed & is_phase(steps, phase)).astype(np.int64)
    found = RoutedSteps(
        rows=rows,
        tokens=by_phase.sum(axis=0)[rows].astype(np.int64),
        distinct_SL=routing.distinct_SL[rows].astype(np.float64),
        max_load_SL=routing.max_load_SL[rows].astype(np.float64),
        top_k_L=routing.top_k_L,
        num_experts=routing.num_experts,
    )
    if phase != ALL:
        found = _with_share(found, routing, phase, np.where(routed, by_phase[PHASES.index(phase)], 0))
    span = -(-longest_request_steps(tables, phase) * len(found.rows) // max(num, 1))
    return replace(found, num_blocks=min(MOST_BLOCKS, len(found.rows) // max(span, 1)))


def _with_share(pure: RoutedSteps, routing: Routing, phase: str, tokens_S: FloatArray) -> RoutedSteps:
    """Say what pure steps speak for; where that is too little, the phase's tokens of all steps that were kept."""
    is_pure = np.zeros(len(tokens_S), dtype=np.bool_)
    is_pure[pure.rows] = True
    share = PhaseShare.of(phase, tokens_S, is_pure)
    ratio, name = share.ratio, PHASES.index(phase)
    if ratio is None:
        return pure
    found = replace(pure, pure_ratio=ratio, covered_ratio=ratio)
    if ratio == 1:
        return found
    kept = 0 if routing.step_counts_SPLE is None else len(routing.step_counts_SPLE)
    rows = np.flatnonzero(tokens_S[:kept] > 0).astype(np.int64)
    if ratio >= LEAST_SHARE or not len(rows):
        return replace(found, note=(share.text,))
    counts_SLE = np.asarray(routing.step_counts_SPLE)[rows, name]
    held = f"pure {phase} steps hold {units.percent(ratio)} of them"
    note = f"{phase} tokens of mixed steps too, {len(rows)} of {share.steps} steps; {held}"
    return replace(
        found,
        rows=rows,
        tokens=tokens_S[rows].astype(np.int64),
        distinct_SL=(counts_SLE > 0).sum(axis=-1).astype(np.float64),
        max_load_SL=counts_SLE.max(axis=-1).astype(np.float64),
        phases=(name,),
        covered_ratio=float(tokens_S[rows].sum()) / share.tokens,
        note=(note,),
    )


def share_metrics(steps: RoutedSteps, labels: dict[str, str]) -> list[MetricValue]:
    """What the phase's figures per step speak for."""
    none = f"no {labels['phase']} tokens"
    shares = zip(SHARE_NAMES, (steps.pure_ratio, steps.covered_ratio), strict=True)
    return [measured(name, share, none, labels, exact=True) for name, share in shares]


def step_metrics(
    steps: RoutedSteps, counts_LE: IntArray, num_tokens: int, step_counts: IntArray | None, labels: dict[str, str]
) -> list[MetricValue]:
    """Per-step figures of one phase, averaged over layers.

    Args:
        steps: the steps.
        counts_LE: assignments of this phase over the whole pass, for the marginal null.
        num_tokens: tokens behind them.
        step_counts: kept counts of these steps, shape [S', L, E], S' <= S; None when not kept.
        labels: of every value.
    """
    if not len(steps.rows):
        return [missing(name, f"no pure {labels['phase']} steps", **labels) for name in STEP_NAMES]
    experts, distinct = steps.num_experts, steps.distinct_SL
    nulls = distinct_nulls(steps, counts_LE, num_tokens)
    mean_nulls = {name: float(np.mean(values)) for name, values in nulls.items()}
    picks = steps.tokens[:, None] * steps.top_k_L[None, :]
    reuse_nulls = {name: float(picks.mean()) / value for name, value in mean_nulls.items()}
    touched = {name: value / experts for name, value in mean_nulls.items()}
    load_null = {"uniform": float(np.mean(_load_null(steps)))}
    per_step = distinct.mean(axis=1)
    return [
        _mean("distinct_experts_per_step", per_step, steps, labels, mean_nulls),
        _mean("experts_touched_ratio", per_step / experts, steps, labels, touched),
        _reuse(picks.mean(axis=1), per_step, steps, labels, reuse_nulls),
        _mean("step_load_max_over_mean", steps.load_ratios().mean(axis=1), steps, labels, load_null),
        _capacity(steps, step_counts, labels),
    ]


def layer_step_metrics(
    steps: RoutedSteps, counts_LE: IntArray, num_tokens: int, layer_names: tuple[str, ...], labels: dict[str, str]
) -> list[MetricValue]:
    """Distinct experts and largest load per layer."""
    if not len(steps.rows):
        return []
    nulls, load_null, values = distinct_nulls(steps, counts_LE, num_tokens), _load_null(steps), []
    ratios_SL = steps.load_ratios()
    for layer, name in enumerate(layer_names):
        own = {**labels, "layer": name}
        expected = {null: float(found[layer]) for null, found in nulls.items()}
        values.append(_mean("distinct_experts_per_step", steps.distinct_SL[:, layer], steps, own, expected))
        load = {"uniform": float(load_null[layer])}
        values.append(_mean("step_load_max_over_mean", ratios_SL[:, layer], steps, own, load))
    return values


def distinct_nulls(steps: RoutedSteps, counts_LE: IntArray, num_tokens: int) -> dict[str, FloatArray]:
    """Mean over steps of E[U] under both nulls, per layer, shape [L]. Marginal only where tokens are known."""
    top_ks = steps.top_k_L.tolist()
    found = {"uniform": np.array([uniform_distinct(steps.num_experts, k, steps.tokens).mean() for k in top_ks])}
    if num_tokens >= int(steps.tokens.max()):
        found["marginal"] = np.array([_marginal(steps, counts_E, num_tokens) for counts_E in counts_LE])
    return found


def _marginal(steps: RoutedSteps, counts_E: IntArray, num_tokens: int) -> float:
    def expected(sizes: IntArray) -> FloatArray:
        return marginal_distinct(counts_E, num_tokens, sizes)

    return float(over_batch_sizes(expected, steps.tokens, _MARGINAL_GRID).mean())


def _load_null(steps: RoutedSteps) -> FloatArray:
    """Monte Carlo E[max/mean] under the uniform null, mean over steps, per layer."""
    by_k = {}
    for top_k in set(steps.top_k_L.tolist()):
        by_k[top_k] = float(over_batch_sizes(_uniform_load(steps.num_experts, top_k), steps.tokens).mean())
    return np.array([by_k[top_k] for top_k in steps.top_k_L.tolist()])


def _uniform_load(num_experts: int, top_k: int) -> Callable[[IntArray], FloatArray]:
    def expected(sizes: IntArray) -> FloatArray:
        return np.array([uniform_expectation(max_over_mean, num_experts, top_k, int(size)) for size in sizes])

    return expected


def _mean(
    name: str, series: FloatArray, steps: RoutedSteps, labels: dict[str, str], null: dict[str, float]
) -> MetricValue:
    interval = None
    if steps.num_blocks >= LEAST_BLOCKS:
        interval = intervals.block_mean_interval(series, steps.num_blocks, bounded=card_for(name).bounded)
    why = _why_none(steps)
    return estimated(
        name, float(series.mean()), interval, why, n=len(series), labels=labels, null=null, notes=steps.note,
        share=steps.share,
    )  # fmt: skip


def _why_none(steps: RoutedSteps) -> str:
    if len(steps.rows) < 2 * LEAST_BLOCKS:
        return FEW_STEPS
    return f"no interval: {steps.num_blocks} blocks of steps longer than a request, {LEAST_BLOCKS} are needed"


def _reuse(
    picks_S: FloatArray, distinct_S: FloatArray, steps: RoutedSteps, labels: dict[str, str], null: dict[str, float]
) -> MetricValue:
    """Sum of T*k over sum of U: a ratio of sums, so that large steps weigh as much as they serve."""
    num = len(picks_S)
    edges = np.unique(np.linspace(0, num, max(min(num, steps.num_blocks), 1), endpoint=False).astype(np.int64))
    groups = np.stack([np.add.reduceat(picks_S, edges), np.add.reduceat(distinct_S, edges)], axis=1)
    value = float(picks_S.sum() / distinct_S.sum())
    without = groups.sum(axis=0) - groups
    enough = len(groups) >= LEAST_BLOCKS
    interval = intervals.jackknife_interval(value, without[:, 0] / without[:, 1]) if enough else None
    return estimated(
        "expert_reuse_ratio", value, interval, _why_none(steps), n=num, labels=labels, null=null, notes=steps.note,
        share=steps.share,
    )  # fmt: skip


def _capacity(steps: RoutedSteps, step_counts: IntArray | None, labels: dict[str, str]) -> MetricValue:
    name = "capacity_factor_for_1pct_drop"
    if step_counts is None or not len(step_counts):
        return missing(name, "counts per step were not kept (too large, or no such step among those kept)", **labels)
    num = len(step_counts)
    if len(set(steps.top_k_L.tolist())) > 1:
        return missing(name, "layers have different top-k", **labels)
    value = capacity_factor(step_counts, steps.tokens[:num], int(steps.top_k_L[0]))
    if value is None:
        return missing(name, "nothing was routed", **labels)
    kept = () if num == len(steps.rows) else (f"from the first {num} of {len(steps.rows)} such steps",)
    reasons = (*steps.note, *kept)
    return MetricValue(name=name, value=value, n=num, exact=True, labels=labels, reasons=reasons, share=steps.share)
