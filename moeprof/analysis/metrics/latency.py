"""Latency: how long requests, tokens and steps took (docs/metrics.md#time).

Latencies count from *arrival*, when the schedule wanted the request sent, so that a slow server cannot hide behind a
client that waits for it; ``*_from_sent`` stand beside them. Requests that did not end well have no latency; they are
counted in ``num_requests_*`` and in the denominator of goodput.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from moeprof.analysis.metrics.context import Context
from moeprof.analysis.metrics.phase_share import with_phase_share
from moeprof.analysis.metrics.samples import (
    ALL_PERCENTILES,
    SHORT_PERCENTILES,
    SPANS,
    Samples,
    Scope,
    Window,
    itl_samples,
    lag_samples,
    scopes,
    span_samples,
    step_samples,
    summarise,
    tpot_samples,
)
from moeprof.analysis.metrics.sweep.objectives import QUANTITIES as OBJECTIVES
from moeprof.analysis.metrics.sweep.objectives import meets, objectives, share_of_requests, why_unjudged
from moeprof.analysis.metrics.tables import ALL, PassTables, all_classes
from moeprof.core.metric import Card, MetricValue, Place, missing

if TYPE_CHECKING:
    from moeprof.core.workload.workload import Slo

LAG_P99_LIMIT_S = 0.5
LAG_MEDIAN_LIMIT_S = 0.010
STEP_PHASES = (ALL, "prefill", "decode", "mixed")
NO_TOKEN_TIMES = "the server tells how many tokens came at the end of an answer only, and its chunks are not tokens"
BY_CLASS = ("ttft", "itl", "tpot", "e2e")
Reader = Callable[[PassTables, Window, str], Samples]

_BENCHMARKS = (
    "as in vLLM's and inference-perf's benchmarks, counted from the scheduled arrival (no coordinated omission)"
)
_card = partial(Card, section="latency", kind="timed")
_of_tokens = partial(_card, source="docs/metrics.md#time", counts_tokens=True)
_of_requests = partial(_card, source="docs/metrics.md#time", counts_tokens=False)
CARDS: tuple[Card, ...] = (
    _of_requests("queue_*_s", "Queueing", "s", "lower", "first time in a batch - arrival", source=_BENCHMARKS,
          needs="steps"),
    _of_requests("ttft_*_s", "Time to first token", "s", "lower", "first output token - arrival", source=_BENCHMARKS,
          screen=(Place(40, "TTFT p50", of="p50"), Place(50, "TTFT", of="+")), baseline=(Place(70, of="p50"),)),
    _of_tokens("itl_*_s", "Inter-token latency", "s", "lower",
          "gaps between consecutive output tokens of a request, pooled; a first token closes no gap; n = distinct "
          "steps, since gaps that end in one step are one sample",
          source=_BENCHMARKS, screen=(Place(60, "ITL p50", of="p50"), Place(120, "ITL", of="+")),
          baseline=(Place(80, of="p50"),)),
    _of_tokens("tpot_*_s", "Time per output token", "s", "lower",
          "(last token - first token) / (tokens - 1), one per request, n >= 2", source=_BENCHMARKS),
    _of_requests("e2e_*_s", "End to end", "s", "lower", "last token - arrival", source=_BENCHMARKS),
    _of_requests("queue_from_sent_*_s", "Queueing, from sent", "s", "lower", "first time in a batch - sent",
          needs="steps"),
    _of_requests("ttft_from_sent_*_s", "Time to first token, from sent", "s", "lower", "first output token - sent"),
    _of_requests("e2e_from_sent_*_s", "End to end, from sent", "s", "lower", "last token - sent"),
    _of_tokens("step_*_s", "Step time", "s", "lower",
          "wall time of one engine step, until its tokens are known on the host",
          gates=(Place(310, "floor", of="mean", phase="decode"), Place(320, "floor", of="mean", phase="prefill")),
          baseline=(Place(90, of="mean", phase="decode"), Place(100, of="mean", phase="prefill")), needs="steps"),
    _of_tokens("step_device_*_s", "Step time on the device", "s", "lower", "by device events around the step",
          needs="steps"),
    _of_requests("slo_ttft_met_ratio", "Requests within the ttft objective", "share", "higher",
          "requests whose ttft met the objective / all requests, failures included", bounded=True,
          of_requests=True),
    _of_tokens("slo_tpot_met_ratio", "Requests within the tpot objective", "share", "higher",
          "requests whose tpot met the objective / all requests, failures included", bounded=True,
          of_requests=True),
    _of_requests("slo_e2e_met_ratio", "Requests within the e2e objective", "share", "higher",
          "requests whose e2e met the objective / all requests, failures included", bounded=True,
          of_requests=True),
    _of_requests("schedule_lag_*_s", "Replayer's own lag", "s", "lower",
          "sent - max(arrival, end of the step running at arrival); flagged when p99 > 0.5 s or median > 10 ms",
          section="validity"),
)  # fmt: skip


def compute(context: Context) -> list[MetricValue]:
    """All latency families of passes with the same traffic."""
    return latency_metrics(context.passes, context.slo)


def _reader(quantity: str) -> Reader:
    if quantity in SPANS:
        return lambda tables, window, request_class: span_samples(tables, window, quantity, request_class)
    return {"itl": itl_samples, "tpot": tpot_samples, "schedule_lag": lag_samples}[quantity]


QUANTITIES = (*(name for name in SPANS if name != "ttft_answer"), "itl", "tpot", "schedule_lag")


def latency_metrics(rounds: Sequence[PassTables], slo: Slo | None) -> list[MetricValue]:
    """All latency families of the rounds of one launch, by window, request class and step phase.

    Args:
        rounds: passes with the same traffic.
        slo: objectives; each gives the share of all requests that met it.
    """
    if not rounds:
        return []
    values: list[MetricValue] = []
    total, steady = scopes(rounds)
    notes = _left_out(rounds)
    for scope in (total, steady):
        for quantity in QUANTITIES:
            values += _quantity(quantity, scope, rounds[0].traffic, ALL, notes)
        for phase in STEP_PHASES:
            values += _steps(scope, rounds[0].traffic, phase)
    for request_class in all_classes(rounds):
        for quantity in BY_CLASS:
            values += _quantity(quantity, total, rounds[0].traffic, request_class, notes)
    flag = schedule_lag_flag(rounds)
    if flag is not None:
        lagging = {f"schedule_lag_{statistic}_s" for statistic in ("mean", "p50", "p99")}
        values = [replace(v, valid=False, reasons=(*v.reasons, flag)) if v.name in lagging else v for v in values]
    return values + _slo_shares(rounds, slo)


def _quantity(
    quantity: str, scope: Scope, traffic: str, request_class: str, notes: tuple[str, ...]
) -> list[MetricValue]:
    read, parts, reason = _reader(quantity), scope.parts, scope.missing_reason
    if quantity == "itl" and parts and all(_without_times(tables) for tables, _ in parts):
        reason = NO_TOKEN_TIMES
    if quantity == "schedule_lag" and traffic != "open":
        parts, reason = (), f"{traffic} traffic has no arrivals to be late for"
    labels = {"traffic": traffic, "window": scope.label}
    if request_class != ALL:
        labels["request_class"] = request_class
    return summarise(
        quantity,
        [read(tables, window, request_class) for tables, window in parts],
        labels,
        missing_reason=reason,
        percentiles=ALL_PERCENTILES if request_class == ALL else SHORT_PERCENTILES,
        notes=() if quantity == "schedule_lag" else notes,
    )


def _without_times(tables: PassTables) -> bool:
    """True where outputs came, and no token of them has a time of its own."""
    requests = tables.requests[tables.done]
    return bool(len(requests)) and bool(requests["token_times_s"].isna().all())


def _steps(scope: Scope, traffic: str, phase: str) -> list[MetricValue]:
    labels = {"traffic": traffic, "window": scope.label, "phase": phase}
    values: list[MetricValue] = []
    for quantity, device in (("step", False), ("step_device", True)):
        samples = [step_samples(tables, window, phase, device=device) for tables, window in scope.parts]
        reason = scope.missing_reason
        if scope.parts and device and not any(len(part.values) for part in samples):
            reason = "no device times were recorded for such steps"
        values += summarise(quantity, samples, labels, missing_reason=reason)
    return with_phase_share(values, phase, scope.parts)


def _left_out(rounds: Sequence[PassTables]) -> tuple[str, ...]:
    num = sum(int((~tables.done).sum()) for tables in rounds)
    asked = sum(len(tables.requests) for tables in rounds)
    return (f"{num} of {asked} requests did not end well and are left out",) if num else ()


def schedule_lag_flag(rounds: Sequence[PassTables]) -> str | None:
    """Why the schedule was not kept, or None: the replayer's own lag has p99 > 0.5 s or median > 10 ms.

    Only open traffic has arrivals to keep: None for the rest.
    """
    lags = [lag_samples(tables, None).values for tables in rounds if tables.traffic == "open"]
    lag = np.concatenate(lags) if lags else np.empty(0)
    if not len(lag):
        return None
    median, p99 = np.percentile(lag, [50, 99])
    if p99 > LAG_P99_LIMIT_S or median > LAG_MEDIAN_LIMIT_S:
        return (
            f"the replayer itself was late: median {1e3 * median:.1f} ms (limit 10 ms), p99 {p99:.3f} s (limit 0.5 s)"
        )
    return None


def _slo_shares(rounds: Sequence[PassTables], slo: Slo | None) -> list[MetricValue]:
    labels = {"traffic": rounds[0].traffic, "window": "total"}
    values = []
    for quantity in OBJECTIVES:
        name, reason = f"slo_{quantity}_met_ratio", why_unjudged(rounds, slo, quantity)
        if reason is not None:
            values.append(missing(name, reason, **labels))
            continue
        limit_s = objectives(slo)[quantity]
        values.append(share_of_requests(name, rounds, [meets(t, quantity, limit_s) for t in rounds], labels))
    return values
