"""The sentence at the top, the line under it, and what must be said before anything is read."""

from __future__ import annotations

import math

from moeprof.analysis import stats
from moeprof.analysis.pick import number
from moeprof.analysis.summary import ModelSummary, Summary
from moeprof.core import units


def headline(summary: Summary) -> str:
    """One sentence with the answer: the first MoE against the first dense model, or the first model's dollars."""
    done = _priced_models(summary)
    if not done:
        return "No model produced tokens, so there is no price."
    moe = next((m for m in done if m.facts is not None and m.facts.is_moe), None)
    dense = next((m for m in done if m.facts is not None and not m.facts.is_moe), None)
    if moe is None or dense is None or moe.priced[0].traffic == "open":
        return _price(done[0])
    ratio, interval = _cost_ratio(moe, dense)
    between = f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval is not None else ""
    prices = [number(m, "usd_per_1m_output_tokens") for m in (moe, dense)]
    if None in prices:
        return f"On the same requests {moe.name} costs {ratio:.2f}x{between} what {dense.name} costs."
    each = " against ".join(units.usd(price) for price in prices if price is not None)
    return (
        f"On the same requests {moe.name} costs {ratio:.2f}x{between} what {dense.name} costs: "
        f"{each} per 1M output tokens."
    )


def findings(summary: Summary) -> tuple[str, ...]:
    """Sentences that stand under the headline: each model's dollars and speed, and what each router does."""
    done = _priced_models(summary)
    found = [_price(model) for model in done] if len(done) > 1 else []
    return tuple([*found, *(text for model in done if (text := _router(model)))])


def _priced_models(summary: Summary) -> list[ModelSummary]:
    return [model for model in summary.models if number(model, "usd_per_1m_total_tokens") is not None]


def _cost_ratio(moe: ModelSummary, dense: ModelSummary) -> tuple[float, tuple[float, float] | None]:
    """Dollars for the same requests, summed over passes; 95 % t-interval over rounds of the log ratio."""
    bills = [[split.run_cost_usd for split in model.splits] for model in (moe, dense)]
    pairs = list(zip(*bills, strict=False))
    interval = stats.t_interval([math.log(a / b) for a, b in pairs])
    total = sum(a for a, _ in pairs) / sum(b for _, b in pairs)
    return total, None if interval is None else (math.exp(interval[0]), math.exp(interval[1]))


def _price(model: ModelSummary) -> str:
    price_in, price_out = number(model, "usd_per_1m_input_tokens"), number(model, "usd_per_1m_output_tokens")
    speed = number(model, "output_tokens_per_s")
    parts = []
    if price_in is not None:
        parts.append(f"{units.usd(price_in)} per 1M input")
    if price_out is not None:
        parts.append(f"{units.usd(price_out)} per 1M output tokens")
    text = f"{model.name}: {' and '.join(parts)}"
    return f"{text} at {units.rate(speed, 'output tokens')}." if speed is not None else f"{text}."


def _router(model: ModelSummary) -> str:
    touched = number(model, "distinct_experts_per_step", phase="decode")
    worst = number(model, "router_load_max_over_mean", phase="decode")
    if touched is None or worst is None or model.facts is None:
        return ""
    experts = model.facts.moe_layers[0].num_experts
    return (
        f"A decode step of {model.name} touches {units.significant(touched)} of {experts} experts in a layer; "
        f"the busiest expert carries {units.significant(worst)} times the mean."
    )


def subtitle(summary: Summary) -> str:
    """Device, price with its source, and traffic."""
    environment, experiment = summary.record.environment, summary.record.experiment
    schedules = list((experiment.get("schedules") or {}).values())
    parts = [str(environment.get("device_name", "unknown device"))]
    hourly = summary.pricing.usd_per_second * 3600
    parts.append(f"{units.usd(hourly)} per hour ({summary.pricing.source})")
    if schedules:
        first = schedules[0]
        parts.append(f"{first['num_requests']} requests, {PATTERNS.get(first['pattern'], first['pattern'])}")
    if any(model.capacity for model in summary.models):
        parts.append("dollars and tok/s from the capacity pass")
    return "; ".join(parts)


PATTERNS = {"open": "open loop", "closed": "closed loop", "offline": "offline"}


def banners(summary: Summary) -> tuple[str, ...]:
    """Things that change how everything must be read."""
    found = []
    if summary.record.status in ("interrupted", "started"):
        found.append(
            f"This run is {'still going' if summary.record.status == 'started' else 'incomplete: it was interrupted'}."
        )
    for model in summary.models:
        if model.facts is None:
            continue
        if model.facts.routing_policy != "native":
            found.append(f"{model.name}: routing is not the model's own (policy {model.facts.routing_policy}).")
        if model.facts.weights == "random":
            found.append(f"{model.name}: random weights; the shape is measured, not a trained model.")
        if (model.launch.get("self_check") or {}).get("passed") is False:
            found.append(f"{model.name}: the routing tap failed its self-check; its router figures are not valid.")
    return tuple(found)
