"""What a server says of itself, beside what its client saw (docs/metrics.md#figures-of-a-serving-engine).

Differences of the server's own counters over a pass, summed over its engines: sums and counts are exact, quantiles of
its histograms are not used. Values exist for engines that are servers alone; a counter that one lacks is null.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from moeprof.analysis.metrics.context import Context
from moeprof.analysis.metrics.resources.energy import output_tokens
from moeprof.analysis.metrics.samples import over_rounds, span_samples, summarise
from moeprof.analysis.metrics.tables import PassTables, column, is_done
from moeprof.core.metric import Card, MetricValue, missing
from moeprof.core.record.passes import ClientHeader, CountersHeader

_card = partial(Card, section="server", source="docs/metrics.md#figures-of-a-serving-engine", kind="timed")
_of_tokens = partial(_card, counts_tokens=True)
_of_requests = partial(_card, counts_tokens=False)
CARDS: tuple[Card, ...] = (
    _of_requests("ttft_answer_*_s", "Time to first answer token", "s", "lower",
          "first output token that is no reasoning - arrival"),
    _of_tokens("reasoning_tokens_ratio", "Reasoning tokens", "share", "neither",
          "reasoning tokens / output tokens, as the server tells them; they are output and are paid", bounded=True),
    _of_requests("server_queue_mean_s", "Queueing, by the server", "s", "lower",
          "seconds that its requests waited / requests that left its queue in the pass"),
    _of_requests("server_prefill_mean_s", "Prefill of a request, by the server", "s", "lower",
          "seconds of prefill / requests"),
    _of_requests("server_decode_mean_s", "Decode of a request, by the server", "s", "lower",
          "seconds of decode / requests"),
    _of_tokens("server_tokens_per_step", "Tokens in a step, by the server", "tokens", "neither",
          "tokens of its steps / steps"),
    _of_tokens("server_prefix_hit_ratio", "Prompt tokens from the cache, by the server", "share", "higher",
          "prompt tokens found in the prefix cache / looked up", bounded=True),
    _of_requests("server_preemptions", "Preemptions, by the server", "requests", "lower",
          "requests that lost their cache in a pass"),
    _of_requests("server_running_mean", "Requests in a batch, by the server", "requests", "neither",
          "its gauge, looked at once a second, mean over the pass"),
    _of_requests("server_waiting_mean", "Requests waiting, by the server", "requests", "lower",
          "its gauge, looked at once a second, mean over the pass"),
    _of_requests("server_kv_use_max_ratio", "KV cache in use at most, by the server", "share", "neither",
          "its gauge (whole pages), looked at once a second, largest of the pass", bounded=True),
    _of_tokens("server_output_tokens_ratio", "Output tokens, the server's count over ours", "ratio", "neither",
          "output tokens that it made in the pass / output tokens that arrived; 1 where nobody else used it",
          section="validity"),
    _of_tokens("server_input_tokens_ratio", "Prompt tokens, the server's count over the schedule's", "ratio", "neither",
          "prompt tokens that the server counted for our requests / token ids of the schedule; templates and text that "
          "is tokenized again make other numbers", section="validity"),
    _of_tokens("output_chunks_per_token", "Chunks per output token", "chunks", "neither",
          "pieces of the stream with output / output tokens; tokens are counted by usage or ids, never by chunks",
          section="validity"),
    _of_tokens("client_load_ratio", "Client, share of its limit", "share", "lower",
          "output tokens per second / what the client takes from a server that costs nothing", section="validity"),
    _of_requests("client_lag_p99_s", "Client's own lag, p99", "s", "lower",
          "how late the client's loop came back to a timer of 10 ms", section="validity"),
    _of_requests("server_failures", "Requests failed, by kind", "requests", "lower",
          "requests with status failed of each kind of failure, summed over rounds", section="throughput"),
)  # fmt: skip
OF_COUNTERS: dict[str, tuple[str, str]] = {  # -> numerator, denominator
    "server_queue_mean_s": ("queue_s", "queue_requests"),
    "server_prefill_mean_s": ("prefill_s", "prefill_requests"),
    "server_decode_mean_s": ("decode_s", "decode_requests"),
    "server_tokens_per_step": ("step_tokens", "steps"),
    "server_prefix_hit_ratio": ("prefix_hits", "prefix_queries"),
}
OF_GAUGES: dict[str, tuple[str, Callable[[np.ndarray], float]]] = {
    "server_running_mean": ("running", lambda values: float(values.mean())),
    "server_waiting_mean": ("waiting", lambda values: float(values.mean())),
    "server_kv_use_max_ratio": ("kv_use_ratio", lambda values: float(values.max())),
}
NO_COUNTER, NO_GAUGE = "the server has no such counter", "the server has no such gauge"
NOT_USED = "the counter did not move in the pass"


def compute(context: Context) -> list[MetricValue]:
    """Of passes with the same traffic; nothing for an engine that is no server."""
    if context.info.server is None or not context.passes:
        return []
    rounds = context.passes
    labels: dict[str, str] = {"traffic": rounds[0].traffic}
    return [
        *_reasoning(rounds, labels),
        *(_of_counters(name, rounds, labels) for name in OF_COUNTERS),
        _plain("server_preemptions", "preemptions", rounds, labels),
        *(_of_gauges(name, rounds, labels) for name in OF_GAUGES),
        over_rounds("server_output_tokens_ratio", [_others(t) for t in rounds], labels, _reason(rounds, NO_COUNTER)),
        over_rounds("server_input_tokens_ratio", [_prompts(t) for t in rounds], labels, "the server tells no usage"),
        over_rounds("output_chunks_per_token", [_chunks(t) for t in rounds], labels, "no token came"),
        *_of_client(rounds, labels),
        *_failures(rounds, labels),
    ]


def failures(rounds: Sequence[PassTables]) -> dict[str, int]:
    """Kind of failure -> requests, most frequent first; a kind stands before the first colon of the error."""
    found: dict[str, int] = {}
    for tables in rounds:
        failed = tables.requests[tables.requests["status"] == "failed"]
        for error in failed["error"]:
            kind = str(error).partition(":")[0]
            found[kind] = found.get(kind, 0) + 1
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _reasoning(rounds: Sequence[PassTables], labels: dict[str, str]) -> list[MetricValue]:
    """Only where a server reasoned: elsewhere the first answer token is the first token."""
    known = [column(t.requests[is_done(t.requests)], "reasoning_tokens") for t in rounds]
    if not sum(float(np.nansum(tokens)) for tokens in known) and not any(map(_answers_later, rounds)):
        return []
    shares = [
        float(tokens.sum() / made) if (made := output_tokens(t)) and np.isfinite(tokens).all() else None
        for tokens, t in zip(known, rounds, strict=True)
    ]
    ratio = over_rounds("reasoning_tokens_ratio", shares, labels, "the server does not tell its reasoning tokens")
    samples = [span_samples(tables, None, "ttft_answer") for tables in rounds]
    reason = "no request came to an answer"
    return [ratio, *summarise("ttft_answer", samples, labels | {"window": "total"}, missing_reason=reason)]


def _answers_later(tables: PassTables) -> bool:
    later = column(tables.requests, "first_answer_s") > column(tables.requests, "first_token_s")
    return bool(later.any())


def _counters(tables: PassTables) -> CountersHeader:
    return tables.counters or CountersHeader()


def _reason(rounds: Sequence[PassTables], otherwise: str) -> str:
    """Why a server's counters say nothing."""
    return next((reason for tables in rounds if (reason := _counters(tables).reason)), otherwise)


