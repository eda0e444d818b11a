"""Does it keep its promises? The share of requests within every objective of the workload."""

from __future__ import annotations

from moeprof.analysis.metrics.lookup import pick
from moeprof.analysis.metrics.sweep.slo import ATTAINED
from moeprof.analysis.report.answer.sides import Sides
from moeprof.analysis.report.document import Finding, Outcome
from moeprof.core import units

QUESTION, NAME = "meets its objectives?", "goodput_ratio"


def find(sides: Sides) -> Finding:
    """Yes or no where the whole interval lies on one side of what counts as met."""
    value = pick(sides.model, NAME, own_traffic=True)
    if value is None or value.value is None:
        text = value.reasons[0] if value is not None and value.reasons else "the workload has no `slo`"
        return Finding(question=QUESTION, outcome="cannot tell", text=text, figures=(NAME,))
    share, low, high = float(value.value), value.ci_low, value.ci_high
    known = low is not None and high is not None
    ends = f" [{units.percent(low)}, {units.percent(high)}]" if low is not None and high is not None else ""
    outcome: Outcome = "cannot tell"
    if known and low is not None and low >= ATTAINED:
        outcome = "yes"
    elif known and high is not None and high < ATTAINED:
        outcome = "no"
    text = f"{units.percent(share)}{ends} of requests are within the objectives; {units.percent(ATTAINED)} are wanted"
    return Finding(question=QUESTION, outcome=outcome, text=text, figures=(NAME,))
