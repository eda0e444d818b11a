"""The sentence at the top, the line under it, and what must be said before anything is read."""

from __future__ import annotations

from moeprof.analysis.compare.models import cost_ratio
from moeprof.analysis.compare.ratios import priced_models
from moeprof.analysis.metrics.load.overload import fell_behind, overload_of
from moeprof.analysis.metrics.lookup import number
from moeprof.analysis.metrics.routing.steps import COVERED, LEAST_SHARE, PURE
from moeprof.analysis.metrics.samples import too_few_requests
from moeprof.analysis.metrics.summary import ModelSummary, Summary
from moeprof.analysis.report.doubts import disturbed
from moeprof.analysis.report.saving import unsettled
from moeprof.analysis.report.sections.lockstep import ratio_text
from moeprof.analysis.stats.estimate import Ratio
from moeprof.core import units
from moeprof.core.model_facts import ModelFacts


def headline(summary: Summary) -> str:
    """One sentence with the answer: the first MoE against the first dense model, or the first model's dollars."""
    done = priced_models(summary)
    if not done:
        return "No model produced tokens, so there is no price."
    few = [f"{model.name}: {why}" for model in done if (why := too_few_requests(model.priced)) is not None]
    if few:
        return f"There is no price to speak of: {'; '.join(few)}."
    moe = next((m for m in done if m.facts is not None and m.facts.is_moe), None)
    dense = next((m for m in done if m.facts is not None and not m.facts.is_moe), None)
    if moe is None or dense is None:
        return _price(done[0])
    ratio = cost_ratio(summary, moe, dense)
    if ratio.verdict == "incomparable" or ratio.value is None:
        return _price(done[0])
    return f"On the same requests {_compared(moe.name, dense.name, ratio)}; {_each(moe, dense)}."


def _compared(moe: str, dense: str, ratio: Ratio) -> str:
    """The clause that says the verdict, with the ratio and for what it speaks."""
    launch = " (this launch)" if ratio.by else ""
    if ratio.verdict in ("better", "worse"):
        return f"{moe} costs {ratio_text(ratio)} what {dense} costs{launch}"
    return unsettled(moe, dense, ratio, launch)


def _each(*models: ModelSummary) -> str:
    prices = [number(m, "usd_per_1m_total_tokens") for m in models]
    each = " against ".join(units.usd(price) for price in prices if price is not None)
    return f"{each} per 1M tokens, input and output together"


def with_reservations(sentence: str, summary: Summary) -> str:
    """The answer, and what takes it back.

    What the machine did to its times, and a sentence for each model that had more traffic than it could serve, or
    was left with much.
    """
    taken_back = disturbed(summary)
    found = [sentence] if taken_back is None else [sentence, taken_back]
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
    done = [model for model in done if too_few_requests(model.priced) is None]
    found = [_price(model) for model in done] if len(done) > 1 else []
    return tuple([*found, *(text for model in done if (text := _router(model)))])


def _price(model: ModelSummary) -> str:
    price_in, price_out = number(model, "usd_per_1m_input_tokens"), number(model, "usd_per_1m_output_tokens")
    served = number(model, "usd_per_1m_input_tokens_with_cached")
    speed = number(model, "output_tokens_per_s")
    parts = []
    if price_in is not None:
        cached = served is not None and served < price_in
        text = f"{units.usd(price_in)} per 1M input{' tokens' * (cached or price_out is None)}"
        parts.append(f"{text} computed ({units.usd(served)} with those from the cache)" if cached and served else text)
    if price_out is not None:
        parts.append(f"{units.usd(price_out)} per 1M output tokens")
    text = f"{model.name}: {' and '.join(parts)}"
    text = f"{text} at {units.rate(speed, 'output tokens')}" if speed is not None else text
    if price_in is not None and price_out is None:
        text = f"{text}, and no price of an output token"
    return f"{text} (before it failed)." if model.record.status == "failed" else f"{text}."


def _router(model: ModelSummary) -> str:
    worst = number(model, "router_load_max_over_mean", phase="decode")
    if worst is None or model.facts is None:
        return ""
    busiest = f"busiest expert carries {units.significant(worst)} times the mean (means over layers)."
    text = _touched(model, model.facts, busiest)
    read = number(model, "touched_params_per_step", own_traffic=False, phase="decode")
    if not model.capacity or read is None:  # null where pure decode steps hold too few of the decode tokens
        return text
    times = units.significant(read / model.facts.active_params_no_embedding)
    return f"{text} In the priced passes it reads {times} times its active parameters per decode step."


def _touched(model: ModelSummary, facts: ModelFacts, busiest: str) -> str:
    """Experts that a decode step touches, no further than its steps speak; see metrics/routing/steps.py."""
    touched = number(model, "distinct_experts_per_step", phase="decode")
    pure, covered = (number(model, name, phase="decode") for name in (PURE, COVERED))
    if touched is None or pure is None or covered is None or covered < LEAST_SHARE:
        held = "" if pure is None else f", since steps of decode alone hold {units.percent(pure)} of its decode tokens"
        return f"In decode {model.name}'s {busiest} How many experts a decode step touches is not known{held}."
    of = f"{units.significant(touched)} of {facts.moe_layers[0].num_experts} experts"
    if covered > pure:
        return (
            f"At its own traffic the decode tokens of a step of {model.name}, mixed ones too, touch {of}; its {busiest}"
        )
    share = "" if pure == 1 else f" (steps without prefill, which hold {units.percent(pure)} of its decode tokens)"
    return f"At its own traffic a decode step of {model.name}{share} touches {of}; its {busiest}"


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
