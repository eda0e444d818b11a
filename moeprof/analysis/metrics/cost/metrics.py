"""Dollars as metrics (docs/metrics.md#cost): the additive split, the conventional figures, the rent of idle experts.

A price over several rounds is a sum over a sum, so that mean tokens times price is the mean bill, always.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from moeprof.analysis.metrics.context import Context
from moeprof.analysis.metrics.cost.bill import MILLION, CostSplit, cost_splits
from moeprof.analysis.metrics.cost.bounds import with_split_bounds
from moeprof.analysis.metrics.resources.memory import DENSE, NO_ROUTING, cold_expert_bytes, expert_counts
from moeprof.analysis.metrics.resources.work import peaks_of
from moeprof.analysis.metrics.samples import of_enough_requests, over_rounds
from moeprof.analysis.metrics.tables import PassTables
from moeprof.core.metric import Card, MetricValue, Place, missing
from moeprof.core.model_facts import ModelFacts
from moeprof.core.pricing import Pricing

if TYPE_CHECKING:
    import pandas as pd

OPEN_LOOP = "open-loop traffic bills idle time: use an offline, closed-loop or at-SLO result"

_OPENCOST = "OpenCost, docs/inference-cost-tracking.md (compute_time); docs/metrics.md#other-splits"
_BUSY = "with busy seconds billed instead of the window"
_card = partial(Card, section="cost", source="docs/metrics.md#cost", kind="timed")
_of_tokens = partial(_card, counts_tokens=True)
_of_run = partial(_card, counts_tokens=False)
CARDS: tuple[Card, ...] = (
    _of_run("run_cost_usd", "cost of the pass", "USD", "lower",
          "C = billed s * devices * usd_per_device_hour / 3600 (+ energy * PUE * usd_per_kwh where power is apart)"),
    _of_tokens("usd_per_1m_input_tokens", "$ / 1M input tokens computed", "USD / 1M tokens", "lower",
          "C * prefill s / busy s / prompt tokens computed, cached ones left out; mixed steps by Shapley value; adds "
          "up with output to C; the interval holds the split's bounds",
          source="Shapley, A value for n-person games (1953); docs/metrics.md#cost-split",
          screen=(Place(10, "price of 1M input tokens"),), needs="steps"),
    _of_tokens("usd_per_1m_output_tokens", "$ / 1M output tokens", "USD / 1M tokens", "lower",
          "C * decode s / busy s / output tokens; mixed steps by Shapley value; adds up with input to C; the interval "
          "holds the split's bounds",
          source="Shapley, A value for n-person games (1953); docs/metrics.md#cost-split",
          screen=(Place(20, "price of 1M output tokens"),), baseline=(Place(50),), needs="steps"),
    _of_tokens("usd_per_1m_input_tokens_with_cached", "$ / 1M input tokens, cached ones too", "USD / 1M tokens",
          "lower", "C * prefill s / busy s / (prompt tokens computed + taken from the cache): the price of a prompt "
          "token that was served", source="docs/metrics.md#cached-prompt-tokens", needs="steps"),
    _of_tokens("usd_per_1m_total_tokens", "$ / 1M tokens computed, in and out", "USD / 1M tokens", "lower",
          "C / (prompt tokens computed + output tokens)", screen=(Place(110, "price of 1M tokens"),)),
    _of_tokens("usd_per_1m_output_tokens_all_in", "$ / 1M output tokens, all in", "USD / 1M tokens", "lower",
          "C / output tokens; prompts are free in this figure, so never add it to an input price",
          source="the convention of InferenceX and inference-perf"),
    _of_tokens("usd_per_1m_input_tokens_all_in", "$ / 1M input tokens, all in", "USD / 1M tokens", "lower",
          "C / prompt tokens computed; outputs are free in this figure, so never add it to an output price",
          source="docs/metrics.md#other-splits"),
    _of_tokens("usd_per_1m_input_tokens_request_seconds", "$ / 1M input tokens, by request-seconds",
          "USD / 1M tokens", "lower",
          "C * P / (P + D) / prompt tokens computed; P, D: seconds of requests in prefill and in decode, summed over "
          "requests", source=_OPENCOST),
    _of_tokens("usd_per_1m_output_tokens_request_seconds", "$ / 1M output tokens, by request-seconds",
          "USD / 1M tokens", "lower",
          "C * D / (P + D) / output tokens; a second counts once per concurrent request, so decode weighs more",
          source=_OPENCOST),
    _of_run("usd_per_1m_characters", "$ / 1M characters", "USD / 1M characters", "lower",
          "C / characters of prompts and outputs"),
    _of_run("usd_per_request", "$ / request", "USD", "lower", "C / requests that ended well"),
    _of_run("busy_ratio", "busy share of the window", "share", "neither",
          "seconds of steps / window; below about 0.95 dollars compare utilisation, not models",
          source="docs/metrics.md#busy-and-billed", bounded=True,
          screen=(Place(130, "busy at this traffic", own=True),), needs="steps"),
    _of_tokens("usd_per_1m_input_tokens_busy", "$ / 1M input tokens, busy", "USD / 1M tokens", "lower",
          f"usd_per_1m_input_tokens {_BUSY}", source="docs/metrics.md#busy-and-billed", needs="steps"),
    _of_tokens("usd_per_1m_output_tokens_busy", "$ / 1M output tokens, busy", "USD / 1M tokens", "lower",
          f"usd_per_1m_output_tokens {_BUSY}", source="docs/metrics.md#busy-and-billed", needs="steps"),
    _of_tokens("usd_per_1m_total_tokens_busy", "$ / 1M tokens, busy", "USD / 1M tokens", "lower",
          f"usd_per_1m_total_tokens {_BUSY}", source="docs/metrics.md#busy-and-billed", needs="steps"),
    _of_tokens("usd_per_1m_output_tokens_all_in_busy", "$ / 1M output tokens, all in, busy", "USD / 1M tokens", "lower",
          f"usd_per_1m_output_tokens_all_in {_BUSY}", source="docs/metrics.md#busy-and-billed", needs="steps"),
    _of_tokens("usd_per_1m_input_tokens_low", "$ / 1M input tokens, low bound", "USD / 1M tokens", "lower",
          "usd_per_1m_input_tokens with mixed steps at the smaller of marginal and stand-alone cost of their input "
          "side",
          source="docs/metrics.md#cost-split", needs="steps"),
    _of_tokens("usd_per_1m_input_tokens_high", "$ / 1M input tokens, high bound", "USD / 1M tokens", "lower",
          "usd_per_1m_input_tokens with mixed steps at the larger of marginal and stand-alone cost of their input side",
          source="docs/metrics.md#cost-split", needs="steps"),
    _of_tokens("usd_per_1m_output_tokens_low", "$ / 1M output tokens, low bound", "USD / 1M tokens", "lower",
          "usd_per_1m_output_tokens with mixed steps at the smaller of marginal and stand-alone cost of their output "
          "side",
          source="docs/metrics.md#cost-split", needs="steps"),
    _of_tokens("usd_per_1m_output_tokens_high", "$ / 1M output tokens, high bound", "USD / 1M tokens", "lower",
          "usd_per_1m_output_tokens with mixed steps at the larger of marginal and stand-alone cost of their output "
          "side",
          source="docs/metrics.md#cost-split", needs="steps"),
    _of_tokens("mixed_steps_ratio", "steps with prefill and decode", "share", "neither",
          "mixed steps / steps; the label split_method says where stand-alone costs came from",
          source="docs/metrics.md#cost-split", needs="steps"),
    _of_run("wasted_cost_usd", "cost of lost work", "USD", "lower",
          "tokens of requests that did not end well, and recomputed tokens, at the pass's own prices", needs="steps"),
    _of_tokens("cost_input_tokens", "prompt tokens computed", "tokens", "neither",
          "prompt tokens computed in the window; those from the cache are not among them (input_tokens_per_s counts "
          "both)"),
    _of_tokens("cost_output_tokens", "output tokens produced", "tokens", "neither",
          "output tokens produced in the window"),
    _of_tokens("cost_cached_tokens", "prompt tokens from the cache", "tokens", "neither",
          "prompt tokens that a prefix cache had; not among those computed", needs="steps"),
    _of_tokens("cost_recomputed_tokens", "tokens computed again", "tokens", "lower",
          "tokens computed again after a preemption", needs="steps"),
    _of_tokens("usd_per_1m_tokens_at_slo", "$ / 1M tokens at SLO", "USD / 1M tokens", "lower",
          "usd_per_1m_total_tokens at the highest load known to meet the SLO for 95 % of requests",
          source="docs/metrics.md#busy-and-billed"),
    _of_tokens("break_even_utilisation_ratio", "break-even utilisation", "ratio", "lower",
          "busy cost / what the API asks for the same prompt tokens, computed and cached, and output tokens; above 1 "
          "renting never pays",
          source="docs/metrics.md#busy-and-billed"),
    _of_tokens("cold_expert_usd_per_hour", "rent of cold experts", "USD / h", "lower",
          "cold_expert_bytes / device memory * price: the most that offloading them could save", from_routing=True,
          of_batches=True),
)  # fmt: skip


def compute(context: Context) -> list[MetricValue]:
    """Dollars of passes with the same traffic."""
    memory_bytes = context.info.memory.device_total_bytes
    splits = context.once(splits_of)
    return cost_metrics(context.passes, context.pricing, context.facts, splits=splits, device_memory_bytes=memory_bytes)


def splits_of(context: Context) -> tuple[CostSplit, ...]:
    """The bill of every pass."""
    peaks = peaks_of(context.info, context.facts)
    calibration = context.table("calibration")
    return cost_splits(context.passes, context.pricing, calibration, facts=context.facts, peaks=peaks)


def cost_metrics(
    rounds: Sequence[PassTables],
    pricing: Pricing,
    facts: ModelFacts,
    calibration: pd.DataFrame | None = None,
    *,
    peaks: tuple[float, float] | None = None,
    device_memory_bytes: int | None = None,
    splits: Sequence[CostSplit] | None = None,
) -> list[MetricValue]:
    """All cost metrics of passes with the same traffic.

    Args:
        rounds: the passes.
        pricing: what an hour costs.
        facts: the model.
        calibration: pure steps from the end of warm-up (columns of table ``steps``), or None.
        peaks: (bytes/s, FLOP/s) of the device, the last resort for splitting mixed steps.
        device_memory_bytes: for the rent of cold experts.
        splits: from :func:`cost_splits`, when the caller has them already.
    """
    if not rounds:
        return []
    splits = splits if splits is not None else cost_splits(rounds, pricing, calibration, facts=facts, peaks=peaks)
    labels: dict[str, str] = {"traffic": rounds[0].traffic}
    values = [_with_doubts(_over(name, splits, labels), splits) for name in _FIGURES]
    values.append(_split_method(splits, labels))
    values.append(missing("usd_per_1m_tokens_at_slo", "needs a sweep over loads, and an slo", **labels))
    values.append(_break_even(splits, pricing, labels))
    values = [of_enough_requests(value, rounds) if _is_price(value.name) else value for value in values]
    values.append(_cold_rent(rounds, pricing, facts, device_memory_bytes, labels))
    return with_split_bounds(values)


def _is_price(name: str) -> bool:
    """A mean over requests; the bill itself is a fact."""
    return name.startswith("usd_per_") or name == "break_even_utilisation_ratio"


def _per_million(usd: float | None, count: float | None) -> _Share | None:
    return None if usd is None or count is None else (MILLION * usd, count)


def _busy(split: CostSplit, usd: float | None) -> float | None:
    """A share of C when only busy seconds are billed."""
    return None if usd is None or split.busy_ratio is None else usd * split.busy_ratio


def _tokens(split: CostSplit) -> float:
    return split.input_tokens + split.output_tokens


def _bound(split: CostSplit, side: str, end: int) -> _Share | None:
    """Price at one end of the split's bounds; the output's bounds mirror the input's."""
    price = split.usd_per_input_token if side == "input" else split.usd_per_output_token
    if split.input_bounds_usd is None or price is None:
        return None
    if side == "input":
        return _per_million(split.input_bounds_usd[end], split.input_tokens)
    return _per_million(split.run_cost_usd - split.input_bounds_usd[1 - end], split.output_tokens)


