"""What stands beside the tables of dollars: how other tools split the same bill."""

from __future__ import annotations

from moeprof.analysis.metrics.lookup import number
from moeprof.analysis.metrics.summary import Summary
from moeprof.analysis.report.document import Paragraph

OTHER_SPLITS = (
    (
        "request_seconds",
        "By request-seconds (as OpenCost does): the bill in proportion to the seconds that requests spent in prefill "
        "and in decode; requests that run at once each count a second, so decode weighs more than its part of the "
        "time.",
    ),
    (
        "all_in",
        "All in (as InferenceX and inference-perf do): the whole bill over the tokens of one side; the other side is "
        "free in it, so the two figures never add up to the bill.",
    ),
)


def other_splits(summary: Summary) -> tuple[Paragraph, ...]:
    """One line per split of another tool that the tables show; ours is the one whose prices add up to the bill."""
    shown = [
        text
        for name, text in OTHER_SPLITS
        if any(number(model, f"usd_per_1m_output_tokens_{name}") is not None for model in summary.models)
    ]
    return tuple(Paragraph(text=text) for text in shown)
