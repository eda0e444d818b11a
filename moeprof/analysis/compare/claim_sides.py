"""The models that a claim is about."""

from __future__ import annotations

from dataclasses import dataclass

from moeprof.analysis.compare.estimate import Estimate
from moeprof.analysis.summary import ModelSummary, Summary


@dataclass(frozen=True, kw_only=True)
class Sides:
    """The models that a claim is about.

    Attributes:
        summary: of the run.
        of: the model of the claim.
        against: the other one, or None where the run has none.
    """

    summary: Summary
    of: ModelSummary
    against: ModelSummary | None


def exactly(value: float) -> Estimate:
    """A counted fact."""
    return Estimate(value=value, low=value, high=value)
