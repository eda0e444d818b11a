"""Where an MoE stops (or starts) being cheaper than a dense model as the load grows (docs/metrics.md#sparsity).

At every load the two are compared round by round on the same requests: ratios of dollars per million tokens, their mean
and t-interval on the logarithm. Few rounds say little about their own spread, so the spread of all loads is pooled, and
a load whose own is larger keeps its own. A crossing is claimed only between loads where the ratio is known to lie on
opposite sides of 1; its place is found by a straight line in log ratio against log load.

Speed for one reader against speed of a device: the settings that no other setting beats in both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np

from moeprof.analysis.compare.ratios import PAIRED_FLOOR_RATIO, estimated_ratio
from moeprof.analysis.compare.split_prices import within_split
from moeprof.analysis.metrics.cards import card_for
from moeprof.analysis.metrics.cost.bounds import output_bounds
from moeprof.analysis.metrics.sweep.points import SweptPoint, SweptRound, log_ratio_estimate, to_metric, usd_total
from moeprof.analysis.metrics.tables import is_done
from moeprof.analysis.sparsity.sweeps import PointResult, SweepResult
from moeprof.analysis.stats.estimate import ROUNDS, Estimate, Ratio
from moeprof.core import units
from moeprof.core.metric import MetricValue
from moeprof.core.workload.studies import SweepPoint

Kind = Literal["crossing", "bound", "several", "cannot tell"]
AXIS_NAMES = {
    "concurrency": "concurrency",
    "request_rate": "request rate",
    "input_tokens": "prompt length",
    "max_batch_tokens": "batch tokens",
}
OPEN_NOTE = "open loop: dollars of busy seconds (idle time left out); the price at the SLO stands beside"
OTHER_REQUESTS = "the models were sent different requests (another tokenizer or schedule)"
OTHER_WORK = "not the same requests were finished"
COST, EXPERTS = "usd_per_1m_total_tokens", "distinct_experts_per_step"
NO_RATIO = (EXPERTS, "goodput_ratio", "busy_ratio")  # counts of one kind of model, and shares


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossoverPoint:
    """The MoE's dollars over the dense model's at one load. ``told``: ``cheaper``, ``dearer``, or ``cannot tell``."""

    load: float
    ratio: Estimate
    told: Literal["cheaper", "dearer", "cannot tell"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossover:
    """The answer for one pair of models.

    Attributes:
        moe, dense: the pair.
        axis: what the load is, see SweepResult.
        row: the other settings of the sweep.
        kind: ``crossing``: it is at ``batch``; ``bound``: outside what was tried; ``several``: more than one;
            ``cannot tell``.
        batch: the load at which the ratio is 1; its interval holds the loads at which the ratio's interval holds 1.
        points: the ratios, by load.
        cheaper_below: True when the MoE is cheaper below the crossing, False when above; None without a crossing.
        text: the answer in words.
        note: how dollars were billed where that needs saying.
    """

    moe: str
    dense: str
    axis: str
    row: SweepPoint
    kind: Kind
    batch: Estimate
    points: tuple[CrossoverPoint, ...]
    cheaper_below: bool | None
    text: str
    note: str | None = None


def crossovers(result: SweepResult) -> tuple[Crossover, ...]:
    """Every MoE against every dense model, for every other setting of the sweep."""
    moes = [m.model for m in result.models if m.is_moe]
    denses = [m.model for m in result.models if not m.is_moe]
    return tuple(crossover_batch(result, moe, dense, row) for moe in moes for dense in denses for row in result.rows)


def crossover_batch(result: SweepResult, moe: str, dense: str, row: SweepPoint | None = None) -> Crossover:
    """The load at which the MoE stops or starts beating a dense model in dollars per million tokens."""
    row = result.rows[0] if row is None else row
    other = {result.load(p.point): p for p in result.line(dense, row)}
    pairs = [(result.load(p.point), p, other[result.load(p.point)]) for p in result.line(moe, row)
             if result.load(p.point) in other]  # fmt: skip
    points, reason = _ratios(pairs)
    left_out = [_number(load) for load, a, b in pairs if why_unlike(a.swept, b.swept) == OTHER_WORK]
    kind, batch, below, text = find_crossover(points, AXIS_NAMES[result.axis])
    if reason is not None:
        kind, batch, below, text = "cannot tell", Estimate(value=None, reason=reason), None, f"cannot tell: {reason}"
    return Crossover(
        moe=moe,
        dense=dense,
        axis=result.axis,
        row=row,
        kind=kind,
        batch=batch,
        points=points,
        cheaper_below=below,
        text=f"{moe} against {dense}: {text}" + (f"; without {', '.join(left_out)}: {OTHER_WORK}" if left_out else ""),
        note=OPEN_NOTE if result.is_open else None,
    )


def _ratios(pairs: Sequence[tuple[float, PointResult, PointResult]]) -> tuple[tuple[CrossoverPoint, ...], str | None]:
    """The ratio at each load, and why there is none."""
    if not pairs:
        return (), "no load was measured for both models"
    measured: list[tuple[float, list[float]]] = []
    for load, above, below in pairs:
        ratios, same = paired_ratios(above.swept, below.swept)
        if not same:
            return (), OTHER_REQUESTS
        if ratios:
            measured.append((load, ratios))
    if not measured:
        return (), "no load has dollars of both models"
    spread = pooled_spread([ratios for _, ratios in measured])
    return tuple(crossover_point(load, log_ratio_estimate(ratios, spread)) for load, ratios in measured), None


def paired_ratios(
    above: SweptPoint, below: SweptPoint, figure: Callable[[SweptRound], float | None] = usd_total
) -> tuple[list[float], bool]:
    """A figure of one model over another's per round, or per launch where there are several; False for other requests.

    Rounds pair by launch and number; what one of the models lacks is left out, and so is a round of which the two
    finished another number of requests (one was cut off).

    Args:
        above: the model in the numerator.
        below: the model in the denominator.
        figure: of one round; dollars to compare by, unless given.
    """
    theirs = {(one.launch, one.round): one for one in below.rounds}
    logs: dict[int, list[float]] = {}
    for one in above.rounds:
        other = theirs.get((one.launch, one.round))
        if other is None:
            continue
        if one.schedule_sha256 != other.schedule_sha256:
            return [], False
        if _num_done(one) != _num_done(other):
            continue
        up, down = figure(one), figure(other)
        if up and down:
            logs.setdefault(one.launch, []).append(math.log(up / down))
    groups = list(logs.values())
    means = [float(np.mean(group)) for group in groups] if len(groups) > 1 else [x for group in groups for x in group]
    return [math.exp(value) for value in means], True


def why_unlike(above: SweptPoint, below: SweptPoint) -> str | None:
    """Why figures of two models at one setting must not be set against each other, or None."""
    theirs = {(one.launch, one.round): one for one in below.rounds}
    pairs = [(one, theirs[one.launch, one.round]) for one in above.rounds if (one.launch, one.round) in theirs]
    if any(one.schedule_sha256 != other.schedule_sha256 for one, other in pairs):
        return OTHER_REQUESTS
    return OTHER_WORK if any(_num_done(one) != _num_done(other) for one, other in pairs) else None


def _num_done(one: SweptRound) -> int:
    return int(is_done(one.tables.requests).sum())


def pooled_spread(groups: Sequence[Sequence[float]]) -> tuple[float, int] | None:
    """Standard deviation of a log ratio within loads and its degrees of freedom; None where each load has one pair."""
    degrees = sum(len(group) - 1 for group in groups)
    if degrees < 1:
        return None
    squares = sum(float(((np.log(group) - np.mean(np.log(group))) ** 2).sum()) for group in groups)
    return math.sqrt(squares / degrees), degrees


def crossover_point(load: float, ratio: Estimate) -> CrossoverPoint:
    """Judge a ratio as the tables do: by its interval and the floor of two processes; without one it says nothing."""
    assert ratio.value is not None, "a ratio that was measured"
    verdict = estimated_ratio(ratio, "lower", PAIRED_FLOOR_RATIO).verdict
    told: Literal["cheaper", "dearer", "cannot tell"] = "cannot tell"
    if verdict in ("better", "worse"):
        told = "cheaper" if verdict == "better" else "dearer"
    return CrossoverPoint(load=load, ratio=ratio, told=told)


def find_crossover(points: Sequence[CrossoverPoint], axis: str) -> tuple[Kind, Estimate, bool | None, str]:
    """Kind, load with interval, whether the MoE is cheaper below it, and the answer in words."""
    known = [(i, p) for i, p in enumerate(points) if p.told != "cannot tell"]
    if not known:
        bare = next((p.ratio.reason for p in points if p.ratio.low is None and p.ratio.reason), None)
        reason = bare or f"the difference lies within the noise at every {axis} tried"
        return (
            "cannot tell",
            Estimate(value=None, reason=reason),
            None,
            f"cannot tell: {reason}" + ("" if bare else _span(points)),
        )
    changes = [(a, b) for a, b in pairwise(known) if a[1].told != b[1].told]
    if len(changes) > 1:
        where = ", ".join(f"{_number(a[1].load)} and {_number(b[1].load)}" for a, b in changes)
        reason = f"several crossings: between {where}"
        return "several", Estimate(value=None, reason=reason), None, f"cannot tell: {reason}"
    if not changes:
        return _no_crossing(points, axis)
    (first, before), (last, _) = changes[0]
    bracket = points[first : last + 1]
    return _crossing(bracket, axis, cheaper_below=before.told == "cheaper")


def _no_crossing(points: Sequence[CrossoverPoint], axis: str) -> tuple[Kind, Estimate, bool | None, str]:
    told = next(p.told for p in points if p.told != "cannot tell")
    open_at = [_number(p.load) for p in points if p.told == "cannot tell"]
    if not open_at:
        text = f"{told} at every {axis} tried{_span(points)}"
        return "bound", Estimate(value=None, reason=f"no crossing: {text}"), None, text
    at = ", ".join(_number(p.load) for p in points if p.told == told)
    text = f"{told} at {axis} {at}; cannot tell at {', '.join(open_at)}"
    return "cannot tell", Estimate(value=None, reason=text), None, text


def _crossing(
    bracket: Sequence[CrossoverPoint], axis: str, *, cheaper_below: bool
) -> tuple[Kind, Estimate, bool | None, str]:
    """Between two loads where the ratio is known to lie on opposite sides of 1."""
    loads = [p.load for p in bracket]
    found = crossings(loads, [p.ratio.value or 1.0 for p in bracket])
    value = math.sqrt(found[0] * found[-1])  # more than one among loads that are not distinguishable: their middle
    low = high = None
    if all(p.ratio.low is not None and p.ratio.high is not None for p in bracket):
        lows, highs = [p.ratio.low or 0.0 for p in bracket], [p.ratio.high or 0.0 for p in bracket]
        first, second = (highs, lows) if cheaper_below else (lows, highs)
        low, high = crossings(loads, first)[0], crossings(loads, second)[-1]
    bare = next((p.ratio.reason for p in bracket if p.ratio.low is None), None)
    estimate = Estimate(value=value, low=low, high=high, n=len(bracket), reason=bare)
    sides = ("cheaper", "dearer") if cheaper_below else ("dearer", "cheaper")
    interval = f" [{_number(low)}, {_number(high)}]" if low is not None and high is not None else f" ({bare})"
    text = f"{sides[0]} below {axis} {_number(value)}{interval}, {sides[1]} above"
    return "crossing", estimate, cheaper_below, text


def crossings(loads: Sequence[float], ratios: Sequence[float]) -> list[float]:
    """Loads at which a line through the points, logarithmic both ways, meets 1."""
    x, y = np.log(np.asarray(loads, dtype=np.float64)), np.log(np.asarray(ratios, dtype=np.float64))
    y[np.abs(y) < 1e-12] = 0.0
    found = []
    for i in range(len(x)):
        if y[i] == 0:
            found.append(float(loads[i]))
        elif i and y[i - 1] * y[i] < 0:
            share = y[i - 1] / (y[i - 1] - y[i])
            found.append(math.exp(x[i - 1] + share * (x[i] - x[i - 1])))
    return found


def _span(points: Sequence[CrossoverPoint]) -> str:
    if not points:
        return ""
    ends = (_number(points[0].load), _number(points[-1].load))
    return f", {ends[0]} to {ends[1]}" if len(points) > 1 else f", {ends[0]}"


def _number(value: float) -> str:
    return units.significant(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParetoPoint:
    """One model at one setting.

    Attributes:
        model: its name.
        point: the setting.
        tokens_per_s_per_user: 1 / mean gap between tokens.
        tokens_per_s_per_device: output tokens per second and device.
        on_front: no other setting of this model is at least as fast in both and faster in one.
    """

    model: str
    point: SweepPoint
    tokens_per_s_per_user: float
    tokens_per_s_per_device: float
    on_front: bool


def pareto(result: SweepResult) -> tuple[ParetoPoint, ...]:
    """All points with both speeds, by model and then by speed for one reader, ascending."""
    found = []
    for model in result.models:
        for one in model.points:
            user, device = one.tokens_per_s_per_user.value, one.output_tokens_per_s.value
            if user is not None and device is not None:
                found.append((model.model, one.point, (user, device)))
    points = []
    for name, point, speed in sorted(found, key=lambda item: (item[0], item[2])):
        own = [other for model, _, other in found if model == name]
        points.append(
            ParetoPoint(
                model=name,
                point=point,
                tokens_per_s_per_user=speed[0],
                tokens_per_s_per_device=speed[1],
                on_front=is_on_front(speed, own),
            )
        )
    return tuple(points)


def is_on_front(speed: tuple[float, float], others: Sequence[tuple[float, float]]) -> bool:
    """True when none of the others is at least as fast in both and faster in one."""
    return not any(a >= speed[0] and b >= speed[1] and (a, b) != speed for a, b in others)


Of = Callable[[PointResult], Estimate]


OfRound = Callable[[SweptRound], float | None]


def sweep_metrics(result: SweepResult) -> tuple[tuple[str, MetricValue], ...]:
    """``crossover_batch`` of each pair and ``tokens_per_s_per_user`` of each point, by model, for data files."""
    found = []
    for one in crossovers(result):
        labels = {"against": one.dense, "axis": one.axis} | ({"sweep": one.row.label} if one.row.label else {})
        value = to_metric("crossover_batch", one.batch, **labels)
        found.append((one.moe, replace(value, reasons=(one.text, *value.reasons))))
    for model in result.models:
        for point in model.points:
            value = to_metric("tokens_per_s_per_user", point.tokens_per_s_per_user, at=point.point.label)
            found.append((model.model, value))
    return tuple(found)


def cell_ratios(
    cells: Sequence[tuple[PointResult | None, ...]], metric: str, of: Of, figure: OfRound | None, reference: int
) -> list[list[Ratio | None]]:
    """Per model, per load: paired by round with the spread pooled over loads; of two means where that cannot be."""
    better = card_for(metric).better
    launches = {one.launch for cell in cells for point in cell if point is not None for one in point.swept.rounds}
    by = ROUNDS if len(launches) == 1 else ""
    columns: list[list[Ratio | None]] = []
    for position in range(len(cells[0])):
        if position == reference or metric in NO_RATIO:
            columns.append([None] * len(cells))
            continue
        pairs = [(cell[position], cell[reference]) for cell in cells]
        paired = [paired_ratios(a.swept, b.swept, figure)[0] if a and b and figure else [] for a, b in pairs]
        spread = pooled_spread([ratios for ratios in paired if ratios])
        columns.append(
            [
                _cell(
                    metric,
                    replace(estimated_ratio(log_ratio_estimate(ratios, spread), better, PAIRED_FLOOR_RATIO), by=by),
                    a,
                    b,
                )
                if ratios
                else _plain_ratio(a, b, of)
                for ratios, (a, b) in zip(paired, pairs, strict=True)
            ]
        )
    return columns


def _cell(metric: str, ratio: Ratio, point: PointResult | None, reference: PointResult | None) -> Ratio:
    """The ratio; of prices of one side with the split of mixed steps in it."""
    if point is None or reference is None or metric != "usd_per_1m_output_tokens":
        return ratio
    below, above = (output_bounds([swept.split for swept in one.swept.rounds]) for one in (reference, point))
    return within_split(ratio, below, above, floor_ratio=PAIRED_FLOOR_RATIO)


def _plain_ratio(first: PointResult | None, second: PointResult | None, of: Of) -> Ratio:
    """Of two means, without an interval or a verdict."""
    if first is None or second is None:
        return Ratio(value=None, reason="this load did not run")
    unlike = why_unlike(first.swept, second.swept)
    if unlike is not None:
        return Ratio(value=None, verdict="incomparable", reason=unlike)
    above, below = of(first), of(second)
    if above.value is None or not below.value:
        return Ratio(value=None, reason=above.reason if above.value is None else below.reason)
    return Ratio(value=above.value / below.value)