def _by_request_seconds(split: CostSplit, side: int) -> _Share | None:
    """C in proportion to the seconds of requests in prefill (side 0) and in decode (side 1)."""
    if split.request_seconds is None or not split.request_seconds[side]:
        return None
    share = split.request_seconds[side] / sum(split.request_seconds)
    return _per_million(split.run_cost_usd * share, (split.input_tokens, split.output_tokens)[side])


def _plain(value: float | None) -> _Share | None:
    return None if value is None else (value, 1.0)


_Share = tuple[float, float]  # numerator, denominator
_NO_INPUT, _NO_OUTPUT = "no prompt tokens were computed", "no output tokens were produced"
_NO_TOKENS, _NO_DONE = "no tokens were processed", "no request ended well"
_NO_BOUNDS = "one side has no price, so there is nothing to split"
_NO_DECODE = "no decode step ran: every output token is a first token, made in prefill; prompts carry the bill"
_AT_BORDER = "the split left no second of the bill to {}s: the {} price carries it"
_NO_SECONDS = "the seconds of requests in this phase are unknown or 0"

# name -> (numerator and denominator of one pass, reason when there is none)
_FIGURES: dict[str, tuple[Callable[[CostSplit], _Share | None], str]] = {
    "run_cost_usd": (lambda s: _plain(s.run_cost_usd), ""),
    "usd_per_1m_input_tokens": (lambda s: _per_million(s.usd_input, s.input_tokens), _NO_INPUT),
    "usd_per_1m_output_tokens": (lambda s: _per_million(s.usd_output, s.output_tokens), _NO_OUTPUT),
    "usd_per_1m_input_tokens_with_cached": (
        lambda s: _per_million(s.usd_input, s.input_tokens + s.cached_tokens) if s.input_tokens else None,
        _NO_INPUT,
    ),
    "usd_per_1m_total_tokens": (lambda s: _per_million(s.run_cost_usd, _tokens(s)), _NO_TOKENS),
    "usd_per_1m_output_tokens_all_in": (lambda s: _per_million(s.run_cost_usd, s.output_tokens), _NO_OUTPUT),
    "usd_per_1m_input_tokens_all_in": (lambda s: _per_million(s.run_cost_usd, s.input_tokens), _NO_INPUT),
    "usd_per_1m_input_tokens_request_seconds": (lambda s: _by_request_seconds(s, 0), _NO_SECONDS),
    "usd_per_1m_output_tokens_request_seconds": (lambda s: _by_request_seconds(s, 1), _NO_SECONDS),
    "usd_per_1m_characters": (lambda s: _per_million(s.run_cost_usd, s.characters), "character counts are unknown"),
    "usd_per_request": (lambda s: (s.run_cost_usd, s.requests_done), _NO_DONE),
    "busy_ratio": (lambda s: (s.busy_s, s.billed_s), "empty window"),
    "usd_per_1m_input_tokens_busy": (lambda s: _per_million(_busy(s, s.usd_input), s.input_tokens), _NO_INPUT),
    "usd_per_1m_output_tokens_busy": (lambda s: _per_million(_busy(s, s.usd_output), s.output_tokens), _NO_OUTPUT),
    "usd_per_1m_total_tokens_busy": (lambda s: _per_million(s.busy_cost_usd, _tokens(s)), _NO_TOKENS),
    "usd_per_1m_output_tokens_all_in_busy": (lambda s: _per_million(s.busy_cost_usd, s.output_tokens), _NO_OUTPUT),
    "usd_per_1m_input_tokens_low": (lambda s: _bound(s, "input", 0), _NO_BOUNDS),
    "usd_per_1m_input_tokens_high": (lambda s: _bound(s, "input", 1), _NO_BOUNDS),
    "usd_per_1m_output_tokens_low": (lambda s: _bound(s, "output", 0), _NO_BOUNDS),
    "usd_per_1m_output_tokens_high": (lambda s: _bound(s, "output", 1), _NO_BOUNDS),
    "wasted_cost_usd": (lambda s: _plain(s.wasted_usd), _NO_TOKENS),
    "cost_input_tokens": (lambda s: _plain(s.input_tokens), ""),
    "cost_output_tokens": (lambda s: _plain(s.output_tokens), ""),
    "cost_cached_tokens": (lambda s: _plain(s.cached_tokens), ""),
    "cost_recomputed_tokens": (lambda s: _plain(s.recomputed_tokens), ""),
}


