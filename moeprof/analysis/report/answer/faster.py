"""Faster? Time to the first token and time for each further one, at the traffic as it was sent."""

from __future__ import annotations

from moeprof.analysis.metrics.cards import card_for
from moeprof.analysis.metrics.load.overload import fell_behind, overload_of
from moeprof.analysis.report.answer.sides import Sides
from moeprof.analysis.report.answer.words import SETTLED, as_much, pair, why
from moeprof.analysis.report.document import Finding, Outcome
from moeprof.analysis.report.sections.lockstep import ratio_text
from moeprof.analysis.stats.estimate import Ratio
from moeprof.core import units
from moeprof.core.metric import MetricValue

QUESTION = "faster?"
FIRST, NEXT = "ttft_p50_s", "itl_p50_s"
WHAT = {FIRST: "to the first token", NEXT: "for each further token"}
Told = tuple[MetricValue | None, MetricValue | None, Ratio | None]


def find(sides: Sides) -> Finding | None:
    """Both figures must lean one way for a yes or a no; a queue that grew leaves nothing to tell."""
    grew = _overloaded(sides)
    if grew is not None:
        return Finding(question=QUESTION, outcome="cannot tell", text=grew, figures=(FIRST, NEXT), aside=f"{grew}.")
    found = {name: told for name in WHAT if _measured(told := sides.figure(name), sides.rival is None)}
    if not found:
        return None
    if sides.rival is None:
        return _alone(found)
    settled = {name: told[2] for name, told in found.items() if told[2] is not None and told[2].verdict in SETTLED}
    outcome = _outcome([ratio.verdict for ratio in settled.values()])
    return Finding(
        question=QUESTION,
        outcome=outcome,
        text="; ".join(_evidence(name, told) for name, told in found.items()),
        figures=tuple(found),
        clause=_clause(sides, settled),
        aside="" if settled else "No difference in speed is shown.",
        lean={"yes": 1, "no": -1}.get(outcome, 0),  # type: ignore[arg-type]
    )


def _measured(told: Told, alone: bool) -> bool:
    own, other, _ = told
    return own is not None and own.value is not None and (alone or (other is not None and other.value is not None))


def _overloaded(sides: Sides) -> str | None:
    for model in (sides.model, sides.rival):
        if model is None:
            continue
        found = overload_of(model.rounds)
        if found is not None and found.told:
            rate = units.significant(found.requested_per_s), units.significant(found.capacity_per_s)
            return (
                f"Its speed at this traffic cannot be said: {rate[0]} requests/s were more than {model.name} serves "
                f"({rate[1]}/s), so its queue grew"
            )
        if (behind := fell_behind(model.rounds)) is not None:
            return f"Its speed at this traffic cannot be said: {model.name} fell behind ({behind})"
    return None


def _outcome(verdicts: list[str]) -> Outcome:
    if not verdicts:
        return "cannot tell"
    if len(set(verdicts)) > 1:
        return "depends"
    return "yes" if verdicts[0] == "better" else "no"


def _clause(sides: Sides, settled: dict[str, Ratio]) -> str:
    assert sides.rival is not None
    parts: list[str] = []
    for name, ratio in settled.items():
        assert ratio.value is not None, "a settled ratio has a value"
        rival = sides.called(sides.rival) if not parts else ""
        text = as_much(ratio.value, rival, much="long", less="less time").removesuffix(" as ").removesuffix(" than ")
        parts.append(f"{text.replace('% more', '% longer')} {WHAT[name]}")
    return f"takes {' and '.join(parts)}" if parts else ""


def _evidence(name: str, told: Told) -> str:
    own, other, ratio = told
    values = f"{WHAT[name]}, median: {pair(own, other, card_for(name))}"
    if ratio is None or ratio.value is None:
        return f"{values} ({why(ratio)})"
    shown = "" if ratio.verdict in SETTLED else f", {ratio.verdict}"
    return f"{values}, {ratio_text(ratio)}{shown}"


def _alone(found: dict[str, Told]) -> Finding:
    shown = {name: units.seconds(float(own.value)) for name, (own, _, _) in found.items() if own and own.value}
    text = " and ".join(f"{value} {WHAT[name]}" for name, value in shown.items())
    return Finding(
        question=QUESTION, outcome="cannot tell", text=f"{text} (medians); there is no other model in this run",
        figures=tuple(found), clause=f"takes {text} (medians)",
    )  # fmt: skip
