"""The sentence at the top, the line under it, and what must be said before anything is read."""

from __future__ import annotations

from moeprof.analysis.compare.comparable import why_incomparable
from moeprof.analysis.compare.ratios import cost_ratio, priced_models
from moeprof.analysis.metrics.lookup import number
from moeprof.analysis.metrics.overload import fell_behind, overload_of
from moeprof.analysis.metrics.summary import ModelSummary, Summary
from moeprof.core import units


def headline(summary: Summary) -> str:
    """One sentence with the answer: the first MoE against the first dense model, or the first model's dollars."""
    done = priced_models(summary)
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


def with_overloads(sentence: str, summary: Summary) -> str:
    """The answer, and a sentence for each model that had more traffic than it could serve, or was left with much."""
    found = [sentence]
    for model in summary.models:
        told, behind = overload_of(model.rounds), fell_behind(model.rounds)
        if told is not None and told.told:
            found.append(f"{told.sentence(model.name)}.")
        elif behind is not None:
            found.append(f"{model.name} fell behind its traffic: {behind}.")
    return " ".join(found)


def findings(summary: Summary) -> tuple[str, ...]:
    """Sentences that stand under the headline: each model's dollars and speed, and what each router does."""
    done = priced_models(summary)
    found = [_price(model) for model in done] if len(done) > 1 else []
    return tuple([*found, *(text for model in done if (text := _router(model)))])


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
    schedules = list(summary.record.experiment.schedules.values())
    parts = [summary.record.environment.device_name or "unknown device"]
    hourly = summary.pricing.usd_per_second * 3600
    parts.append(f"{units.usd(hourly)} per hour ({summary.pricing.source})")
    if schedules:
        first = schedules[0]
        parts.append(f"{first.num_requests} requests, {PATTERNS.get(str(first.pattern), first.pattern)}")
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
        if model.launch.self_check.passed is False:
            found.append("the routing tap failed its self-check; its router figures are not valid")
    return found
