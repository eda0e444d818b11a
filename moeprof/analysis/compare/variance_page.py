"""Latency variance of the models side by side: how much there is, what routing explains of it, and the controls."""

from __future__ import annotations

from collections.abc import Sequence

from moeprof.analysis.cards import card_for
from moeprof.analysis.compare.ladder import LadderResult
from moeprof.analysis.document import MetricTable, Paragraph, Row, Section
from moeprof.analysis.pick import pick
from moeprof.analysis.summary import Summary
from moeprof.core import units

UNTOLD = "cannot tell: "  # how a share begins that is not above what this run could have shown
# metric, phase ("" = all)
ROWS = (
    ("step_cv_at_fixed_tokens", "decode"),
    ("itl_p99_over_p50_ratio", ""),
    ("ttft_p99_over_p50_ratio", ""),
    ("itl_tail_prefill_ratio", ""),
    ("variance_explained_by_routing_ratio", "decode"),
    ("variance_explained_by_routing_p", "decode"),
    ("variance_explained_by_routing_min_detectable_ratio", "decode"),
    ("placebo_variance_explained_by_routing_ratio", "decode"),
    ("placebo_variance_explained_by_routing_p", "decode"),
)


def variance_section(summary: Summary, ladders: Sequence[LadderResult] = ()) -> Section | None:
    """Spread of step times and gaps, the share that routing explains, its p-value, and its controls.

    Figures come from the passes that dollars come from, where those exist. None when nothing of it was measured.

    Args:
        summary: the run.
        ladders: with routing overridden to several numbers of distinct experts they give the intervention control.
    """
    rows = [row for name, phase in ROWS if (row := _row(summary, name, phase)) is not None]
    if not rows:
        return None
    texts = [_sentence(summary), *(text for result in ladders if (text := _intervention(result)))]
    table = MetricTable(title="Latency variance", rows=tuple(rows))
    return Section(name="variance", title="Latency variance", blocks=(*(Paragraph(text=text) for text in texts), table))


def _intervention(result: LadderResult) -> str | None:
    """What one more expert costs when routing is set by hand: not a correlation."""
    slope = result.coverage.slope
    if result.phase != "decode" or slope.value is None or slope.low is None or slope.high is None:
        return None
    load = "all at once" if result.concurrency is None else f"{result.concurrency} in flight"
    return (
        f"Control by intervention, decode, {load}: with routing set by hand, one more distinct expert in every layer "
        f"takes {units.display(slope.value, 's')} a step [{units.interval(slope.low, slope.high, 's')}]."
    )


def _row(summary: Summary, name: str, phase: str) -> Row | None:
    labels = {"phase": phase} if phase else {}
    values = tuple(
        pick(model, name, own_traffic=False, **labels) or pick(model, name, own_traffic=True, **labels)
        for model in summary.models
    )
    if all(value is None for value in values):
        return None
    card = card_for(name)
    return Row(label=f"{card.title}, {phase}" if phase else card.title, card=card, name=name, values=values)


def _sentence(summary: Summary) -> str:
    """What routing explains of the first MoE's decode steps, in words."""
    moe = next((m for m in summary.models if m.facts is not None and m.facts.is_moe), None)
    if moe is None:
        return "No model of this run has a router."
    shares = [
        pick(moe, "variance_explained_by_routing_ratio", own_traffic=own, phase="decode") for own in (False, True)
    ]
    share = next((value for value in shares if value is not None), None)
    if share is None:
        return f"How much of the spread of {moe.name}'s decode steps its routing explains was not measured."
    if share.value is None or not share.valid:
        untold = [text.removeprefix(UNTOLD) for text in share.reasons if text.startswith(UNTOLD)]
        reason = (*untold, *share.reasons, "too few steps")[0]
        return f"Whether routing explains any of the spread of {moe.name}'s decode steps cannot be told: {reason}."
    text = f"Routing explains {units.significant(100 * share.value)} % of the spread of {moe.name}'s decode steps"
    return f"{text} among steps with equal tokens, beyond what permuted routing explains."