def _over(name: str, splits: Sequence[CostSplit], labels: dict[str, str]) -> MetricValue:
    """Sum over sum of the rounds; the interval is that of the rounds' own figures."""
    figure, reason = _FIGURES[name]
    parts = [part for part in map(figure, splits) if part is not None]
    whole = sum(part[1] for part in parts)
    if not parts or whole <= 0:
        return missing(name, reason, **labels)
    if name.startswith("usd_per_") and not name.endswith("_low") and not any(part[0] for part in parts):
        return missing(name, _why_nothing(name, splits), **labels)
    per_round = [up / down for up, down in parts if down > 0]
    value = over_rounds(name, per_round, labels, reason)
    return replace(value, value=sum(part[0] for part in parts) / whole)


def _why_nothing(name: str, splits: Sequence[CostSplit]) -> str:
    """Why nothing of C belongs to a side that has tokens: a price of 0 would say that they are free."""
    if not any(split.run_cost_usd for split in splits):
        return "empty window"
    if "_output_" in name and not any(split.busy.has_decode for split in splits):
        return _NO_DECODE
    return _AT_BORDER.format(*(("output", "input") if "_output_" in name else ("prompt", "output")))


def _with_doubts(value: MetricValue, splits: Sequence[CostSplit]) -> MetricValue:
    """A dollar figure without its power is not valid; a split at a border is only doubted."""
    doubts = tuple(dict.fromkeys(reason for split in splits for reason in split.reasons))
    if not doubts or "usd" not in value.name:
        return value
    whole = not any("without power" in reason for reason in doubts)
    return replace(value, reasons=(*value.reasons, *doubts), valid=value.valid and whole)