def _of_counters(name: str, rounds: Sequence[PassTables], labels: dict[str, str]) -> MetricValue:
    above, below = OF_COUNTERS[name]
    pairs = [(getattr(_counters(t), above), getattr(_counters(t), below)) for t in rounds]
    values = [None if a is None or not b else a / b for a, b in pairs]
    has_counter = any(a is not None and b is not None for a, b in pairs)
    return over_rounds(name, values, labels, NOT_USED if has_counter else _reason(rounds, NO_COUNTER))


def _plain(name: str, key: str, rounds: Sequence[PassTables], labels: dict[str, str]) -> MetricValue:
    return over_rounds(name, [getattr(_counters(t), key) for t in rounds], labels, _reason(rounds, NO_COUNTER))


def _of_gauges(name: str, rounds: Sequence[PassTables], labels: dict[str, str]) -> MetricValue:
    key, figure = OF_GAUGES[name]
    values: list[float | None] = []
    for tables in rounds:
        seen = np.empty(0) if tables.gauges is None else column(tables.gauges, key)
        seen = seen[np.isfinite(seen)]
        values.append(figure(seen) if len(seen) else None)
    return over_rounds(name, values, labels, _reason(rounds, NO_GAUGE))


def _others(tables: PassTables) -> float | None:
    made, got = _counters(tables).output_tokens, output_tokens(tables)
    return None if made is None or not got else made / got


def _prompts(tables: PassTables) -> float | None:
    told, ours = column(tables.requests, "told_input_tokens"), column(tables.requests, "input_tokens")
    known = np.isfinite(told)
    return float(told[known].sum() / ours[known].sum()) if known.any() and ours[known].sum() else None


def _chunks(tables: PassTables) -> float | None:
    done = tables.requests[is_done(tables.requests)]
    chunks, tokens = column(done, "chunks"), column(done, "output_tokens")
    known = np.isfinite(chunks)
    return float(chunks[known].sum() / tokens[known].sum()) if known.any() and tokens[known].sum() else None


def _of_client(rounds: Sequence[PassTables], labels: dict[str, str]) -> list[MetricValue]:
    seen = [tables.client or ClientHeader() for tables in rounds]
    why = next((one.reason for one in seen if one.reason), "the client's limit was not measured")
    loads = [
        None if one.tokens_per_s is None or not one.limit_tokens_per_s else one.tokens_per_s / one.limit_tokens_per_s
        for one in seen
    ]
    return [
        over_rounds("client_load_ratio", loads, labels, why),
        over_rounds("client_lag_p99_s", [one.lag_p99_s for one in seen], labels, "the pass was too short to tell"),
    ]


def _failures(rounds: Sequence[PassTables], labels: dict[str, str]) -> list[MetricValue]:
    found = failures(rounds)
    if not found:
        return [missing("server_failures", "no request failed", **labels)]
    asked = sum(len(tables.requests) for tables in rounds)
    return [
        MetricValue(name="server_failures", value=float(num), n=asked, exact=True, labels=labels | {"kind": kind})
        for kind, num in found.items()
    ]
