"""Latency variance, attributed to routing (docs/metrics.md#variance).

A decode step reads the weights of every expert that at least one of its tokens chose, so its time should grow with the
distinct experts U, and, where the busiest expert is waited for, with the largest load M. The model, among steps with
equal tokens: ``step_s = a_T + b_C*context + b_U*sum_l U_l + b_M*sum_l M_l``. The gain in R2 by U and M can never be
negative, so it is compared with what shuffled routing gains: blocks of consecutive steps are permuted among steps with
equal tokens, which keeps the slow drifts of both sides (block permutation of the residualised terms; Kennedy 1995,
Winkler et al. 2014). Rounds that ran the same batches are shuffled alike, since they repeat the same routing.

Blocks of consecutive steps, and the shuffles that a permutation test of step times needs.

Step times drift, and so does what a batch's requests talk about. Shuffling single steps would break both drifts and
call their chance meeting an effect; blocks longer than the memory of both keep it.

What attribution regresses: step time against distinct experts and largest loads, among steps with equal tokens.

Time is compared only *within* strata of one round and one token count, so that batch size, the strongest cause of all,
cannot pose as routing. A stratum's mean is taken off every column; what is left is variance at fixed tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from moeprof.analysis.metrics.context import Context
from moeprof.analysis.metrics.tables import BoolArray, PassTables, column, is_phase
from moeprof.analysis.stats import intervals as stats
from moeprof.analysis.stats.arrays import FloatArray, IntArray
from moeprof.analysis.stats.verdicts import holm
from moeprof.core.metric import Card, MetricValue, missing
from moeprof.core.record.routing import Routing

MINIMUM_STRATUM = 8
MINIMUM_STEPS = 50
MINIMUM_ALIGNED = 0.9

_MODEL = "step_s = a_T + b_C*context + b_U*sum U_l + b_M*sum M_l, among steps with equal tokens T"
_PERMUTATION = "block permutation of residualised terms (Kennedy 1995; Winkler et al. 2014); docs/metrics.md#variance"
_card = partial(Card, section="latency", source="docs/metrics.md#variance", kind="timed", counts_tokens=True)
CARDS: tuple[Card, ...] = (
    _card("variance_explained_by_routing_ratio", "Latency variance by routing", "ratio", "neither",
          f"gain in R2 by the routing terms - mean gain of shuffled ones; {_MODEL}", source=_PERMUTATION,
          needs="steps"),
    _card("variance_explained_by_routing_p", "Latency variance by routing, p", "ratio", "neither",
          f"share of shuffles that gain at least as much; {_MODEL}", source=_PERMUTATION, needs="steps"),
    _card("placebo_variance_explained_by_routing_ratio", "Placebo: MoE routing on the dense model", "ratio", "neither",
          f"gain in R2 by the routing terms - mean gain of shuffled ones; {_MODEL}", source=_PERMUTATION),
    _card("placebo_variance_explained_by_routing_p", "Placebo: MoE routing on the dense model, p", "ratio", "neither",
          f"share of shuffles that gain at least as much, by Holm over all placebos of the run; {_MODEL}",
          source=_PERMUTATION),
    _card("variance_explained_by_routing_min_detectable_ratio", "Share that such a run shows 4 times in 5", "ratio",
          "lower", "smallest share at which the gain exceeds the 95 % quantile of shuffled gains with probability 0.8: "
          "noncentral chi-square, as many independent steps as the mean shuffled gain implies; it decides nothing",
          source=_PERMUTATION, needs="steps"),
    _card("step_fit_r2_ratio", "Fit of step time", "ratio", "neither", f"R2 of {_MODEL}", needs="steps"),
    _card("step_time_per_distinct_expert_s", "Step time per distinct expert", "s", "lower", f"b_U of {_MODEL}",
          needs="steps"),
    _card("step_time_per_max_load_token_s", "Step time per token of largest load", "s", "lower", f"b_M of {_MODEL}",
          needs="steps"),
    _card("step_time_per_context_token_s", "Step time per context token", "s", "lower", f"b_C of {_MODEL}",
          needs="steps"),
)  # fmt: skip


def compute(context: Context) -> list[MetricValue]:
    """Step time against routing, of passes with the same traffic."""
    return attribution_metrics(context.passes, context.once(attributions_of))


def attributions_of(context: Context) -> tuple[Attribution, ...]:
    """Per phase."""
    return attributions(context.passes)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """Runs of consecutive steps of a stratum, moved as one.

    Attributes:
        terms: the steps.
        length: steps per block.
        of_row: number of the block of each step, without rotation.
        count: distinct blocks: aligned rounds count once.
    """

    terms: StepTerms
    length: int
    of_row: IntArray
    count: int

    @staticmethod
    def of(terms: StepTerms, length: int) -> Blocks:
        """Cut every stratum into blocks of ``length`` steps."""
        block = terms.position // length
        key = np.stack([terms.token_code, block])
        of_row = np.unique(key, axis=1, return_inverse=True)[1].reshape(-1).astype(np.int64)
        return Blocks(terms=terms, length=length, of_row=of_row, count=int(of_row.max()) + 1)

    def shuffle(self, rng: np.random.Generator) -> IntArray:
        """An order of steps: each stratum rotated, cut into blocks, blocks shuffled. Strata keep their places."""
        terms = self.terms
        sizes = np.bincount(terms.stratum)
        turn = rng.random(int(terms.token_code.max()) + 1)
        place = rng.random((len(turn), int(sizes.max()) // self.length + 1))
        size = sizes[terms.stratum]
        position = (terms.position + (turn[terms.token_code] * size).astype(np.int64)) % size
        order = np.lexsort((position, place[terms.token_code, position // self.length], terms.stratum))
        return order.astype(np.int64)


def block_length(time: FloatArray, distinct: FloatArray) -> int:
    """Three times the lag after which products of neighbours no longer correlate, at least n^(1/3)."""
    limit = max(len(time) // 4, 1)
    together = _autocorrelation(time, limit) * _autocorrelation(distinct, limit)
    quiet = np.flatnonzero(np.abs(together) < 0.05)
    lag = int(quiet[0]) if len(quiet) else limit
    least: int = math.ceil(np.cbrt(len(time)))
    return max(least, 3 * lag)


def _autocorrelation(series: FloatArray, lags: int) -> FloatArray:
    """Autocorrelation at lags 1..lags, by FFT."""
    size = int(2 ** math.ceil(math.log2(2 * len(series))))
    spectrum = np.fft.rfft(series - series.mean(), size)
    power = np.fft.irfft(spectrum * np.conj(spectrum), size)[: lags + 1]
    return np.asarray(power[1:] / power[0] if power[0] > 0 else np.zeros(lags), dtype=np.float64)


PHASES = ("prefill", "decode")
TERMS = ("context_token", "distinct_expert", "max_load_token")
ALPHA = 0.05
POWER = 0.8
PERMUTATIONS = 199
MORE_PERMUTATIONS = 1_999  # of a placebo that 199 shuffles call an effect, so that Holm can tell it from many others
MINIMUM_BLOCKS = 12
MAX_POINTS = 2_000
SHARE = "variance_explained_by_routing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """What a chart of step time against distinct experts draws; at most MAX_POINTS, evenly thinned; shape [N]."""

    distinct: FloatArray
    step_s: FloatArray
    tokens: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """How much of the variance of step time at equal tokens the router explains.

    Attributes:
        phase: ``prefill`` or ``decode``.
        num_steps: steps used.
        coefficients: seconds per unit of each of TERMS.
        intervals: 95 % block bootstrap of the coefficients.
        r2: of the whole fit, within equal token counts.
        share: R2 gain of the routing terms minus the mean gain of shuffled ones; may be slightly below 0.
        p_value: share of shuffles that gain at least as much; it alone decides. Of a placebo adjusted by Holm.
        min_detectable: the true share at which p is at most ALPHA in four runs of five; told, no threshold.
        line: a plain line of step time against distinct experts over all steps, for the chart.
        points: the steps, for the chart.
        cannot_tell: why no share is claimed, or None when it is.
    """

    phase: str
    num_steps: int = 0
    coefficients: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, stats.Interval] = field(default_factory=dict)
    r2: float | None = None
    share: float | None = None
    p_value: float | None = None
    min_detectable: float | None = None
    line: stats.LinearFit | None = None
    points: Points | None = None
    cannot_tell: str | None = None


def attributions(rounds: Sequence[PassTables], seed: int = 0) -> tuple[Attribution, ...]:
    """Attribution per phase of the rounds of one launch."""
    return tuple(attribute(rounds, phase, seed=seed) for phase in PHASES)


def attribute(
    rounds: Sequence[PassTables],
    phase: str,
    *,
    routed: Sequence[PassTables] | None = None,
    seed: int = 0,
    permutations: int = PERMUTATIONS,
) -> Attribution:
    """Attribute the variance of step time of one phase to routing.

    Args:
        rounds: whose step times are explained.
        phase: ``prefill`` or ``decode``.
        routed: another model's passes over the same batches, whose routing is then a placebo; by default ``rounds``.
        seed: of shuffles and resamples.
        permutations: shuffles, where the first PERMUTATIONS call it an effect.
    """
    terms = step_terms(rounds, rounds if routed is None else routed, phase)
    if isinstance(terms, str):
        return Attribution(phase=phase, cannot_tell=terms)
    shown = Attribution(
        phase=phase,
        num_steps=len(terms.step_s),
        line=stats.linear_fit(terms.distinct, terms.step_s),
        points=_points(terms),
    )
    time = terms.within_strata(terms.step_s)
    context = terms.within_strata(terms.context)
    routing = np.stack([terms.within_strata(terms.distinct), terms.within_strata(terms.max_load)], axis=1)
    if not np.any(np.abs(time) > 1e-12) or not np.any(np.abs(routing) > 1e-9):
        what = "step time does not vary" if np.any(routing) else "the touched experts do not vary"
        return replace(shown, cannot_tell=f"cannot tell: {what} among steps with equal tokens")
    blocks = Blocks.of(terms, block_length(time, routing[:, 0]))
    if blocks.count < MINIMUM_BLOCKS:
        reason = f"cannot tell: {blocks.count} independent stretches of steps, {MINIMUM_BLOCKS} are needed"
        return replace(shown, cannot_tell=reason)
    return _judge(shown, time, context, routing, blocks, seed, permutations)


def _judge(
    shown: Attribution,
    time: FloatArray,
    context: FloatArray,
    routing: FloatArray,
    blocks: Blocks,
    seed: int,
    permutations: int,
) -> Attribution:
    total = float(time @ time)
    rest, terms = _without(context, time), _without(context, routing)
    base, gain = 1 - float(rest @ rest) / total, _gain(rest, terms) / total
    rng = np.random.default_rng(seed)

    def shuffles(num: int) -> FloatArray:
        return np.array([_gain(rest, _without(context, terms[blocks.shuffle(rng)])) / total for _ in range(num)])

    shuffled = shuffles(PERMUTATIONS)
    if permutations > PERMUTATIONS and _p_of(gain, shuffled) <= ALPHA:
        shuffled = np.concatenate([shuffled, shuffles(permutations - PERMUTATIONS)])
    columns = np.column_stack([context, routing])
    coefficients = np.linalg.lstsq(columns, time, rcond=None)[0]
    found = replace(
        shown,
        coefficients=dict(zip(TERMS, coefficients.tolist(), strict=True)),
        intervals=_coefficient_intervals(columns, time, blocks.of_row, seed),
        r2=base + gain,
        share=gain - float(shuffled.mean()),
        min_detectable=_detectable(shuffled, 1 - base, int(np.linalg.matrix_rank(terms))),
    )
    return _decided(found, _p_of(gain, shuffled))


def _p_of(gain: float, shuffled: FloatArray) -> float:
    return (1 + int((shuffled >= gain).sum())) / (1 + len(shuffled))


def _decided(found: Attribution, p_value: float, family: str = "") -> Attribution:
    """By p alone; the detectable share is told beside it."""
    if p_value <= ALPHA:
        return replace(found, p_value=p_value, cannot_tell=None)
    undecided = (
        f"cannot tell: share {100 * (found.share or 0.0):.1f} %, p = {p_value:.3f}{family}; "
        f"a run like this one shows a share of {100 * (found.min_detectable or 0.0):.1f} % in four runs of five"
    )
    return replace(found, p_value=p_value, cannot_tell=undecided)


def _detectable(shuffled: FloatArray, left: float, degrees: int) -> float:
    """The smallest true share s at which a gain exceeds the 95 % quantile of the shuffled ones with probability POWER.

    A shuffled gain is about ``left * chi2(degrees) / n``, which gives n, the effective number of independent steps;
    with a share s the gain is ``(left - s) * chi2(degrees, noncentrality n * s / (left - s)) / n``.

    Args:
        shuffled: gains in R2 without any effect.
        left: share of the variance that context leaves.
        degrees: routing terms that are not collinear.
    """
    from scipy.optimize import brentq
    from scipy.special import chndtr  # scipy.stats has the same under ncx2, and takes half a second to import

    num = degrees * left / float(shuffled.mean())
    critical = float(np.quantile(shuffled, 1 - ALPHA))

    def lacks(share: float) -> float:
        noise = left - share
        return 1 - float(chndtr(critical * num / noise, degrees, num * share / noise)) - POWER

    return float(brentq(lacks, 1e-9 * left, (1 - 1e-9) * left))


def _without(context: FloatArray, values: FloatArray) -> FloatArray:
    """Residuals of a regression (through 0) on context."""
    power = float(context @ context)
    if power == 0:
        return values
    slopes = context @ values / power
    return values - (np.outer(context, slopes) if values.ndim == 2 else context * slopes)


def _gain(rest: FloatArray, terms: FloatArray) -> float:
    """Sum of squares of ``rest`` that the columns of ``terms`` explain (columns may be collinear or zero)."""
    scale = np.sqrt((terms**2).sum(axis=0))
    unit = terms / np.where(scale > 0, scale, 1)
    shared = unit.T @ rest
    return float((shared @ np.linalg.pinv(unit.T @ unit, rcond=1e-9) * shared).sum())


def _coefficient_intervals(
    columns: FloatArray, time: FloatArray, blocks: IntArray, seed: int
) -> dict[str, stats.Interval]:
    num, width = int(blocks.max()) + 1, columns.shape[1]
    scale = np.where(columns.std(axis=0) > 0, columns.std(axis=0), 1)
    unit = columns / scale
    grams, shared = np.zeros((num, width, width)), np.zeros((num, width))
    np.add.at(grams, blocks, unit[:, :, None] * unit[:, None, :])
    np.add.at(shared, blocks, unit * time[:, None])
    drawn = np.random.default_rng(seed).multinomial(num, np.full(num, 1 / num), size=stats.RESAMPLES)
    gram = np.tensordot(drawn, grams, axes=1)
    found = (np.linalg.pinv(gram, rcond=1e-9, hermitian=True) @ (drawn @ shared)[:, :, None])[:, :, 0] / scale
    return {name: stats.percentile_interval(found[:, i]) for i, name in enumerate(TERMS)}


def _points(terms: StepTerms) -> Points:
    rows = np.unique(np.linspace(0, len(terms.step_s) - 1, MAX_POINTS).astype(np.int64))
    return Points(distinct=terms.distinct[rows], step_s=terms.step_s[rows], tokens=terms.tokens[rows])


def attribution_metrics(
    rounds: Sequence[PassTables], found: Sequence[Attribution] | None = None, seed: int = 0
) -> list[MetricValue]:
    """Attribution as metrics; ``found`` are the results of :func:`attributions` when they are at hand."""
    if not rounds:
        return []
    labels = {"traffic": rounds[0].traffic, "window": "total"}
    results = attributions(rounds, seed) if found is None else found
    return [value for result in results for value in _values(result, {**labels, "phase": result.phase})]


def placebo_metrics(
    dense: Mapping[str, Sequence[PassTables]], moe: Sequence[PassTables], seed: int = 0
) -> dict[str, list[MetricValue]]:
    """The MoE's routing as an explanation of each dense model's step times: it must explain nothing.

    Only for offline or closed-loop passes over one schedule, where step i of all models is the same batch. All models
    and phases are one family (Holm): of ten placebos at 5 % each, four sound runs in ten would look broken.
    """
    keys = [(name, phase) for name in dense for phase in PHASES]
    found = {
        (name, phase): attribute(dense[name], phase, routed=moe, seed=seed, permutations=MORE_PERMUTATIONS)
        for name, phase in keys
    }
    adjusted = holm({key: one.p_value for key, one in found.items() if one.p_value is not None})
    family = f" by Holm over {len(adjusted)} placebos" if len(adjusted) > 1 else ""
    found |= {key: _decided(found[key], p_value, family) for key, p_value in adjusted.items()}
    values: dict[str, list[MetricValue]] = {name: [] for name in dense}
    for (name, phase), one in found.items():
        labels = {"traffic": dense[name][0].traffic, "window": "total", "phase": phase} if dense[name] else {}
        values[name] += [_share(one, f"placebo_{SHARE}_ratio", labels), _p_value(one, f"placebo_{SHARE}_p", labels)]
    return values


def _values(found: Attribution, labels: dict[str, str]) -> list[MetricValue]:
    values = [_share(found, f"{SHARE}_ratio", labels), _p_value(found, f"{SHARE}_p", labels)]
    why, n = found.cannot_tell or "", found.num_steps
    for name, number in ((f"{SHARE}_min_detectable_ratio", found.min_detectable), ("step_fit_r2_ratio", found.r2)):
        values.append(
            missing(name, why, **labels)
            if number is None
            else MetricValue(name=name, value=number, n=n, labels=labels, reasons=("no interval: it describes a fit",))
        )
    for term in TERMS:
        name = f"step_time_per_{term}_s"
        if term not in found.coefficients:
            values.append(missing(name, why, **labels))
            continue
        low, high = found.intervals[term]
        values.append(
            MetricValue(name=name, value=found.coefficients[term], n=n, ci_low=low, ci_high=high, labels=labels)
        )
    return values


def _share(found: Attribution, name: str, labels: dict[str, str]) -> MetricValue:
    if found.share is None:
        return missing(name, found.cannot_tell or "cannot tell", **labels)
    reasons = (found.cannot_tell,) if found.cannot_tell else ("no interval: judged by permutation, see its p",)
    return MetricValue(
        name=name,
        value=found.share,
        n=found.num_steps,
        labels=labels,
        valid=found.cannot_tell is None,
        reasons=reasons,
        null={"permutation": 0.0},
    )


def _p_value(found: Attribution, name: str, labels: dict[str, str]) -> MetricValue:
    if found.p_value is None:
        return missing(name, found.cannot_tell or "cannot tell", **labels)
    return MetricValue(name=name, value=found.p_value, n=found.num_steps, exact=True, labels=labels)
