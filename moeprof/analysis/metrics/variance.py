"""How much latency varies, and what the slow part has in common (docs/metrics.md#variance)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from moeprof.analysis.metrics.context import Context
from moeprof.analysis.metrics.phase_share import with_phase_share
from moeprof.analysis.metrics.samples import (
    Scope,
    Window,
    itl_samples,
    over_rounds,
    percentile_ratio,
    scopes,
    span_samples,
    within,
)
from moeprof.analysis.metrics.tables import BoolArray, PassTables, column, is_phase, token_times
from moeprof.analysis.stats import intervals
from moeprof.analysis.stats.arrays import FloatArray
from moeprof.core.metric import Card, MetricValue, missing

MINIMUM_SIZE_STEPS = 5
SLOW_SHARE = 0.01
MINIMUM_STEPS = 200
_TIME_TOLERANCE_S = 1e-6
FIGURES = (
    "carries_prefill_ratio",
    "prefill_tokens",
    "decode_tokens",
    "context_tokens",
    "num_waiting",
    "cpu_over_wall_ratio",
    "idle_before_s",
    "distinct_experts",
    "max_load",
)

_card = partial(Card, section="latency", source="docs/metrics.md#variance", kind="timed")
_of_tokens = partial(_card, counts_tokens=True)
CARDS: tuple[Card, ...] = (
    _of_tokens("step_cv_at_fixed_tokens", "Step time spread at a fixed batch", "ratio", "lower",
          "CV of step time among decode steps with equal batch size, weighted by steps over sizes with 5 or more",
          needs="steps"),
    _of_tokens("itl_p99_over_p50_ratio", "ITL tail over middle", "ratio", "lower", "p99 / p50 of itl_s"),
    _card("ttft_p99_over_p50_ratio", "TTFT tail over middle", "ratio", "lower", "p99 / p50 of ttft_s",
          counts_tokens=False),
    _of_tokens("itl_tail_prefill_ratio", "ITL tail behind a prefill", "ratio", "neither",
          "gaps above p99 whose step carried prefill tokens / gaps above p99; beside it the share among all gaps",
          needs="steps"),
    _of_tokens("slow_steps_over_others_ratio", "Slowest 1 % of steps, against the others", "ratio", "neither",
          "mean of the figure (label) among the slowest 1 % of steps / its mean among the others, all rounds",
          needs="steps"),
)  # fmt: skip


def compute(context: Context) -> list[MetricValue]:
    """Spread and tails of passes with the same traffic."""
    return variance_metrics(context.passes)


def variance_metrics(rounds: Sequence[PassTables]) -> list[MetricValue]:
    """Spread of step times at a fixed batch, tail ratios, and the share of the ITL tail that waited for a prefill."""
    if not rounds:
        return []
    values = []
    for scope in scopes(rounds):
        labels = {"traffic": rounds[0].traffic, "window": scope.label}
        itl = [itl_samples(tables, window) for tables, window in scope.parts]
        ttft = [span_samples(tables, window, "ttft") for tables, window in scope.parts]
        values += [
            _step_cv(scope, {**labels, "phase": "decode"}),
            percentile_ratio("itl_p99_over_p50_ratio", itl, labels, scope.missing_reason),
            percentile_ratio("ttft_p99_over_p50_ratio", ttft, labels, scope.missing_reason),
        ]
    return [*values, _itl_tail(rounds), *_slow_steps(rounds)]


def _step_cv(scope: Scope, labels: dict[str, str]) -> MetricValue:
    """Coefficient of variation of decode steps with equal batch size, weighted by steps over sizes."""
    found = [_cv_at_fixed_tokens(tables, window) for tables, window in scope.parts]
    known = [cv for cv, _ in found if cv is not None]
    reason = scope.missing_reason if not scope.parts else f"no batch size has {MINIMUM_SIZE_STEPS} decode steps"
    num = max((num for _, num in found), default=0)
    values = [over_rounds("step_cv_at_fixed_tokens", known, labels, reason, n=num)]
    return with_phase_share(values, "decode", scope.parts)[0]


def _cv_at_fixed_tokens(tables: PassTables, window: Window) -> tuple[float | None, int]:
    keep = is_phase(tables.steps, "decode") & within(column(tables.steps, "end_s"), window)
    steps = tables.steps[keep]
    wall = column(steps, "end_s") - column(steps, "start_s")
    _, size = np.unique(column(steps, "decode_tokens"), return_inverse=True)
    count = np.bincount(size)
    mean = np.bincount(size, weights=wall) / np.maximum(count, 1)
    spread = np.bincount(size, weights=(wall - mean[size]) ** 2) / np.maximum(count - 1, 1)
    enough = count >= MINIMUM_SIZE_STEPS
    if not enough.any():
        return None, 0
    cv = np.sqrt(spread[enough]) / mean[enough]
    return float(np.average(cv, weights=count[enough])), int(count[enough].sum())


def _itl_tail(rounds: Sequence[PassTables]) -> MetricValue:
    """Share of gaps above p99 whose last step carried prefill tokens; null: the share among all gaps.

    n = distinct steps that ended such gaps, of the round with most: gaps of one step are one sample.
    """
    name, labels = "itl_tail_prefill_ratio", {"traffic": rounds[0].traffic, "window": "total"}
    parts = [_gaps_with_prefill(tables) for tables in rounds]
    gaps = np.concatenate([part[0] for part in parts])
    prefill = np.concatenate([part[1] for part in parts])
    num_steps = max(len(np.unique(part[2])) for part in parts)
    if num_steps < intervals.MINIMUM_SAMPLES[99.0]:
        reason = f"{num_steps} independent samples, p99 needs {intervals.MINIMUM_SAMPLES[99.0]}"
        return missing(name, reason, **labels)
    border = np.percentile(gaps, 99)
    tail = gaps > border
    if not tail.any():
        return missing(name, "no gap is above p99: the longest gaps are equal", **labels)
    return MetricValue(
        name=name,
        value=float(prefill[tail].mean()),
        n=max(len(np.unique(ends[own > border])) for own, _, ends in parts),
        labels=labels,
        null={"all_gaps": float(prefill.mean())},
        reasons=("no interval: it describes these gaps",),
    )


def _gaps_with_prefill(tables: PassTables) -> tuple[FloatArray, BoolArray, FloatArray]:
    """Every gap of requests that ended well, whether the step that ended it carried prefill tokens, and when."""
    times, rows = token_times(tables.requests)
    keep = (rows[1:] == rows[:-1]) & tables.done[rows[1:]]
    gaps, ends = np.diff(times)[keep], times[1:][keep]
    step_ends, prefill = column(tables.steps, "end_s"), column(tables.steps, "prefill_tokens") > 0
    if not len(step_ends):
        return np.empty(0), np.empty(0, dtype=np.bool_), np.empty(0)
    step = np.minimum(np.searchsorted(step_ends, ends - _TIME_TOLERANCE_S), len(step_ends) - 1)
    return gaps, prefill[step], ends


def _slow_steps(rounds: Sequence[PassTables]) -> list[MetricValue]:
    """Per figure its mean among the slowest steps over its mean among the others (label ``figure``)."""
    name, labels = "slow_steps_over_others_ratio", {"traffic": rounds[0].traffic, "window": "total"}
    found = slow_steps(rounds)
    if found is None:
        return [missing(name, f"fewer than {MINIMUM_STEPS} steps", **labels, figure=figure) for figure in FIGURES]
    values = []
    for figure in FIGURES:
        own = {**labels, "figure": figure}
        slow, others = found.means.get(figure, (None, None))
        if slow is None or others is None:
            values.append(missing(name, "not known of every step", **own))
        elif others <= 0:
            values.append(missing(name, f"mean {slow:.4g} among the slow steps, none among the others", **own))
        else:
            note = f"mean {slow:.4g} among the {found.num_slow} slowest steps, {others:.4g} among the others"
            reasons = (note, "no interval: it describes these steps")
            values.append(MetricValue(name=name, value=slow / others, n=found.num_slow, labels=own, reasons=reasons))
    return values


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowSteps:
    """What the slowest 1 % of steps had in common: the mean of a figure there and elsewhere.

    Attributes:
        num_slow: how many steps are slow.
        means: figure -> (among slow steps, among the others), only figures that are known.
    """

    num_slow: int
    means: dict[str, tuple[float, float]]


def slow_steps(rounds: Sequence[PassTables]) -> SlowSteps | None:
    """Compare the slowest 1 % of steps with the rest; None with fewer than MINIMUM_STEPS."""
    columns: dict[str, list[FloatArray]] = {}
    for tables in rounds:
        for name, values in _figures(tables).items():
            columns.setdefault(name, []).append(values)
    figures = {name: np.concatenate(parts) for name, parts in columns.items()}
    wall = figures.pop("step_s", np.empty(0))
    if len(wall) < MINIMUM_STEPS:
        return None
    threshold = float(np.quantile(wall, 1 - SLOW_SHARE))
    slow = wall >= threshold
    means = {
        name: (float(values[slow].mean()), float(values[~slow].mean()))
        for name, values in figures.items()
        if len(values) == len(wall) and np.isfinite(values).all() and not slow.all()
    }
    return SlowSteps(num_slow=int(slow.sum()), means=means)


def _figures(tables: PassTables) -> dict[str, FloatArray]:
    steps = tables.steps
    wall = column(steps, "end_s") - column(steps, "start_s")
    found = {
        "step_s": wall,
        "carries_prefill_ratio": (column(steps, "prefill_tokens") > 0).astype(np.float64),
        "prefill_tokens": column(steps, "prefill_tokens"),
        "decode_tokens": column(steps, "decode_tokens"),
        "context_tokens": column(steps, "context_tokens"),
        "num_waiting": column(steps, "num_waiting"),
        "cpu_over_wall_ratio": column(steps, "cpu_s") / np.maximum(wall, 1e-9),
        "idle_before_s": column(steps, "start_s") - np.concatenate([[0.0], column(steps, "end_s")])[:-1],
    }
    if tables.routing is not None and len(tables.routing.distinct_SL) >= len(steps):
        found["distinct_experts"] = tables.routing.distinct_SL[: len(steps)].sum(axis=1, dtype=np.float64)
        found["max_load"] = tables.routing.max_load_SL[: len(steps)].sum(axis=1, dtype=np.float64)
    return found
