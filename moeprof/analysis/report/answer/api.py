"""Cheaper than an API? Only where its prices are given."""

from __future__ import annotations

from moeprof.analysis.metrics.lookup import pick
from moeprof.analysis.report.answer.sides import Sides
from moeprof.analysis.report.document import Finding
from moeprof.core import units

QUESTION, NAME = "cheaper than the API?", "break_even_utilisation_ratio"


def find(sides: Sides) -> Finding | None:
    """The share of the time that the device must be busy so that renting it costs what the API asks."""
    value = pick(sides.model, NAME)
    pricing = sides.summary.pricing
    if value is None or (pricing.api_usd_per_1m_output_tokens is None and pricing.api_usd_per_1m_input_tokens is None):
        return None
    if value.value is None:
        reason = value.reasons[0] if value.reasons else "not measured"
        return Finding(question=QUESTION, outcome="cannot tell", text=reason, figures=(NAME,))
    share = float(value.value)
    ends = ""
    if value.ci_low is not None and value.ci_high is not None:
        ends = f" [{units.percent(value.ci_low)}, {units.percent(value.ci_high)}]"
    text = f"break-even at {units.percent(share)}{ends} of the device's time in use"
    if share >= 1:
        aside = "Renting this device for it never costs less than the API."
        return Finding(question=QUESTION, outcome="no", text=text, figures=(NAME,), aside=aside)
    aside = f"It is cheaper than the API where the device is in use for over {units.percent(share)} of the time."
    return Finding(question=QUESTION, outcome="depends", text=text, figures=(NAME,), aside=aside)
