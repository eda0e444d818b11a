"""The verdict on a workload's claim: agrees, disagrees, or cannot tell, here and on this machine.

A claim holds in a range (at least, at most, or both). It agrees when the whole 95 % interval of what was measured lies
in the range, disagrees when it lies wholly outside, and otherwise cannot be told. An error is never a verdict.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from moeprof.analysis.compare.claim_measures import MEASURED, Measure
from moeprof.analysis.compare.claim_sides import Sides
from moeprof.analysis.compare.estimate import Estimate
from moeprof.analysis.summary import ModelSummary, Summary
from moeprof.core import units
from moeprof.core.errors import RecordError, WorkloadError
from moeprof.core.sparsity import Claim

Verdict = Literal["agrees", "disagrees", "cannot tell"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimVerdict:
    """What became of a claim.

    Attributes:
        text, source: the claim, and who says so.
        measure: one of core.sparsity.MEASURES.
        expected: the range in which it holds, for people.
        measured: the figure.
        verdict: agrees | disagrees | cannot tell.
        where: the machine.
        sentence: all of it in one line.
    """

    text: str
    source: str
    measure: str
    expected: str
    measured: Estimate
    verdict: Verdict
    where: str
    sentence: str


def claim_of(summary: Summary) -> Claim | None:
    """The claim of the run's workload, or None.

    Raises:
        RecordError: the record's claim is damaged.
    """
    stored: Any = summary.record.workload.get("claim")
    if stored is None:
        return None
    try:
        return Claim(**stored)
    except (TypeError, WorkloadError) as error:
        raise RecordError(f"{summary.record.path / 'experiment.json'}: damaged claim ({error})") from error


def claim_verdict(summary: Summary) -> ClaimVerdict | None:
    """The verdict on the claim of the run's workload; None without a claim."""
    claim = claim_of(summary)
    return None if claim is None else judge(claim, summary)


def claim_notes(summary: Summary) -> tuple[str, ...]:
    """The verdict as a note for a report; nothing without a claim."""
    verdict = claim_verdict(summary)
    return () if verdict is None else (verdict.sentence,)


def judge(claim: Claim, summary: Summary) -> ClaimVerdict:
    """Measure what the claim is about, and say whether it holds."""
    measure = MEASURED[claim.measure]
    measured = _measured(claim, measure, summary)
    verdict = _verdict(claim, measured)
    expected = _expected(claim, measure.unit)
    where = _where(summary)
    return ClaimVerdict(
        text=claim.text,
        source=claim.source,
        measure=claim.measure,
        expected=expected,
        measured=measured,
        verdict=verdict,
        where=where,
        sentence=_sentence(claim, measure, measured, expected, verdict, where, summary),
    )


def _measured(claim: Claim, measure: Measure, summary: Summary) -> Estimate:
    of, against = _models(claim, summary)
    if of is None:
        return Estimate(value=None, reason=f"{claim.of or 'an MoE'} was not measured")
    if measure.is_pair and against is None:
        return Estimate(value=None, reason=f"{claim.against or 'a dense model'} was not measured")
    return measure.measure(Sides(summary=summary, of=of, against=against))


def _models(claim: Claim, summary: Summary) -> tuple[ModelSummary | None, ModelSummary | None]:
    """The models by name; without names the first MoE and the first dense model."""
    measured = [model for model in summary.models if model.facts is not None]

    def find(name: str | None, *, is_moe: bool) -> ModelSummary | None:
        if name is not None:
            return next((model for model in measured if model.name == name), None)
        return next((m for m in measured if m.facts is not None and m.facts.is_moe == is_moe), None)

    return find(claim.of, is_moe=True), find(claim.against, is_moe=False)


def _verdict(claim: Claim, measured: Estimate) -> Verdict:
    if measured.value is None or measured.low is None or measured.high is None:
        return "cannot tell"
    least = -math.inf if claim.at_least is None else claim.at_least
    most = math.inf if claim.at_most is None else claim.at_most
    if least <= measured.low and measured.high <= most:
        return "agrees"
    return "disagrees" if measured.high < least or measured.low > most else "cannot tell"


def _expected(claim: Claim, unit: str) -> str:
    parts = [("at least", claim.at_least), ("at most", claim.at_most)]
    return " and ".join(f"{words} {units.display(value, unit)}" for words, value in parts if value is not None)


def _where(summary: Summary) -> str:
    environment = summary.record.environment
    threads = environment.get("threads")
    name = str(environment.get("device_name") or "an unknown machine")
    return f"{name}, {threads} thread{'s' if threads != 1 else ''}" if threads else name


def _sentence(
    claim: Claim,
    measure: Measure,
    measured: Estimate,
    expected: str,
    verdict: Verdict,
    where: str,
    summary: Summary,
) -> str:
    of, against = _models(claim, summary)
    names = [_named(model) for model in (of, against if measure.is_pair else None) if model is not None]
    source = f" ({claim.source})" if claim.source else ""
    figure = _figure(measured, measure.unit)
    why = measured.reason or "the interval reaches across that"
    answer = f"cannot tell: {why}" if verdict == "cannot tell" else verdict
    return (
        f'Claim: "{claim.text}"{source}. Measured: {measure.text}, {" against ".join(names) or "no model"}: {figure}; '
        f"the claim needs {expected}. Verdict: {answer} (on {where})."
    )


def _named(model: ModelSummary) -> str:
    """With its size: the claim may be about a larger model of the same shape."""
    assert model.facts is not None, "measured models have facts"
    return f"{model.name} ({units.count(model.facts.total_params)} parameters)"


def _figure(measured: Estimate, unit: str) -> str:
    if measured.value is None:
        return units.NOT_AVAILABLE
    text = units.display(measured.value, unit)
    if measured.low is None or measured.high is None or measured.low == measured.high:
        return text
    return f"{text} [{units.display(measured.low, unit)}, {units.display(measured.high, unit)}]"
