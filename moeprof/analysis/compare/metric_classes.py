"""What a metric needs of two runs before they may be set against each other (METRICS section 9).

``exact``    counted facts of a model: only the model must be the same.
``routing``  where tokens went and what that implies (experts touched, bytes moved): a fact of model, tokens and kernel.
``quality``  bits per byte of text: a fact of model and text, whatever the tokenizer.
``timed``    seconds, dollars, joules and resident memory: every fact of machine, engine and schedule must be equal.
``tokens``   said beside one of the others: the figure counts tokens, so it means nothing across tokenizers.
"""

from __future__ import annotations

import re
from typing import Literal

from moeprof.analysis.cards import card_for
from moeprof.analysis.validity import FROM_ROUTING

MetricClass = Literal["exact", "routing", "quality", "timed", "tokens"]
# Figures of FROM_ROUTING that hold seconds as well.
_HOLD_TIME = {"mbu_ratio", "mfu_ratio", "time_over_roofline_ratio", "cold_expert_usd_per_hour"}
_EXACT_MEMORY = {"weights_bytes", "kv_cache_bytes"}
# Among timed figures, those that speak of requests, text or the machine and not of tokens.
_NOT_OF_TOKENS = re.compile(
    r"(queue|ttft|e2e|schedule_lag|slo_(ttft|e2e))_.*|request_rate_.*|goodput_.*|num_requests.*|run_cost_usd"
    r"|usd_per_(1m_characters|request)|busy_ratio|energy_j|power_mean_w|idle_power_w|peak_(bandwidth|flops)_.*"
    r"|(host_rss_peak|load_peak|activation_peak|reserved|peak_memory)_bytes|fragmentation_ratio|wasted_cost_usd"
    r"|reference_kernel_s"
)


def classes_of(name: str) -> frozenset[MetricClass]:
    """The classes of a metric, by its full name.

    Raises:
        KeyError: no card has this name.
    """
    section = card_for(name).section
    if section == "parameters" or name in _EXACT_MEMORY:
        return frozenset({"exact"})
    if section == "quality":
        return frozenset({"quality"})
    if section == "routing" or name in FROM_ROUTING - _HOLD_TIME:
        return frozenset({"routing"})
    return frozenset({"timed"}) if _NOT_OF_TOKENS.fullmatch(name) else frozenset({"timed", "tokens"})
