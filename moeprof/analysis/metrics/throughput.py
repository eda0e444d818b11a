"""Rates: requests and tokens per second, goodput, and what became of every request (docs/metrics.md#time).

A rate is what was completed in a window over the length of the window, idle time included. Token counts come from
engine ids: an output token counts at its own time, a prompt when its first token came out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from moeprof.analysis.metrics.context import Context
from moeprof.analysis.metrics.load.overload import capacity_per_s, requested_rate
from moeprof.analysis.metrics.samples import Window, over_rounds, request_rows, scopes, within
from moeprof.analysis.metrics.sweep.objectives import NO_SLO, goodput, meets_slo, why_unjudged
from moeprof.analysis.metrics.tables import PassTables, column, token_times
from moeprof.analysis.stats import intervals
from moeprof.analysis.stats.arrays import FloatArray, IntArray
from moeprof.core.metric import Card, MetricValue, Place, estimated, measured, missing

if TYPE_CHECKING:
    from moeprof.core.workload.workload import Slo

NOT_SATURATED = "no round shows that its queue grew, so what it could serve was not reached"
STATUSES = ("done", "refused", "failed", "unfinished")
NOT_SENT = "not_sent"  # turns whose predecessor came to nothing

_IN_WINDOW = "in the window / length of the window, idle time included"
_card = partial(Card, section="throughput", source="docs/metrics.md#time", kind="timed")
_of_tokens = partial(_card, counts_tokens=True)
_of_requests = partial(_card, counts_tokens=False)
CARDS: tuple[Card, ...] = (
    _of_requests("request_rate_requested_per_s", "Requested rate", "requests/s", "neither",
          "(requests - 1) / (last - first arrival); where turns wait for answers, of first turns"),
    _of_requests("request_rate_achieved_per_s", "Achieved rate", "requests/s", "higher",
          f"requests completed {_IN_WINDOW}"),
    _of_requests("request_rate_capacity_per_s", "Rate it could serve", "requests/s", "higher",
          "requests completed per second while the queue was never empty; null unless the queue grew; where turns wait "
          "for answers, of first turns"),
    _of_tokens("output_tokens_per_s", "Output tokens per second", "tokens/s", "higher",
          f"output tokens completed {_IN_WINDOW}",
          screen=(Place(30, "output speed"),), baseline=(Place(60),)),
    _of_tokens("input_tokens_per_s", "Input tokens per second", "tokens/s", "higher",
          f"prompt tokens, cached ones too, whose first token came {_IN_WINDOW}"),
    _of_tokens("total_tokens_per_s", "Tokens per second", "tokens/s", "higher",
          f"prompt tokens, cached ones too, and output tokens completed {_IN_WINDOW}"),
    _of_requests("goodput_requests_per_s", "Goodput", "requests/s", "higher",
          "requests that met every objective / length of the window"),
    _of_requests("goodput_ratio", "Good requests", "share", "higher",
          "requests that met every objective / all requests; failures and refusals stay in the denominator",
          source="DistServe (OSDI 2024), with failures counted", bounded=True, of_requests=True,
          screen=(Place(90, "requests within the SLO", own=True),)),
    _of_requests("num_requests", "Requests", "requests", "neither",
          "requests of the schedule with status any, summed over rounds"),
    _of_requests("num_requests_done", "Requests done", "requests", "higher",
          "requests of the schedule with status done, summed over rounds"),
    _of_requests("num_requests_refused", "Requests refused", "requests", "lower",
          "requests of the schedule with status refused, summed over rounds"),
    _of_requests("num_requests_failed", "Requests failed", "requests", "lower",
          "requests of the schedule with status failed, summed over rounds"),
    _of_requests("num_requests_unfinished", "Requests unfinished", "requests", "lower",
          "requests of the schedule with status unfinished, summed over rounds"),
    _of_requests("num_requests_not_sent", "Requests not sent", "requests", "lower",
          "turns whose predecessor did not end well, summed over rounds; only where turns wait for answers",
          section="conversations", source="docs/metrics.md#conversations"),
    _of_tokens("output_length_ratio", "Output got / asked", "share", "neither",
          "sum of output tokens got / asked, of requests done", bounded=True, of_requests=True),
    _of_tokens("forced_agreement_ratio", "Forced tokens the model would choose", "share", "neither",
          "forced ids equal to the model's own choice / output tokens", section="validity",
          source="docs/metrics.md#sparsity", bounded=True, of_requests=True),
)  # fmt: skip


def compute(context: Context) -> list[MetricValue]:
    """Rates, goodput and request counts of passes with the same traffic."""
    return throughput_metrics(context.passes, context.slo)


def throughput_metrics(rounds: Sequence[PassTables], slo: Slo | None) -> list[MetricValue]:
    """Rates, goodput and request counts of the rounds of one launch.

    Args:
        rounds: passes with the same traffic.
        slo: objectives for goodput; without any, goodput is null.
    """
    if not rounds:
        return []
    values = _requested(rounds)
    for scope in scopes(rounds):
        labels = {"traffic": rounds[0].traffic, "window": scope.label}
        for name, count in COUNTS.items():
            rates = [_rate(tables, window, count) for tables, window in scope.parts]
            values.append(over_rounds(name, rates, labels, scope.missing_reason))
    return [*values, *_goodput(rounds, slo), *_outcomes(rounds)]


def _requested(rounds: Sequence[PassTables]) -> list[MetricValue]:
    """What the schedule asked for, and where that was too much, what could be served of it."""
    names = ("request_rate_requested_per_s", "request_rate_capacity_per_s")
    labels = {"traffic": rounds[0].traffic, "window": "total"}
    if rounds[0].traffic != "open":
        return [missing(name, f"{rounds[0].traffic} traffic asks for no rate", **labels) for name in names]
    asked = measured(names[0], requested_rate(rounds[0]), "fewer than two arrivals", labels, exact=True)
    capacity = over_rounds(names[1], [capacity_per_s(tables) for tables in rounds], labels, NOT_SATURATED)
    return [asked, capacity]


def _rate(tables: PassTables, window: Window, count: Callable[[PassTables, Window], float]) -> float | None:
    start_s, end_s = tables.window_s if window is None else window
    return count(tables, window) / (end_s - start_s) if end_s > start_s else None


def _finished(tables: PassTables, window: Window) -> float:
    return float((tables.done & within(column(tables.requests, "last_token_s"), window)).sum())


def _outputs(tables: PassTables, window: Window) -> float:
    """At their own times; those that have none count when the last token of their request came."""
    without = tables.requests[tables.requests["token_times_s"].isna()]
    ended = within(column(without, "last_token_s"), window)
    late = float(column(without, "output_tokens")[ended].sum())
    return float(within(token_times(tables.requests)[0], window).sum()) + late


def _inputs(tables: PassTables, window: Window) -> float:
    begun = within(column(tables.requests, "first_token_s"), window)
    return float(column(tables.requests, "input_tokens")[begun].sum())


def _all_tokens(tables: PassTables, window: Window) -> float:
    return _inputs(tables, window) + _outputs(tables, window)


COUNTS: dict[str, Callable[[PassTables, Window], float]] = {
    "request_rate_achieved_per_s": _finished,
    "output_tokens_per_s": _outputs,
    "input_tokens_per_s": _inputs,
    "total_tokens_per_s": _all_tokens,
}


def _goodput(rounds: Sequence[PassTables], slo: Slo | None) -> list[MetricValue]:
    """Failures and refusals stay in the denominator."""
    labels = {"traffic": rounds[0].traffic, "window": "total"}
    name, reason = "goodput_requests_per_s", why_unjudged(rounds, slo)
    if slo is None or reason is not None:
        return [missing(one, reason or NO_SLO, **labels) for one in (name, "goodput_ratio")]
    rates = [
        float(meets_slo(tables, slo).sum()) / tables.duration_s if tables.duration_s > 0 else None for tables in rounds
    ]
    return [over_rounds(name, rates, labels, "empty window"), goodput(rounds, slo, labels)]


def _outcomes(rounds: Sequence[PassTables]) -> list[MetricValue]:
    """What became of every request, summed over rounds, and how asked and got compare."""
    labels = {"traffic": rounds[0].traffic, "window": "total"}
    statuses = [str(status) for tables in rounds for status in tables.requests["status"]]
    counts = {"num_requests": len(statuses)}
    waits = any(tables.requests["after"].notna().any() for tables in rounds) or NOT_SENT in statuses
    told = (*STATUSES, NOT_SENT) if waits else STATUSES
    counts |= {f"num_requests_{status}": statuses.count(status) for status in told}
    values = [MetricValue(name=name, value=count, exact=True, labels=labels) for name, count in counts.items()]
    for name, part, whole, reason in (
        ("output_length_ratio", "output_tokens", "asked_output_tokens", "no tokens were asked for"),
        ("forced_agreement_ratio", "agreed_tokens", "output_tokens", "the outputs were not forced"),
    ):
        values.append(_share_of_tokens(name, [_tokens(tables, part, whole) for tables in rounds], labels, reason))
    return values


def _share_of_tokens(
    name: str, rounds: Sequence[tuple[FloatArray, FloatArray, IntArray]], labels: dict[str, str], reason: str
) -> MetricValue:
    """Mean over rounds; the tokens of a request stand or fall together, and rounds repeat the requests."""
    known = [(parts, wholes, rows) for parts, wholes, rows in rounds if wholes.sum()]
    if not known:
        return missing(name, reason, **labels)
    shares = [float(parts.sum() / wholes.sum()) for parts, wholes, _ in known]
    parts, wholes, rows = (np.concatenate(arrays) for arrays in zip(*known, strict=True))
    distinct, position = np.unique(rows, return_inverse=True)
    times = np.bincount(position)  # rounds that have the request
    means = [np.bincount(position, tokens) / times for tokens in (parts, wholes)]
    own = intervals.clustered_share_interval(*means)
    interval = None if own is None else intervals.share_interval(own, shares)
    return estimated(name, float(np.mean(shares)), interval, "", n=len(distinct), labels=labels)


def _tokens(tables: PassTables, part: str, whole: str) -> tuple[FloatArray, FloatArray, IntArray]:
    """Of requests that ended well: tokens counted, all tokens, and row in the schedule."""
    parts, wholes = column(tables.requests, part), column(tables.requests, whole)
    known = tables.done & np.isfinite(parts) & np.isfinite(wholes)
    return parts[known], wholes[known], request_rows(tables)[known]
