"""The sentence at the top, the line under it, and what must be said before anything is read."""

from __future__ import annotations

from moeprof.analysis.metrics.lookup import number
from moeprof.analysis.metrics.summary import ModelSummary, Summary
from moeprof.analysis.metrics.tables import is_done
from moeprof.analysis.stats import intervals
from moeprof.core import units


def headline(summary: Summary) -> str:
    """One sentence with the answer: the first MoE against the first dense model, or the first model's dollars."""
    done = _priced_models(summary)
    if not done:
        return "No model produced tokens, so there is no price."
    moe = next((m for m in done if m.facts is not None and m.facts.is_moe), None)
    dense = next((m for m in done if m.facts is not None and not m.facts.is_moe), None)
    if moe is None or dense is None or why_incomparable(moe, dense) is not None:
        return _price(done[0])
    ratio, interval = cost_ratio(moe, dense)
    between = f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval is not None else " (one pass, so no interval)"
    prices = [number(m, "usd_per_1m_total_tokens") for m in (moe, dense)]
    each = " against ".join(units.usd(price) for price in prices if price is not None)
    tail = f": {each} per 1M tokens, input and output together."
    if interval is not None and interval[0] <= 1 <= interval[1]:
        return (
            f"On the same requests no difference in cost is shown between {moe.name} and {dense.name}: "
            f"{ratio:.2f}x{between}{tail}"
        )
    return f"On the same requests {moe.name} costs {ratio:.2f}x{between} what {dense.name} costs{tail}"


def why_incomparable(first: ModelSummary, second: ModelSummary) -> str | None:
    """Why dollars of two models must not be set against each other, or None (METRICS section 7, busy and billed)."""
    if "failed" in (first.record.status, second.record.status):
        return "one of them failed"
    traffics = {tables.traffic for model in (first, second) for tables in model.priced}
    if len(traffics) != 1:
        return "their dollars come from different traffic"
    if "open" in traffics:
        return "open-loop dollars compare utilisation, not models"
    tokens = [{int(tables.requests["output_tokens"].sum()) for tables in model.priced} for model in (first, second)]
    done = [{int(is_done(tables.requests).sum()) for tables in model.priced} for model in (first, second)]
    if tokens[0] != tokens[1] or done[0] != done[1] or len(done[0]) != 1:
        return "they did not do the same work"
    return None


def findings(summary: Summary) -> tuple[str, ...]:
    """Sentences that stand under the headline: each model's dollars and speed, and what each router does."""
    done = _priced_models(summary)
    found = [_price(model) for model in done] if len(done) > 1 else []
    return tuple([*found, *(text for model in done if (text := _router(model)))])


def _priced_models(summary: Summary) -> list[ModelSummary]:
    return [model for model in summary.models if number(model, "usd_per_1m_total_tokens") is not None]


def cost_ratio(first: ModelSummary, second: ModelSummary) -> tuple[float, intervals.Interval | None]:
    """Dollars for the same requests; 95 % t-interval on a log scale, over launches, or over rounds of one launch."""
    bills = [[[split.run_cost_usd for split in splits] for splits in model.launch_splits] for model in (first, second)]
    pairs = [list(zip(a, b, strict=False)) for a, b in zip(*bills, strict=False)]
    units_of_repetition = pairs if len(pairs) > 1 else [[pair] for pair in pairs[0]]
    ratios = [sum(a for a, _ in unit) / sum(b for _, b in unit) for unit in units_of_repetition if unit]
    flat = [pair for unit in pairs for pair in unit]
    return sum(a for a, _ in flat) / sum(b for _, b in flat), intervals.mean_interval(ratios)


def _price(model: ModelSummary) -> str:
    price_in, price_out = number(model, "usd_per_1m_input_tokens"), number(model, "usd_per_1m_output_tokens")
    speed = number(model, "output_tokens_per_s")
    parts = []
    if price_in is not None:
        parts.append(f"{units.usd(price_in)} per 1M input")
    if price_out is not None:
        parts.append(f"{units.usd(price_out)} per 1M output tokens")
    text = f"{model.name}: {' and '.join(parts)}"
    text = f"{text} at {units.rate(speed, 'output tokens')}" if speed is not None else text
    return f"{text} (before it failed)." if model.record.status == "failed" else f"{text}."


def _router(model: ModelSummary) -> str:
    touched = number(model, "distinct_experts_per_step", phase="decode")
    worst = number(model, "router_load_max_over_mean", phase="decode")
    if touched is None or worst is None or model.facts is None:
        return ""
    experts = model.facts.moe_layers[0].num_experts
    text = (
        f"At its own traffic a decode step of {model.name} touches {units.significant(touched)} of {experts} experts; "
        f"its busiest expert carries {units.significant(worst)} times the mean (means over layers)."
    )
    read = number(model, "touched_params_per_step", own_traffic=False, phase="decode")
    if not model.capacity or read is None:
        return text
    times = units.significant(read / model.facts.active_params)
    return f"{text} In the priced passes it reads {times} times its active parameters per decode step."


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
    measured = [model for model in summary.models if model.rounds]
    if measured and all(model.capacity for model in measured):
        parts.append("* from the capacity pass: the same requests, offline")
    return "; ".join(parts)


PATTERNS = {"open": "open loop", "closed": "closed loop", "offline": "offline"}


def banners(summary: Summary) -> tuple[str, ...]:
    """Things that change how everything must be read."""
    found = []
    if summary.record.status in ("interrupted", "started"):
        found.append(
            f"This run is {'still going' if summary.record.status == 'started' else 'incomplete: it was interrupted'}."
        )
    about: dict[str, list[str]] = {}
    for model in summary.models:
        for text in _warnings(model):
            about.setdefault(text, []).append(model.name)
    return (*found, *(f"{', '.join(names)}: {text}." for text, names in about.items()))


def _warnings(model: ModelSummary) -> list[str]:
    """What must be known of a model before any of its figures."""
    found = []
    if model.facts is not None:
        if model.facts.routing_policy != "native":
            found.append(f"routing is not the model's own (policy {model.facts.routing_policy})")
        if model.facts.weights == "random" and model.facts.twin is not None:
            found.append("dense twins with random weights in their MLPs; their cost is measured, not a trained model")
        elif model.facts.weights == "random":
            found.append("random weights; the shape is measured, not a trained model")
        if (model.launch.get("self_check") or {}).get("passed") is False:
            found.append("the routing tap failed its self-check; its router figures are not valid")
    return found
