"""Cheaper? Dollars for the same requests, against the rival, or against both twins."""

from __future__ import annotations

from moeprof.analysis.compare.models import cost_ratio
from moeprof.analysis.metrics.lookup import pick
from moeprof.analysis.metrics.summary import ModelSummary
from moeprof.analysis.report.answer.sides import Sides
from moeprof.analysis.report.answer.words import SETTLED, as_much, why
from moeprof.analysis.report.document import Finding, Outcome
from moeprof.analysis.report.sections.lockstep import ratio_text
from moeprof.analysis.stats.estimate import Ratio
from moeprof.core import units

QUESTION, NAME = "cheaper?", "usd_per_1m_total_tokens"


def find(sides: Sides) -> Finding:
    """Of both twins the answer can be: dearer than the one, cheaper than the other."""
    if sides.rival is None:
        return _alone(sides.model)
    judged = [(rival, cost_ratio(sides.summary, sides.model, rival)) for rival in sides.priced_against]
    outcomes = {_outcome(ratio) for _, ratio in judged}
    outcome: Outcome = outcomes.pop() if len(outcomes) == 1 else "depends"
    if "cannot tell" in outcomes:
        outcome = "cannot tell"
    settled = [(rival, ratio) for rival, ratio in judged if ratio.verdict in SETTLED]
    offline = " (priced with all requests sent at once)" if sides.model.capacity else ""
    return Finding(
        question=QUESTION,
        outcome=outcome,
        text="; ".join(_evidence(sides.model, rival, ratio) for rival, ratio in judged),
        figures=(NAME,),
        clause=f"costs {_and([_much(sides, r, ratio) for r, ratio in settled])}{offline}" if settled else "",
        aside=" ".join(_unsettled(sides, rival, ratio) for rival, ratio in judged if ratio.verdict not in SETTLED),
        lean={"yes": 1, "no": -1}.get(outcome, 0),  # type: ignore[arg-type]
    )


def _outcome(ratio: Ratio) -> Outcome:
    return {"better": "yes", "worse": "no"}.get(ratio.verdict, "cannot tell")  # type: ignore[return-value]


def _much(sides: Sides, rival: ModelSummary, ratio: Ratio) -> str:
    assert ratio.value is not None, "a settled ratio has a value"
    return as_much(ratio.value, sides.called(rival))


def _and(parts: list[str]) -> str:
    return " and ".join(parts)


def _unsettled(sides: Sides, rival: ModelSummary, ratio: Ratio) -> str:
    told = "" if ratio.value is None else f", {ratio_text(ratio)}"
    if ratio.verdict == "no difference shown":
        return f"No difference in cost against {sides.called(rival)} is shown{told}."
    return f"Whether it costs more or less than {sides.called(rival)} cannot be said{told} ({why(ratio)})."


def _evidence(model: ModelSummary, rival: ModelSummary, ratio: Ratio) -> str:
    prices = [units.usd(float(v.value)) for m in (model, rival) if (v := pick(m, NAME)) is not None and v.value]
    if ratio.value is None:
        return f"{rival.name}: {why(ratio)}"
    each = f"{' against '.join(prices)} per 1M tokens, input and output together: " if len(prices) > 1 else ""
    return f"{each}{ratio_text(ratio)} of {rival.name}"


def _alone(model: ModelSummary) -> Finding:
    price, speed = pick(model, NAME), pick(model, "output_tokens_per_s")
    assert price is not None and price.value is not None, "a model in question has a price"
    cost = f"{units.usd(float(price.value))} per million tokens, input and output together"
    fast = f" at {units.rate(float(speed.value), 'output tokens')}" if speed is not None and speed.value else ""
    return Finding(
        question=QUESTION,
        outcome="cannot tell",
        text=f"{cost}; there is no other model in this run to hold it against",
        figures=(NAME, "output_tokens_per_s"),
        clause=f"costs {cost}{fast}",
    )