def _split_method(splits: Sequence[CostSplit], labels: dict[str, str]) -> MetricValue:
    """How much had to be split, and by what."""
    steps = sum(len(split.busy.prefill_S) for split in splits)
    mixed = sum(split.busy.mixed_steps for split in splits)
    methods = "+".join(sorted({split.busy.method for split in splits}))
    name = "mixed_steps_ratio"
    if not steps:
        return missing(name, "no steps", **labels)
    return MetricValue(name=name, value=mixed / steps, exact=True, labels={**labels, "split_method": methods})


def _break_even(splits: Sequence[CostSplit], pricing: Pricing, labels: dict[str, str]) -> MetricValue:
    """Busy cost over what an API would ask for the same tokens: rent pays above this share of busy time."""
    name = "break_even_utilisation_ratio"
    num_cached = sum(split.cached_tokens for split in splits)
    reason = _no_api_price(pricing, num_cached)
    if reason is None and labels["traffic"] == "open":
        reason = OPEN_LOOP
    if reason is not None:
        return missing(name, reason, **labels)
    asked = [_asked_usd(split, pricing) for split in splits]
    ratios = [
        split.busy_cost_usd / usd if usd > 0 and split.busy_cost_usd is not None else None
        for split, usd in zip(splits, asked, strict=True)
    ]
    return over_rounds(name, ratios, labels, _NO_TOKENS)


