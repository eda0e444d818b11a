"""Cards of METRICS section 7: cost."""

from __future__ import annotations

from moeprof.core.metric import Better, Card

METRICS_7 = "moeprof METRICS section 7"
PER_MILLION = "USD / 1M tokens"
SHAPLEY = "moeprof METRICS section 7; Shapley, A value for n-person games (1953)"


def _card(
    name: str,
    title: str,
    unit: str,
    formula: str,
    *,
    better: Better = "lower",
    source: str = METRICS_7,
    headline: bool = False,
) -> Card:
    return Card(
        name=name,
        title=title,
        unit=unit,
        better=better,
        formula=formula,
        source=source,
        section="cost",
        headline=headline,
    )


_BUSY = "with busy seconds billed instead of the window"

CARDS: tuple[Card, ...] = (
    _card(
        "run_cost_usd",
        "cost of the pass",
        "USD",
        "C = billed s * devices * usd_per_device_hour / 3600 (+ energy * PUE * usd_per_kwh where power is apart)",
    ),
    _card(
        "usd_per_1m_input_tokens",
        "$ / 1M input tokens",
        PER_MILLION,
        "C * prefill s / busy s / prompt tokens computed; mixed steps by Shapley value; adds up with output to C",
        source=SHAPLEY,
        headline=True,
    ),
    _card(
        "usd_per_1m_output_tokens",
        "$ / 1M output tokens",
        PER_MILLION,
        "C * decode s / busy s / output tokens; mixed steps by Shapley value; adds up with input to C",
        source=SHAPLEY,
        headline=True,
    ),
    _card("usd_per_1m_total_tokens", "$ / 1M tokens, all", PER_MILLION, "C / (input + output tokens)"),
    _card(
        "usd_per_1m_output_tokens_all_in",
        "$ / 1M output tokens, all in",
        PER_MILLION,
        "C / output tokens; prompts are free in this figure, so never add it to an input price",
        source="the convention of InferenceX and inference-perf",
    ),
    _card("usd_per_1m_characters", "$ / 1M characters", "USD / 1M characters", "C / characters of prompts and outputs"),
    _card("usd_per_request", "$ / request", "USD", "C / requests that ended well"),
    _card(
        "busy_ratio",
        "busy share of the window",
        "ratio",
        "seconds of steps / window; below about 0.95 dollars compare utilisation, not models",
        better="neither",
    ),
    _card("usd_per_1m_input_tokens_busy", "$ / 1M input tokens, busy", PER_MILLION, f"usd_per_1m_input_tokens {_BUSY}"),
    _card(
        "usd_per_1m_output_tokens_busy", "$ / 1M output tokens, busy", PER_MILLION, f"usd_per_1m_output_tokens {_BUSY}"
    ),
    _card("usd_per_1m_total_tokens_busy", "$ / 1M tokens, busy", PER_MILLION, f"usd_per_1m_total_tokens {_BUSY}"),
    _card(
        "usd_per_1m_output_tokens_all_in_busy",
        "$ / 1M output tokens, all in, busy",
        PER_MILLION,
        f"usd_per_1m_output_tokens_all_in {_BUSY}",
    ),
    *(
        _card(
            f"usd_per_1m_{side}_tokens_{end}",
            f"$ / 1M {side} tokens, {end} bound",
            PER_MILLION,
            f"usd_per_1m_{side}_tokens with mixed steps at the {cost} cost of their {side} side",
        )
        for side in ("input", "output")
        for end, cost in (
            ("low", "smaller of marginal and stand-alone"),
            ("high", "larger of marginal and stand-alone"),
        )
    ),
    _card(
        "mixed_steps_ratio",
        "steps with prefill and decode",
        "ratio",
        "mixed steps / steps; the label split_method says where stand-alone costs came from",
        better="neither",
    ),
    _card(
        "wasted_cost_usd",
        "cost of lost work",
        "USD",
        "tokens of requests that did not end well, and recomputed tokens, at the pass's own prices",
    ),
    _card(
        "cost_input_tokens", "prompt tokens billed", "tokens", "prompt tokens computed in the window", better="neither"
    ),
    _card(
        "cost_output_tokens", "output tokens billed", "tokens", "output tokens produced in the window", better="neither"
    ),
    _card(
        "cost_cached_tokens",
        "prompt tokens from the cache",
        "tokens",
        "prompt tokens that a prefix cache had; not among the billed ones",
        better="neither",
    ),
    _card("cost_recomputed_tokens", "tokens computed again", "tokens", "tokens computed again after a preemption"),
    _card(
        "usd_per_1m_tokens_at_slo",
        "$ / 1M tokens at SLO",
        PER_MILLION,
        "usd_per_1m_total_tokens at the highest rate at which 95 % of requests meet the SLO in every round",
    ),
    _card(
        "break_even_utilisation_ratio",
        "break-even utilisation",
        "ratio",
        "busy cost / what the API asks for the same tokens; above 1 renting never pays",
    ),
    _card(
        "cold_expert_usd_per_hour",
        "rent of cold experts",
        "USD / h",
        "cold_expert_bytes / device memory * price: the most that offloading them could save",
    ),
)
