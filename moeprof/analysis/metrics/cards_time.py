"""Cards of METRICS section 1: time."""

from __future__ import annotations

from moeprof.core.metric import Better, Card

_RULE = "moeprof METRICS 1"
_VLLM = "as in vLLM's and inference-perf's benchmarks, counted from the scheduled arrival (no coordinated omission)"


def _time(
    name: str,
    title: str,
    formula: str,
    source: str = _VLLM,
    *,
    unit: str = "s",
    better: Better = "lower",
    section: str = "latency",
    headline: bool = False,
) -> Card:
    return Card(
        name=name,
        title=title,
        unit=unit,
        better=better,
        formula=formula,
        source=source,
        section=section,
        headline=headline,
    )


_LATENCY = (
    _time("queue_*_s", "Queueing", "first time in a batch - arrival"),
    _time("ttft_*_s", "Time to first token", "first output token - arrival", headline=True),
    _time(
        "itl_*_s",
        "Inter-token latency",
        "gaps between consecutive output tokens of a request, pooled; a first token closes no gap; "
        "n = distinct steps, since gaps that end in one step are one sample",
        headline=True,
    ),
    _time("tpot_*_s", "Time per output token", "(last token - first token) / (tokens - 1), one per request, n >= 2"),
    _time("e2e_*_s", "End to end", "last token - arrival"),
    _time("queue_from_sent_*_s", "Queueing, from sent", "first time in a batch - sent", _RULE),
    _time("ttft_from_sent_*_s", "Time to first token, from sent", "first output token - sent", _RULE),
    _time("e2e_from_sent_*_s", "End to end, from sent", "last token - sent", _RULE),
    _time("step_*_s", "Step time", "wall time of one engine step, until its tokens are known on the host", _RULE),
    _time("step_device_*_s", "Step time on the device", "by device events around the step", _RULE),
    _time(
        "schedule_lag_*_s",
        "Replayer's own lag",
        "sent - max(arrival, end of the step running at arrival); flagged when p99 > 0.5 s or median > 10 ms",
        _RULE,
        section="validity",
    ),
    *(
        _time(
            f"slo_{quantity}_met_ratio",
            f"Requests within the {quantity} objective",
            f"requests whose {quantity} met the objective / all requests, failures included",
            _RULE,
            unit="ratio",
            better="higher",
        )
        for quantity in ("ttft", "tpot", "e2e")
    ),
)

_OVER_WINDOW = "completed in the window / length of the window, idle time included"


def _rate(name: str, title: str, formula: str, *, headline: bool = False, better: Better = "higher") -> Card:
    unit = "tokens/s" if "tokens" in name else "requests/s"
    return _time(name, title, formula, _RULE, unit=unit, better=better, section="throughput", headline=headline)


def _count(status: str, title: str, better: Better) -> Card:
    name = f"num_requests_{status}" if status else "num_requests"
    formula = f"requests of the schedule with status {status or 'any'}, summed over rounds"
    return _time(name, title, formula, _RULE, unit="requests", better=better, section="throughput")


_THROUGHPUT = (
    _rate("request_rate_requested_per_s", "Requested rate", "requests / time of the last arrival", better="neither"),
    _rate("request_rate_achieved_per_s", "Achieved rate", f"requests {_OVER_WINDOW}"),
    _rate("output_tokens_per_s", "Output tokens per second", f"output tokens {_OVER_WINDOW}", headline=True),
    _rate("input_tokens_per_s", "Input tokens per second", f"prompt tokens whose first token came {_OVER_WINDOW}"),
    _rate("total_tokens_per_s", "Tokens per second", f"prompt and output tokens {_OVER_WINDOW}"),
    _rate("goodput_requests_per_s", "Goodput", "requests that met every objective / length of the window"),
    _time(
        "goodput_ratio",
        "Good requests",
        "requests that met every objective / all requests; failures and refusals stay in the denominator",
        "DistServe (OSDI 2024), with failures counted",
        unit="ratio",
        better="higher",
        section="throughput",
    ),
    _count("", "Requests", "neither"),
    _count("done", "Requests done", "higher"),
    _count("refused", "Requests refused", "lower"),
    _count("failed", "Requests failed", "lower"),
    _count("unfinished", "Requests unfinished", "lower"),
    _time(
        "output_length_ratio",
        "Output got / asked",
        "sum of output tokens got / asked, of requests done",
        _RULE,
        unit="ratio",
        better="neither",
        section="throughput",
    ),
    _time(
        "forced_agreement_ratio",
        "Forced tokens the model would choose",
        "forced ids equal to the model's own choice / output tokens",
        _RULE,
        unit="ratio",
        better="neither",
        section="validity",
    ),
)

_PERMUTATION = "block permutation of residualised terms (Kennedy 1995; Winkler et al. 2014), METRICS 1"
_MODEL = "step_s = a_T + b_C*context + b_U*sum U_l + b_M*sum M_l, among steps with equal tokens T"
_VARIANCE = (
    _time(
        "step_cv_at_fixed_tokens",
        "Step time spread at a fixed batch",
        "CV of step time among decode steps with equal batch size, weighted by steps over sizes with 5 or more",
        _RULE,
        unit="ratio",
    ),
    _time("itl_p99_over_p50_ratio", "ITL tail over middle", "p99 / p50 of itl_s", _RULE, unit="ratio"),
    _time("ttft_p99_over_p50_ratio", "TTFT tail over middle", "p99 / p50 of ttft_s", _RULE, unit="ratio"),
    _time(
        "itl_tail_prefill_ratio",
        "ITL tail behind a prefill",
        "gaps above p99 whose step carried prefill tokens / gaps above p99; beside it the share among all gaps",
        _RULE,
        unit="ratio",
        better="neither",
    ),
    _time(
        "slow_steps_over_others_ratio",
        "Slowest 1 % of steps, against the others",
        "mean of the figure (label) among the slowest 1 % of steps / its mean among the others, all rounds",
        _RULE,
        unit="ratio",
        better="neither",
    ),
    *(
        _time(
            f"{prefix}variance_explained_by_routing_{suffix}",
            f"{title}{words}",
            f"{formula}; {_MODEL}",
            _PERMUTATION,
            unit="ratio",
            better="neither",
        )
        for prefix, title in (
            ("", "Latency variance by routing"),
            ("placebo_", "Placebo: MoE routing on the dense model"),
        )
        for suffix, words, formula in (
            ("ratio", "", "gain in R2 by the routing terms - mean gain of shuffled ones"),
            ("p", ", p", "share of shuffles that gain at least as much"),
        )
    ),
    _time(
        "variance_explained_by_routing_min_detectable_ratio",
        "Smallest share this run could show",
        "95 % quantile of shuffled gains + 0.84 standard deviations - their mean",
        _PERMUTATION,
        unit="ratio",
    ),
    _time("step_fit_r2_ratio", "Fit of step time", f"R2 of {_MODEL}", _RULE, unit="ratio", better="neither"),
    _time("step_time_per_distinct_expert_s", "Step time per distinct expert", f"b_U of {_MODEL}", _RULE),
    _time("step_time_per_max_load_token_s", "Step time per token of largest load", f"b_M of {_MODEL}", _RULE),
    _time("step_time_per_context_token_s", "Step time per context token", f"b_C of {_MODEL}", _RULE),
)

CARDS: tuple[Card, ...] = (*_LATENCY, *_THROUGHPUT, *_VARIANCE)