def _no_api_price(pricing: Pricing, num_cached: float) -> str | None:
    """Why the API's bill is not known, or None."""
    asked = {"input": pricing.api_usd_per_1m_input_tokens, "output": pricing.api_usd_per_1m_output_tokens}
    known = {side: usd for side, usd in asked.items() if usd is not None}
    if not known:
        return "no API price was given"
    if len(known) < len(asked):
        return f"the API's price was given for {next(iter(known))} tokens only"
    cached = pricing.api_usd_per_1m_cached_input_tokens
    if min(*known.values(), cached or math.inf) <= 0:
        return "the API's price is not above 0"
    if num_cached and cached is None:
        return "prompt tokens came from the cache, and no API price of these was given (--api IN/OUT/CACHED)"
    return None


def _asked_usd(split: CostSplit, pricing: Pricing) -> float:
    """The API's bill for the tokens of a pass: prompts computed, prompts from the cache, outputs."""
    kinds = (
        (split.input_tokens, pricing.api_usd_per_1m_input_tokens),
        (split.cached_tokens, pricing.api_usd_per_1m_cached_input_tokens),
        (split.output_tokens, pricing.api_usd_per_1m_output_tokens),
    )
    return sum(count * (price or 0.0) for count, price in kinds) / MILLION


def _cold_rent(
    rounds: Sequence[PassTables],
    pricing: Pricing,
    facts: ModelFacts,
    device_memory_bytes: int | None,
    labels: dict[str, str],
) -> MetricValue:
    """Share of the device's memory that experts without a single token occupied, at the device's price."""
    name = "cold_expert_usd_per_hour"
    if not facts.is_moe:
        return missing(name, DENSE, **labels)
    counts = expert_counts(facts, rounds)
    if counts is None:
        return missing(name, NO_ROUTING, **labels)
    if not device_memory_bytes:
        return missing(name, "the device's memory is unknown", **labels)
    share = cold_expert_bytes(facts, counts) / (device_memory_bytes * pricing.num_devices)
    return MetricValue(name=name, value=share * pricing.usd_per_second * 3600, exact=True, labels=labels)
